"""Requests and image tokens per minute, for each caller, counted with the `limits` library.

Counted in a sliding window: the last minute's count, of which what lies in the previous window is taken as evenly
spread. In memory a window is a minute of the clock; in a store it begins with a caller's first request. What is refused
here is not counted: a client that keeps trying gets as far as one that waits.
"""

from math import floor

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter as SharedLimiter
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from qwen_vqa.serving.admission.limits_store import LimitsStore
from qwen_vqa.serving.errors.refusals import RefusedError, too_many

MINUTE = 60
WORDS = {"requests": "requests", "image_tokens": "image tokens"}


class MemoryWindows:
    """The windows in this process. The library's own asyncio storage in memory looks through all callers' windows at
    each request, which is 2 ms where there are 10,000; the one with a timer does not."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    async def hit(self, item: RateLimitItemPerMinute, *caller: str, cost: int) -> bool:
        """Whether there is room for `cost`, which is taken then."""
        return self._limiter.hit(item, *caller, cost=cost)

    async def look(self, key: str) -> tuple[int, float, int, float]:
        """What is counted in the previous window and in this one, each with the seconds until it no longer counts."""
        return self._storage.get_sliding_window(key, MINUTE)


class SharedWindows:
    """The same in a store."""

    def __init__(self, store: LimitsStore) -> None:
        self._storage = store.storage
        self._limiter = SharedLimiter(self._storage)

    async def hit(self, item: RateLimitItemPerMinute, *caller: str, cost: int) -> bool:
        """As `MemoryWindows`."""
        return await self._limiter.hit(item, *caller, cost=cost)

    async def look(self, key: str) -> tuple[int, float, int, float]:
        """As `MemoryWindows`."""
        return await self._storage.get_sliding_window(key, MINUTE)


class RateLimits:
    """Counts for all callers, in this process' memory or in a store that others share."""

    def __init__(self, store: LimitsStore | None = None) -> None:
        self._store = store
        self._windows = SharedWindows(store) if store else MemoryWindows()

    async def count(self, what: str, caller: str, per_minute: int, cost: int = 1) -> None:
        """Add `cost` to a caller's `requests` or `image_tokens`; a limit of 0 is none.

        Raises:
            RefusedError: 429, that would be more than `per_minute`; 400, it would be so in any minute; 503, the store
                does not answer.
        """
        if not per_minute or not cost:
            return
        if cost > per_minute:
            raise RefusedError(
                400,
                f"this request's {WORDS[what]} are {cost}; {per_minute} a minute are allowed, so it can never be "
                "served. Send fewer or ask for a higher limit.",
                code=f"{what}_per_minute",
            )
        item = RateLimitItemPerMinute(per_minute)
        if self._store is None:
            await self._hit(item, what, caller, cost)
        else:
            await self._store.ask(lambda: self._hit(item, what, caller, cost))

    async def _hit(self, item: RateLimitItemPerMinute, what: str, caller: str, cost: int) -> None:
        if await self._windows.hit(item, what, caller, cost=cost):
            return
        wait = await self._seconds_until(item, what, caller, cost)
        raise too_many(
            f"Rate limit reached: {item.amount} {WORDS[what]} per minute. Try again in {floor(wait) + 1} s.",
            "requests" if what == "requests" else "tokens",
            wait,
        )

    async def _seconds_until(self, item: RateLimitItemPerMinute, what: str, caller: str, cost: int) -> float:
        """How long until `cost` fits, if nothing else comes; `limits` itself says only when one unit does."""
        previous, previous_left, current, current_left = await self._windows.look(item.key_for(what, caller))
        # `limits` lets it pass once floor(previous * previous_left / MINUTE + current) + cost <= limit.
        room = item.amount - cost + 1
        if current < room:
            return max(0.0, previous_left - (room - current) * MINUTE / previous) if previous else 0.0
        until_next_window = current_left - MINUTE  # a count is kept for the window after its own, too
        return until_next_window + MINUTE * (1 - room / current)
