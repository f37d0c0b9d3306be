"""How much: after the door, every request that does work is counted, bounded, and takes its turn."""

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.adapters.models_in_use import ModelsInUse
from qwen_vqa.serving.admission.authentication import STATE, Admitted
from qwen_vqa.serving.admission.fair_queue import FairQueue, QueueFullError, Ticket
from qwen_vqa.serving.admission.limits_store import LimitsStore
from qwen_vqa.serving.admission.rate_limits import RateLimits
from qwen_vqa.serving.admission.request_body import RETRY_SECONDS, Bodies, ClientGoneError
from qwen_vqa.serving.admission.request_bounds import RequestBounds
from qwen_vqa.serving.admission.request_json import SentJson
from qwen_vqa.serving.admission.route_rules import Access
from qwen_vqa.serving.admission.shared_running import POLL_SECONDS, SharedRunning
from qwen_vqa.serving.errors.refusals import RefusedError, too_many
from qwen_vqa.serving.observability import metrics
from qwen_vqa.serving.observability.request_record import request_record

# Requests of routes that are not limited, such as GET /v1/models. They take processor time alone: of a flood of them,
# no more are worked on between two looks at what else has come.
SHORT_AT_ONCE = 8


@dataclass(frozen=True)
class CallerLimits:
    """What a caller may use, where their key says nothing else; 0 is no limit."""

    requests_per_minute: int
    image_tokens_per_minute: int
    running: int

    def of(self, admitted: Admitted) -> "CallerLimits":
        """With what the request's key says in its own right."""
        own = {name: getattr(admitted.key, name, None) for name in self.__dataclass_fields__}
        return CallerLimits(**{name: getattr(self, name) if value is None else value for name, value in own.items()})


class UsageMiddleware:
    """Counts, bounds and queues the requests whose rule says `limited`; everything else passes.

    The body is read whole and looked at once, and what the app gets is that very body. A place in the queue is held
    until the app is done with the request: for a stream, at its end or when the client is gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: CallerLimits,
        bounds: RequestBounds,
        queue: FairQueue,
        tokens_per_image: int,
        tokens_in_low_detail: int,
        max_body_bytes: int,
        wait_seconds: float,
        in_use: ModelsInUse,
        store: LimitsStore | None = None,
    ):
        self.app = app
        self.limits = limits
        self.bounds = bounds
        self.queue = queue
        self.rates = RateLimits(store)
        self.shared_running = SharedRunning(store) if store else None
        self.tokens_per_image = tokens_per_image
        self.tokens_in_low_detail = tokens_in_low_detail
        self.bodies = Bodies(max_body_bytes)
        self.wait_seconds = wait_seconds
        self.in_use = in_use
        self._short = asyncio.Semaphore(SHORT_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        admitted: Admitted | None = scope.get("state", {}).get(STATE)
        if admitted is None or not admitted.rule.limited:
            async with contextlib.nullcontext() if admitted and admitted.rule.access is Access.OPEN else self._short:
                return await self.app(scope, receive, send)
        record = request_record()
        try:
            record.caller = caller = caller_of(scope, admitted)
            limits = self.limits.of(admitted)
            # Before the body: whoever floods is refused at the price of a header.
            await self.rates.count("requests", caller, limits.requests_per_minute)
            with self.bodies.of(caller, scope, receive) as body:
                sent = SentJson.of(scope, await body.read())
                asked = self.bounds.check(sent)
                record.images = asked.images
                tokens = (asked.images - asked.low_detail) * self.tokens_per_image
                tokens += asked.low_detail * self.tokens_in_low_detail
                await self.rates.count("image_tokens", caller, limits.image_tokens_per_minute, tokens)
                joined = time.perf_counter()
                async with self._turn(caller, limits.running, receive, sent):
                    record.queue_seconds = round(time.perf_counter() - joined, 4)
                    metrics.QUEUE_WAIT.observe(record.queue_seconds)
                    with self.in_use.use(asked.model):
                        await self.app(scope, body.replay, send)
        except RefusedError as refusal:  # all of them come before the app answers
            await refusal.send(send)
        except ClientGoneError:
            return

    @contextlib.asynccontextmanager
    async def _turn(self, caller: str, own_running: int, receive: Receive, sent: SentJson) -> AsyncIterator[None]:
        try:
            ticket = self.queue.join(caller, own_running)
        except QueueFullError as full:
            raise _full(full) from full
        shared = self.shared_running if own_running else None
        place = SharedRunning.new_place()
        until = asyncio.get_running_loop().time() + self.wait_seconds
        try:
            await self._wait(ticket, receive, sent, until)
            while shared and not await shared.take(caller, own_running, place):
                self.queue.postpone(ticket, POLL_SECONDS)
                await self._wait(ticket, receive, sent, until)
            yield
        finally:
            try:
                if shared and ticket.granted.done():
                    await asyncio.shield(shared.give_back(caller, place))
            finally:
                self.queue.leave(ticket)

    async def _wait(self, ticket: Ticket, receive: Receive, sent: SentJson, until: float) -> None:
        """Until it is this request's turn, or its client goes, or it took too long."""
        if ticket.granted.done():
            return
        sent.forget()  # what waits takes the memory of its body, which is bounded, and no more
        left = max(0.0, until - asyncio.get_running_loop().time())
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({ticket.granted, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if gone.done() and not gone.cancelled():
            raise ClientGoneError
        if not ticket.granted.done():
            raise too_many(
                f"no turn within {self.wait_seconds:g} s: the server is busy. Try again.", "requests", RETRY_SECONDS
            )
        if error := ticket.granted.exception():
            assert isinstance(error, QueueFullError)
            raise _full(error) from error


def caller_of(scope: Scope, admitted: Admitted) -> str:
    """Who a request is counted for: its key's name, or its address where the server has no keys.

    An IPv6 address counts with its /64, which is what one household or machine has.
    """
    if admitted.key is not None:
        return f"key {admitted.key.name}"
    host = scope["client"][0] if scope.get("client") else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"address {host}"
    if address.version == 6:
        address = address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address
    return f"address {address}"


def _full(full: QueueFullError) -> RefusedError:
    whose = "you have as many requests waiting as one caller may" if full.own else "the server's queue is full"
    return too_many(f"Rate limit reached: {whose}. Try again in {RETRY_SECONDS} s.", "requests", RETRY_SECONDS)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
