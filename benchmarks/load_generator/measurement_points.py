"""A run: cells one after another, each with warm-up, measurement, and what the server said meanwhile."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals
from qwen_vqa.benchmarks.load_generator.client_processes import Outcome, run_shares, shares
from qwen_vqa.benchmarks.load_generator.conversation_runner import Share, prepare, run
from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.server_metrics import ServerWatch
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_generator.summary import Bounds, failures, summarise
from qwen_vqa.benchmarks.load_generator.workload import (
    Shown,
    WorkloadConversation,
    WorkloadSpec,
    conversations,
    known_pictures,
)
from qwen_vqa.plugin.errors import UserError

# Above this share of a core, waiting for the client's own work begins to show in the latencies.
SATURATED = 0.7
WARM_UP_SEED = 1 << 40


@dataclass(frozen=True)
class Plan:
    """What a run measures. `processes` None: as many as the client turns out to need, up to the cores.

    `warm`: each cell is measured a second time with the same requests, which the server's caches then know.
    `lengths` are a trace's output lengths.
    """

    spec: WorkloadSpec
    cells: tuple[Arrivals, ...]
    requests: int
    seed: int
    warm: bool = False
    warm_up: int = 8
    processes: int | None = None
    bounds: Bounds | None = None
    lengths: tuple[int | None, ...] = ()


Progress = Callable[[str, int, int, list[Record]], None]


def run_cells(plan: Plan, target: Target, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield each cell's result as it ends; the last one is marked `interrupted` if Ctrl-C stopped it.

    Raises:
        UserError: a client process stopped; what had ended was yielded.
    """
    processes, shown = plan.processes or 1, Shown(plan.spec, plan.seed)
    for number, arrivals in enumerate(plan.cells):
        seed = plan.seed + number
        asked = _draw(plan, seed, shown)
        title = f"cell {number + 1} of {len(plan.cells)}, {arrivals.label}"
        for cache in ("cold", "warm") if plan.warm else ("cold",):
            cell = _Cell(plan, arrivals, target, seed, asked, cache, f"{title}, {cache}")
            result = cell.measure(processes, progress)
            while _needs_more(plan, result, processes):
                processes = min(2 * processes, _cores())
                # The requests were seen by the server already: new ones, and for "warm", both again.
                seed += 1000 * processes
                asked = _draw(plan, seed, shown)
                cell = replace(cell, seed=seed, asked=asked, title=f"{title}, {cache}, {processes} processes")
                try:
                    again = cell.measure(processes, progress)
                    if cache == "warm" and not again["interrupted"]:
                        again = cell.measure(processes, progress)
                except UserError:
                    yield result
                    raise
                # The finished cell is worth more than a part of its repetition.
                result = result | {"interrupted": True} if again["interrupted"] else again
            yield result
            if result["interrupted"]:
                return


def _draw(plan: Plan, seed: int, shown: Shown) -> list[WorkloadConversation]:
    return conversations(plan.spec, seed, plan.requests, plan.lengths, shown)


def _needs_more(plan: Plan, result: dict, processes: int) -> bool:
    if plan.processes is not None or result["interrupted"] or processes >= _cores():
        return False
    return result["client_cpu_share"] > SATURATED and processes < (result["arrivals"]["concurrency"] or _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Cell:
    plan: Plan
    arrivals: Arrivals
    target: Target
    seed: int
    asked: list[WorkloadConversation]
    cache: str
    title: str

    def measure(self, processes: int, progress: Progress) -> dict[str, Any]:
        times = self.arrivals.schedule(len(self.asked), self.seed)
        users = min(self.arrivals.concurrency, len(self.asked))
        dealt = shares(self.target, self.asked, times, users, processes)
        watch = ServerWatch(self.target.url, self.target.headers)
        try:
            warm_up = self._warm_up(progress)
        except KeyboardInterrupt:
            return self._result(Outcome([], 0.0, [], True), None, [])
        outcome = run_shares(
            dealt, lambda records: progress(self.title, len(records), self.plan.requests, records), watch.start
        )
        try:
            server = watch.finish()
        except KeyboardInterrupt:  # the cell itself was over
            outcome.interrupted, server = True, None
        return self._result(outcome, server, warm_up)

    def _warm_up(self, progress: Progress) -> list[Record]:
        """Requests of another seed, with drawn pictures even where the user's own are measured; not counted."""
        if self.plan.warm_up == 0:
            return []
        spec = replace(self.plan.spec, files=(), questions=(), repeated_images=0.0, multi_turn=0.0)
        asked = conversations(spec, WARM_UP_SEED + self.seed, self.plan.warm_up)
        users = min(self.arrivals.concurrency or self.plan.warm_up, self.plan.warm_up)
        share = Share(self.target, tuple(asked), None, users)
        records: list[Record] = []

        def ended(record: Record) -> None:
            records.append(record)
            progress(f"{self.title}, warm-up", len(records), self.plan.warm_up, records)

        asyncio.run(run(prepare(share), time.monotonic(), ended))
        return records

    def _result(self, outcome: Outcome, server: dict | None, warm_up: list[Record]) -> dict[str, Any]:
        busiest = max(outcome.cpu_seconds, default=0.0)
        arrivals = asdict(self.arrivals)
        del arrivals["times"]
        return {
            "label": self.arrivals.label,
            "arrivals": arrivals,
            "cache": self.cache,
            "seed": self.seed,
            "warm_up": failures(warm_up),
            "interrupted": outcome.interrupted,
            "client_processes": len(outcome.cpu_seconds),
            # CPU seconds of the busiest client process / seconds of the cell.
            "client_cpu_share": busiest / outcome.seconds if outcome.seconds else 0.0,
            "not_sent": max(0, self.plan.requests - len(outcome.records)),
            # What a cold cache of pictures knows of them at most, by the cell's own repeats and later turns.
            "pictures_known": known_pictures(self.asked, {record.index for record in outcome.records}),
            "server": server,
            "summary": summarise(outcome.records, outcome.seconds, self.plan.bounds),
            "records": [record.as_json() for record in outcome.records],
        }
