"""A bounded queue before the engine in which callers take turns, however much each of them sends."""

import asyncio
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field


class QueueFullError(Exception):
    """There is no place to wait; `own` says whether it is the caller's own places that are taken."""

    def __init__(self, own: bool):
        super().__init__("the queue is full")
        self.own = own


@dataclass(eq=False)
class Ticket:
    """A place: waiting until `granted` is done, running after that, until `leave`."""

    caller: str
    own_running: int
    granted: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairQueue:
    """At most `running` requests at once; the rest wait, and the callers who wait take turns.

    `waiting_per_caller` bounds one caller's line, `waiting` all lines together. When those are full, a newcomer takes
    the last place of the longest line: the flood gives way, not the one who comes after it.
    """

    def __init__(self, running: int, waiting: int, waiting_per_caller: int):
        self.limit = running
        self.waiting_limit = waiting
        self.waiting_per_caller = waiting_per_caller
        self._running: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()  # whose turn is next stands first
        self._postponed: dict[str, asyncio.TimerHandle] = {}

    @property
    def running(self) -> int:
        """Requests that hold a place now."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return sum(map(len, self._lines.values()))

    def join(self, caller: str, own_running: int = 0) -> Ticket:
        """Get in line. `own_running` bounds what this caller has running at once; 0 leaves it to the whole.

        Raises:
            QueueFullError: at once; a place that is taken away later gets it through `granted`.
        """
        ticket = Ticket(caller, own_running)
        self._lines.setdefault(caller, deque()).append(ticket)
        self._grant()
        if ticket.granted.done():
            return ticket
        if len(self._lines[caller]) > self.waiting_per_caller:
            self._remove(ticket)
            raise QueueFullError(own=True)
        if self.waiting > self.waiting_limit:
            longest = max(self._lines.values(), key=len)
            # As long as the longest is long enough: who comes last has to go.
            dropped = ticket if len(longest) <= len(self._lines[caller]) else longest[-1]
            self._remove(dropped)
            if dropped is ticket:
                raise QueueFullError(own=False)
            dropped.granted.set_exception(QueueFullError(own=True))
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place back, whether it was still waiting or running already."""
        if not ticket.granted.done():
            self._remove(ticket)
            ticket.granted.cancel()
        elif not ticket.granted.cancelled() and ticket.granted.exception() is None:
            self._ended(ticket.caller)
            self._resume(ticket.caller)
        self._grant()

    def postpone(self, ticket: Ticket, seconds: float) -> None:
        """Take a turn back, since what the caller has running elsewhere leaves no place for it.

        The ticket stays the first of its line, and gets its next turn after so long, or when one of the caller's
        requests here is done.
        """
        self._ended(ticket.caller)
        ticket.granted = asyncio.get_running_loop().create_future()
        self._lines.setdefault(ticket.caller, deque()).appendleft(ticket)
        self._resume(ticket.caller)
        self._postponed[ticket.caller] = asyncio.get_running_loop().call_later(seconds, self._again, ticket.caller)
        self._grant()

    def _again(self, caller: str) -> None:
        self._resume(caller)
        self._grant()

    def _resume(self, caller: str) -> None:
        if timer := self._postponed.pop(caller, None):
            timer.cancel()

    def _ended(self, caller: str) -> None:
        self._running[caller] -= 1
        self._running += Counter()  # forgets callers with nothing running

    def _grant(self) -> None:
        while self.running < self.limit:
            ticket = next((line[0] for line in self._lines.values() if self._may_run(line[0])), None)
            if ticket is None:
                return
            line = self._lines.pop(ticket.caller)
            line.popleft()
            if line:
                self._lines[ticket.caller] = line  # at the end: the others' turn first
            self._running[ticket.caller] += 1
            ticket.granted.set_result(None)

    def _may_run(self, ticket: Ticket) -> bool:
        if ticket.caller in self._postponed:
            return False
        return not ticket.own_running or self._running[ticket.caller] < ticket.own_running

    def _remove(self, ticket: Ticket) -> None:
        line = self._lines[ticket.caller]
        line.remove(ticket)
        if not line:
            del self._lines[ticket.caller]
