"""Live progress on stderr: one line rewritten on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType

from qwen_vqa.benchmarks.load_generator.records import Record

LIVE_SECONDS, QUIET_SECONDS = 0.2, 10.0


class Progress:
    """What has ended, what has failed, and when the cell will be over."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._title = ""
        self._started = 0.0
        self._last = 0.0
        self._done = 0
        self._failed = 0
        self._counted = 0  # of the records: each is looked at once

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live and self._title:
            print(file=sys.stderr)

    def show(self, title: str, done: int, count: int, records: list[Record]) -> None:
        """Called a few times a second with all records so far."""
        now = time.monotonic()
        if title != self._title or done < self._done:
            if self._live and self._title:
                print(file=sys.stderr)
            self._title, self._started, self._last = title, now, now
            self._done = self._failed = self._counted = 0
        every = LIVE_SECONDS if self._live else QUIET_SECONDS
        if now - self._last < every and not (done == count and self._done < count):
            return
        self._done = done
        self._last = now
        self._failed += sum(record.error is not None for record in records[self._counted :])
        self._counted = len(records)
        took = max(now - self._started, 1e-3)
        eta = f", {took / done * (count - done):.0f} s left" if 0 < done < count else ""
        line = f"load: {title}: {done} of {count}, {self._failed} failed, {done / took:.1f}/s{eta}"
        print(f"\r\x1b[2K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)
