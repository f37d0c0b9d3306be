"""Requests and image tokens per minute, for each caller, counted with the `limits` library.

Counted in a sliding window: the last minute's count, of which what lies in the clock's previous minute is taken as
evenly spread. What is refused here is not counted: a client that keeps trying gets as far as one that waits.
"""

import time
from math import floor

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from qwen_vqa.serving.errors.refusals import RefusedError, too_many

MINUTE = 60
WORDS = {"requests": "requests", "image_tokens": "image tokens"}


class RateLimits:
    """Counts for all callers, in this process' memory."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def count(self, what: str, caller: str, per_minute: int, cost: int = 1) -> None:
        """Add `cost` to a caller's `requests` or `image_tokens`; a limit of 0 is none.

        Raises:
            RefusedError: 429, that would be more than `per_minute`; 400, it would be so in any minute.
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
        if not self._limiter.hit(item, what, caller, cost=cost):
            wait = self._seconds_until(item, what, caller, cost)
            raise too_many(
                f"Rate limit reached: {per_minute} {WORDS[what]} per minute. Try again in {floor(wait) + 1} s.",
                "requests" if what == "requests" else "tokens",
                wait,
            )

    def _seconds_until(self, item: RateLimitItemPerMinute, what: str, caller: str, cost: int) -> float:
        """How long until `cost` fits, if nothing else comes; `limits` itself says only when one unit does."""
        previous, previous_left, current, _ = self._storage.get_sliding_window(item.key_for(what, caller), MINUTE)
        # `limits` lets it pass once floor(previous * previous_left / MINUTE + current) + cost <= limit.
        room = item.amount - cost + 1
        if current < room:
            return previous_left - (room - current) * MINUTE / previous if previous else 0.0
        until_next_minute = MINUTE - time.time() % MINUTE
        return until_next_minute + MINUTE * (1 - room / current)
