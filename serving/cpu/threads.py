"""How many threads compute on a CPU, and whether they are bound to cores: chosen from the machine, unless told.

vLLM's own choice ("auto") binds threads to all physical cores but one, which is left to its scheduler. On a machine of
few cores that one is a large share, and the scheduler needs little of it. In a container it counts the machine's cores,
not the share of them that the container may use (docker run --cpus).

Threads on every core share them with the API's process. OpenMP's threads wait for each other by spinning, and one that
spins where another has to work stops all of them for a time slice: so here they wait asleep (OMP_WAIT_POLICY).
"""

import contextlib
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

BIND = "VLLM_CPU_OMP_THREADS_BIND"
THREADS = "OMP_NUM_THREADS"
WAIT = "OMP_WAIT_POLICY"
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
# Above, the core that "auto" leaves free is less than a tenth, and threads that stay in place may be worth more.
# Measured with two cores only.
MOST_UNBOUND_CORES = 8
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What the server's processes may use: physical cores, NUMA nodes, and the container's share in cores, if any."""

    cores: int
    nodes: int
    share: float | None = None

    @classmethod
    def here(cls) -> "Machine":
        """Of this process."""
        from qwen_vqa.serving.vllm_server_api import get_allowed_cpu_list

        cpus = get_allowed_cpu_list()
        cores = {(cpu.numa_node, cpu.physical_core) for cpu in cpus}
        return cls(max(1, len(cores)), max(1, len({cpu.numa_node for cpu in cpus})), cpu_share())


@dataclass(frozen=True)
class ThreadChoice:
    """Environment of the engine's process, and why; where vLLM's choice or the user's stands, only how threads wait.

    A variable that is None is unset. `unbound` is the number of threads where they are not bound to cores.
    """

    variables: Mapping[str, str | None]
    reason: str
    unbound: int | None = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """For what starts meanwhile."""
        before = {name: os.environ.get(name) for name in self.variables}
        _set(self.variables, os.environ)
        try:
            yield
        finally:
            _set(before, os.environ)


def _set(variables: Mapping[str, str | None], environment: MutableMapping[str, str]) -> None:
    for name, value in variables.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value


def _vllms(environment: Mapping[str, str], reason: str) -> ThreadChoice:
    return ThreadChoice({WAIT: environment.get(WAIT)}, reason)


def wait_asleep(environment: MutableMapping[str, str]) -> None:
    """OpenMP reads this when PyTorch is imported, and an engine that is a copy of this process has it from here."""
    if not environment.get(WAIT):
        environment[WAIT] = "passive"


def wait_as_told(environment: MutableMapping[str, str], users: Mapping[str, str]) -> None:
    """Undo `wait_asleep` for the processes that are started from now on: they compute on a GPU."""
    _set({WAIT: users.get(WAIT)}, environment)


def choose_threads(args: Namespace, machine: Machine, environment: Mapping[str, str]) -> ThreadChoice:
    """The threads for an engine on a CPU.

    Args:
        args: the server's, of which the numbers of parts are read.
        environment: the user's: what is set there stands.
    """
    if chosen := [f"{name}={environment[name]}" for name in (BIND, RESERVED) if environment.get(name)]:
        return _vllms(environment, f"as set: {', '.join(chosen)}")
    parts = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    if parts > 1:
        return _vllms(environment, f"bound by vLLM, the engine has {parts} parts")
    unbound = {BIND: "nobind", WAIT: environment.get(WAIT) or "passive"}
    if threads := environment.get(THREADS):
        return ThreadChoice(unbound, f"{threads}, as set by {THREADS}; not bound to cores", _first_level(threads))
    usable = machine.cores if machine.share is None else min(machine.cores, max(1, math.floor(machine.share)))
    if usable < machine.cores:
        why = f"the container may use {machine.share:g} of {machine.cores} cores"
    elif machine.nodes == 1 and machine.cores <= MOST_UNBOUND_CORES:
        why = "one for each core, where vLLM would leave one core idle"
    else:
        return _vllms(environment, f"bound by vLLM to {machine.cores} cores but one, {machine.nodes} NUMA node(s)")
    reason = f"{usable} ({why}; {BIND} and {THREADS} override)"
    return ThreadChoice({**unbound, THREADS: str(usable)}, reason, usable)


def _first_level(threads: str) -> int | None:
    """Of OMP_NUM_THREADS, a list with one number for each level of nesting; None where OpenMP will not read it."""
    first = threads.partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def cpu_share(cgroup: Path = CGROUP) -> float | None:
    """The cores' worth of time that this container may use (cgroup v2 or v1); None without a bound."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    return None
