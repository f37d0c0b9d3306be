"""Which models requests are using right now: an adapter may give up its place only when nobody is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class ModelsInUse:
    """The running requests of each model, by the name that they gave."""

    def __init__(self) -> None:
        self._running: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def use(self, model: str | None) -> Iterator[None]:
        """For as long as a request runs."""
        if model is None:
            yield
            return
        ended = asyncio.Event()
        self._running.setdefault(model, set()).add(ended)
        try:
            yield
        finally:
            ended.set()
            self._running[model].discard(ended)
            if not self._running[model]:
                del self._running[model]

    def count(self, model: str) -> int:
        """Requests that run."""
        return len(self._running.get(model, ()))

    async def end_of(self, model: str) -> None:
        """Returns when those that run now have ended; others may have begun by then."""
        for ended in list(self._running.get(model, ())):
            await ended.wait()
