"""Connections: how many there may be, of one address and in all, and the end of those that ask nothing.

Who has not sent a request's head within 10 s is closed (http_protocol.py has the bounds in time), and of one address at
most `--slow-connections-per-address` may take longer than a second for it. Connections that work are not counted by
address: behind a proxy all of them come from one, and a proxy sends a head at once.

When there are `--connections` in all, a newcomer takes the place of one that waits: of the address that has most of
them, the oldest. Where none waits, since the server works on all, a newcomer may still ask `/health`.
"""

import asyncio
import contextlib
import resource
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence

from qwen_vqa.serving.http.http_protocol import BoundedProtocol, ConnectionPhase
from qwen_vqa.serving.observability.log import say

# Beyond the bound, for who asks whether the server lives.
RESERVE = 32
# More are not asked for: each connection is one, and each picture that is fetched.
FILES = 65536
# Of the open files that the process may have; the rest is for pictures that are fetched, the engine and files.
FILES_SHARE = 0.75
# A head that comes at once, but finds the server busy, is not a slow one.
SLOW_SECONDS = 1.0
LOOK_SECONDS = 0.5
# Who gives way first: a connection that asks nothing, then one that is between two requests, then a body that comes.
GIVE_WAY = (ConnectionPhase.HEAD, ConnectionPhase.REST, ConnectionPhase.IDLE, ConnectionPhase.BODY)


def raise_file_limit() -> None:
    """Have this process and its children open as many files as the system allows, up to FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections(flags: Namespace) -> int:
    """--connections, or what the limit of open files allows of them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return flags.connections
    return max(1, min(flags.connections, int(files * FILES_SHARE) - RESERVE))


def check_file_limit(flags: Namespace) -> None:
    """Say it where the limit of open files allows fewer connections than --connections."""
    most = most_connections(flags)
    if most < flags.connections:
        say(f"connections: at most {most} at once, since a process may open few files here (ulimit -n); the rest waits")


class Connections:
    """The open connections of one process.

    Args:
        flags: as `listen_flags` has them. Beyond the most that there may be, RESERVE more may ask for `/health`.
    """

    def __init__(self, flags: Namespace):
        self.most = most_connections(flags)
        self._slow_per_address = flags.slow_connections_per_address
        self._open: dict[BoundedProtocol, asyncio.Task] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether only the reserve is left."""
        return len(self) >= self.most

    def make_room(self, now: float) -> bool:
        """Whether there is a place for one more, if need be another's."""
        if len(self) < self.most or self._close_one(GIVE_WAY, now, SLOW_SECONDS):
            return True
        # A flood within a second: the oldest has had its time while all the others were taken.
        return len(self) < self.most + RESERVE or self._close_one((ConnectionPhase.HEAD,), now, 0)

    def add(self, protocol: BoundedProtocol, task: asyncio.Task) -> None:
        """One more, which `task` brings up; it counts until it is closed."""
        self._open[protocol] = task

    def remove(self, protocol: BoundedProtocol) -> None:
        """One less."""
        self._open.pop(protocol, None)

    def look(self, now: float) -> None:
        """Close what takes too long, and what one address has too many of."""
        for protocol in list(self._open):
            protocol.end_if_overdue(now)
        if not self._slow_per_address:
            return
        slow = [one for one in self._waiting(ConnectionPhase.HEAD, now) if one.address is not None]
        beyond = Counter(one.address for one in slow)
        for protocol in slow:  # the oldest first
            if beyond[protocol.address] > self._slow_per_address:
                beyond[protocol.address] -= 1
                self._close(protocol)

    def _close_one(self, phases: Sequence[ConnectionPhase], now: float, least: float) -> bool:
        for phase in phases:
            waiting = self._waiting(phase, now, least)
            if waiting:
                of_each = Counter(one.address for one in waiting)
                most = max(of_each.values())
                self._close(next(one for one in waiting if of_each[one.address] == most))
                return True
        return False

    def _waiting(self, phase: ConnectionPhase, now: float, least: float = SLOW_SECONDS) -> list[BoundedProtocol]:
        """Those that have been in a phase for longer than so many seconds, the oldest first."""
        found = [one for one in self._open if one.phase is phase and now - one.since > least]
        return sorted(found, key=lambda one: one.since)

    def _close(self, protocol: BoundedProtocol) -> None:
        if protocol.transport is not None:
            protocol.transport.abort()
        else:
            self._open[protocol].cancel()  # within TLS' handshake
        self.remove(protocol)
