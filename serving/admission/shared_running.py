"""How many requests of a caller run at once in all servers that share a store.

`limits` counts in windows of time and has nothing for this. A place is a member of the caller's sorted set, whose score
is the time until which it counts; the method is the concurrent requests limiter of
https://stripe.com/blog/rate-limiters. A server renews the places of what it runs, so that those of a killed one are
free again after LEASE_SECONDS. All times are the database's.
"""

import asyncio
import secrets
from functools import partial

from qwen_vqa.serving.admission.limits_store import PREFIX, LimitsStore

LEASE_SECONDS = 30
RENEW_SECONDS = 10
# Who waits for a place that another server's request has asks again after so long.
POLL_SECONDS = 0.1
_NOW = "local time = redis.call('TIME') local now = time[1] + time[2] / 1000000 "
TAKE = (
    _NOW
    + """
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[1])
    return 1
"""
)
# Also adds what the database has lost.
RENEW = (
    _NOW
    + """
    for place = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[place]) end
    redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
)


class SharedRunning:
    """The places of this server's requests in the store."""

    def __init__(self, store: LimitsStore):
        self._store = store
        self._take = store.client.register_script(TAKE)
        self._renew = store.client.register_script(RENEW)
        self._held: dict[str, set[str]] = {}
        self._changing = asyncio.Lock()  # what is given back is not renewed after that
        self._renewing: asyncio.Task[None] | None = None

    @staticmethod
    def new_place() -> str:
        """A name for a place, which nobody else has."""
        return secrets.token_hex(8)

    async def take(self, caller: str, most: int, place: str) -> bool:
        """Whether the caller has a place left of `most`, which is theirs until it is given back.

        Raises:
            RefusedError: 503, the store does not answer.
        """
        answer = await self._store.ask(lambda: self._take(keys=[_key(caller)], args=[LEASE_SECONDS, place, most]))
        if answer == 0:
            return False
        # Also where the store does not answer and requests pass: once it is back, those count.
        self._held.setdefault(caller, set()).add(place)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._keep_renewing())
        return True

    async def give_back(self, caller: str, place: str) -> None:
        """The place is free. Where the store does not answer, it is so when nobody renews it."""
        async with self._changing:
            if caller in self._held:
                self._held[caller].discard(place)
                if not self._held[caller]:
                    del self._held[caller]
            await self._store.try_to(lambda: self._store.client.zrem(_key(caller), place))

    async def _keep_renewing(self) -> None:
        while self._held:
            await asyncio.sleep(RENEW_SECONDS)
            for caller in list(self._held):
                async with self._changing:
                    await self._store.try_to(partial(self._renew_places, caller))

    async def _renew_places(self, caller: str) -> None:
        if places := self._held.get(caller):
            await self._renew(keys=[_key(caller)], args=[LEASE_SECONDS, *places])


def _key(caller: str) -> str:
    return f"{PREFIX}:running:{caller}"
