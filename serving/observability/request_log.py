"""A line for every request, with an id that client, log, vLLM and traces share; and the metrics that count it."""

import re
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vqa.serving.observability import metrics
from qwen_vqa.serving.observability.log import write_request
from qwen_vqa.serving.observability.request_record import WATCHED, RequestRecord, begin

# What a client may call its request; anything else is not passed on, to logs least of all.
ID = re.compile(r"[A-Za-z0-9._:@=-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
CLIENT_GONE = 499  # nginx' number for a client that did not wait for its answer
LOGGED = (
    "id",
    "key",
    "model",
    "refused",
    "images",
    "prompt_tokens",
    "output_tokens",
    "queue_seconds",
    "trace_id",
)


class RequestLogMiddleware:
    """Outermost: gives every request its id, and writes it down when its answer is complete.

    Args:
        writes: whether to print the lines; the metrics count in any case.
    """

    def __init__(self, app: ASGIApp, writes: bool = True):
        self.app = app
        self.writes = writes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = _record_of(scope)
        begin(record)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except BaseException:
            record.status = record.status or 500
            raise
        finally:
            self._note(record, scope)

    def _note(self, record: RequestRecord, scope: Scope) -> None:
        _complete(record, scope.get("state", {}))
        metrics.REQUESTS.labels(record.route, record.key or "", str(record.status)).inc()
        metrics.REQUEST_SECONDS.labels(record.route).observe(record.seconds)
        if record.refused:
            metrics.REFUSED.labels(record.refused).inc()
        looked_at = record.route in WATCHED and record.status == 200
        if self.writes and not looked_at:
            named = {name: getattr(record, name) for name in ("method", "route", "status")}
            rest = {name: getattr(record, name) for name in LOGGED}
            write_request({**named, "seconds": round(record.seconds, 4), **rest})


def _record_of(scope: Scope) -> RequestRecord:
    """A record with the client's id if that is a sane one, which vLLM then reads from the header, as we do."""
    headers = MutableHeaders(scope=scope)
    sent = headers.get("x-request-id", "")
    name = sent if ID.fullmatch(sent) else uuid.uuid4().hex
    headers["x-request-id"] = name
    trace = TRACEPARENT.fullmatch(Headers(scope=scope).get("traceparent", ""))
    return RequestRecord(id=name, method=scope["method"][:16], trace_id=trace[1] if trace else None)


def _complete(record: RequestRecord, state: MutableMapping[str, Any]) -> None:
    """What vLLM has left in the request's state, and what the status says."""
    usage = getattr(state.get("request_metadata"), "final_usage_info", None)
    if usage is not None:
        record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.completion_tokens
    record.status = record.status or CLIENT_GONE
    unnamed = record.status >= 400 and record.status != CLIENT_GONE and record.refused is None
    if unnamed and record.route not in WATCHED:  # a look at a server that is not ready is no request it refused
        record.refused = f"http_{record.status}"
