"""What is known of the request at hand: filled in on its way through the server, written down at its end."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

# What is answered to the end, and on connections beyond the bound: who watches the server has to see it.
WATCHED = ("/health", "/ready", "/metrics")


@dataclass
class RequestRecord:
    """One request. Nothing of its content is kept: neither prompt nor picture nor key.

    `refused` says why in a word from a short list, since metrics count it; `seconds` are its own so far. `caller` is
    who it counts for (`usage.caller_of`); it is not written down, since it may be an address.
    """

    id: str = ""
    method: str = ""
    route: str = "other"
    key: str | None = None
    caller: str = ""
    model: str | None = None
    status: int | None = None
    refused: str | None = None
    images: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    queue_seconds: float | None = None
    trace_id: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it came in."""
        return time.perf_counter() - self.started


_RECORD: ContextVar[RequestRecord | None] = ContextVar("qwen_vqa_request_record", default=None)


def begin(record: RequestRecord) -> None:
    """Make it the record of the request at hand, for all that runs in its context and what that starts."""
    _RECORD.set(record)


def request_record() -> RequestRecord:
    """The record of the request at hand; one that nobody reads, outside of one."""
    return _RECORD.get() or RequestRecord()
