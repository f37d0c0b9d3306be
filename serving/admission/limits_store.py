"""Callers' limits in a Redis or Valkey database (`--limits-storage`), which several servers share.

The windows are counted by the `limits` library's own storage. Its sliding windows go by the database's clock alone, so
that servers whose clocks differ count the same. When the database cannot be reached, `--limits-unavailable` says what
becomes of requests that have a limit: `refuse` answers 503, `allow` lets them through uncounted.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability import metrics
from qwen_vqa.serving.observability.log import say

# In place of the flag, whose password every user of the machine could read in the list of processes.
STORAGE_VARIABLE = "QWEN_VQA_LIMITS_STORAGE"
Unavailable = Literal["refuse", "allow"]
UNAVAILABLE: tuple[Unavailable, ...] = get_args(Unavailable)
# A Valkey server speaks Redis' protocol: one client does for both.
SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "redis+unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+unix": "unix",
}
PREFIX = "qwen-vqa"
# A database that does not answer holds up no request for longer.
CALL_SECONDS = 1.0
LOOK_SECONDS = 0.5
RETRY_SECONDS = 5
CONNECTIONS = 32
_T = TypeVar("_T")


class LimitsStore:
    """The database, and whether it answers.

    Args:
        url: such as redis://:PASSWORD@HOST:6379/0; `shown` is it without name, password and options.
        unavailable: what becomes of requests while it does not answer.

    Raises:
        UserError: that is not the URL of a database, or the package `redis` is missing.
    """

    def __init__(self, url: str, unavailable: Unavailable):
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES:
            raise UserError(
                f"--limits-storage takes {', '.join(f'{name}://' for name in SCHEMES)}; this begins with "
                f"{scheme if rest else 'none of them'}."
            )
        self.shown = f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
        self._refuses = unavailable == "refuse"
        self._back: asyncio.Task[None] | None = None  # runs while the database does not answer
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError as error:
            raise UserError("--limits-storage needs the package redis: pip install 'redis>=5.2,<8'") from error
        self._failures: tuple[type[Exception], ...] = (RedisError, OSError)
        try:
            _check_place(url)
            pool = BlockingConnectionPool.from_url(
                f"{SCHEMES[scheme]}://{rest}",
                max_connections=CONNECTIONS,
                timeout=CALL_SECONDS,
                socket_timeout=CALL_SECONDS,
                socket_connect_timeout=CALL_SECONDS,
                retry=Retry(NoBackoff(), 1),  # where a connection that was kept is closed by now
            )
            pool.make_connection()
        except (ValueError, TypeError, AttributeError):  # whose words could hold the password
            raise UserError(
                f"--limits-storage {self.shown} is not a database's URL. It is redis://[[NAME]:PASSWORD@]HOST:PORT"
                "[/DATABASE], or redis+unix://[[NAME]:PASSWORD@]/PATH; a / in the password is written %2F, an @ %40."
            ) from None
        self.client = Redis(connection_pool=pool)
        self.storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=PREFIX,
            connection_pool=pool,  # type: ignore[arg-type] # documented, and not in its types
        )

    async def ask(self, work: Callable[[], Awaitable[_T]]) -> _T | None:
        """What `work` finds out there; None where it cannot be asked, and the request passes uncounted.

        Raises:
            RefusedError: 503, it cannot be asked; and what `work` raises itself.
        """
        answered, answer = await self.try_to(work)
        if answered:
            return answer
        if self._refuses:
            raise RefusedError(
                503,
                "The server cannot look up your limits now. Try again.",
                "server_error",
                "limits_unavailable",
                retry_after=RETRY_SECONDS,
            )
        metrics.LIMITS_UNCOUNTED.inc()
        return None

    async def try_to(self, work: Callable[[], Awaitable[_T]]) -> tuple[bool, _T | None]:
        """Whether the database answered, and what `work` found out there; while it is known to be away, not asked."""
        if self._back is None:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    return True, await work()
            except self._failures as error:
                self._gone(error)
        return False, None

    async def probe(self) -> None:
        """Count something, as for a request; raises what the client raises."""
        async with asyncio.timeout(CALL_SECONDS):
            await self.storage.acquire_sliding_window_entry("probe", 10**9, 60)

    async def check(self) -> None:
        """To be called before the model loads.

        Raises:
            UserError: the database does not count.
        """
        try:
            await self.probe()
        except self._failures as error:
            raise UserError(
                f"--limits-storage {self.shown} cannot be used: {_reason(error)}. Start the Redis or Valkey server, "
                "or mend the URL; without the flag, limits are counted in this process' memory."
            ) from error
        finally:
            await self.client.aclose()

    def _gone(self, error: Exception) -> None:
        if self._back is not None:
            return
        told = "requests with limits get 503" if self._refuses else "requests pass uncounted"
        say(f"ERROR: the limits' store {self.shown} does not answer ({_reason(error)}): {told} until it is back")
        metrics.LIMITS_STORE_UP.set(0)
        self._back = asyncio.create_task(self._until_back())

    async def _until_back(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.probe()
            except self._failures:
                continue
            self._back = None
            metrics.LIMITS_STORE_UP.set(1)
            return say(f"the limits' store {self.shown} is back: limits are counted again")


def _check_place(url: str) -> None:
    """Raises ValueError for what the client would take as its default: no host, or a database that is no number."""
    parts = urlsplit(url)
    if parts.port == 0 or not (parts.path if parts.scheme.endswith("+unix") else parts.hostname):
        raise ValueError
    if not parts.scheme.endswith("+unix") and parts.path.strip("/"):
        int(parts.path.strip("/"))


def storage_url(flag: str | None) -> str | None:
    """What --limits-storage or the environment says, where the server's other processes no longer find it."""
    return flag or os.environ.pop(STORAGE_VARIABLE, None) or None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or f"no answer within {CALL_SECONDS:g} s"
