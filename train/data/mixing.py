"""Which rows of which data sets make up a run: weights, a total, and what had to be dropped on the way."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.screening import Verdict
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.ranks import cores, processes, rank, shared_work

SHOWN = 3  # names of dropped samples
CHUNK = 256
Screening = Callable[[Row], Verdict]


@dataclass
class Tally:
    """What became of one data set: rows read, looked at, kept, shortened, and dropped by reason with first names."""

    name: str
    read: int
    wanted: int
    checked: int = 0
    kept: int = 0
    shortened: int = 0
    used: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, verdict: Verdict) -> None:
        """Take down what was found of a row."""
        self.checked += 1
        if verdict.fault:
            self.dropped[verdict.fault] = self.dropped.get(verdict.fault, 0) + 1
            names = self.examples.setdefault(verdict.fault, [])
            if len(names) < SHOWN:
                names.append(verdict.detail.rstrip("."))
        else:
            self.kept += 1
            self.shortened += verdict.shortened

    @property
    def faults(self) -> str:
        """The reasons with their counts and first names, for a message."""
        return "; ".join(
            f"{count} {fault} ({', '.join(self.examples[fault])})" for fault, count in self.dropped.items()
        )


@dataclass(frozen=True)
class Mix:
    """The samples of a run in order: data set, row in it, and how many of its messages are kept; int64 [samples]."""

    source: np.ndarray
    row: np.ndarray
    messages: np.ndarray
    tallies: list[Tally]


def mix_data_sets(
    sources: Sequence[DataSource],
    data_sets: Sequence[Dataset],
    screen: Screening,
    max_samples: int,
    max_dropped: float,
    seed: int,
) -> Mix:
    """Draw the samples of a run; the same seed and data draw the same ones.

    There are `max_samples`, or as many as the data sets have together. With weights each data set fills its share of
    them, more than once over if it is small; without, each sample is seen once. Rows are looked at in a random order
    until a share is full, so that nothing is opened that is not needed.

    Raises:
        UserError: weights for some data sets only, or more than `max_dropped` of one had to be dropped.
    """
    quotas = share_out([len(data) for data in data_sets], sources, max_samples)
    chosen: list[np.ndarray] = []
    tallies = []
    for position, (source, data, quota) in enumerate(zip(sources, data_sets, quotas, strict=True)):
        generator = np.random.default_rng((seed, position))
        tally = Tally(source.name, read=len(data), wanted=quota)
        rows = _draw(data, generator.permutation(len(data)), screen, tally)
        _check_dropped(tally, max_dropped)
        size = quota if source.weight is not None else min(quota, len(rows))
        tally.used = size
        tallies.append(tally)
        filled = np.resize(rows, (size, 2)) if size else np.empty((0, 2), np.int64)
        chosen.append(np.column_stack([np.full(size, position, np.int64), filled]))
    samples = np.concatenate(chosen)
    samples = samples[np.random.default_rng((seed, len(sources))).permutation(len(samples))]
    return Mix(samples[:, 0], samples[:, 1], samples[:, 2], tallies)


def share_out(sizes: Sequence[int], sources: Sequence[DataSource], max_samples: int) -> list[int]:
    """How many samples of each data set: by weight, or else by size; together min(max_samples, sum of sizes)."""
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        missing = next(source.name for source in sources if source.weight is None)
        raise UserError(f"--data {missing}=...: it has no weight=, but others have; give one to each or to none.")
    limits = [min(size, source.samples or size) for size, source in zip(sizes, sources, strict=True)]
    weights = np.array([source.weight or limit for source, limit in zip(sources, limits, strict=True)], float)
    exact = min(max_samples, sum(limits)) * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    for position in np.argsort(counts - exact, kind="stable")[: round(exact.sum()) - counts.sum()]:
        counts[position] += 1
    return counts.tolist()


def _draw(data: Dataset, order: np.ndarray, screen: Screening, tally: Tally) -> np.ndarray:
    """Rows of `order` that pass, and how many of their messages: int64 [kept, 2], at most as many as wanted."""
    kept: list[tuple[int, int]] = []
    bar = tqdm(total=tally.wanted, desc=f"checking {tally.name}", leave=False, disable=True if rank() else None)
    with bar, ThreadPoolExecutor(cores()) as pool:

        def verdicts(indices: list[int]) -> list[Verdict]:
            return list(pool.map(screen, [Row.from_arrow(data[index]) for index in indices]))

        while len(kept) < tally.wanted and tally.checked < len(order):
            size = min(CHUNK * processes(), tally.wanted - len(kept))
            indices = order[tally.checked : tally.checked + size].tolist()
            for index, verdict in zip(indices, shared_work(indices, verdicts), strict=True):
                tally.count(verdict)
                if not verdict.fault:
                    kept.append((index, verdict.messages))
                    bar.update()
            if not kept and tally.checked >= CHUNK:
                break
    return np.array(kept, np.int64).reshape(-1, 2)


def _check_dropped(tally: Tally, max_dropped: float) -> None:
    if tally.wanted and not tally.kept:
        raise UserError(f"data set {tally.name}: none of {tally.checked} samples can be used: {tally.faults}.")
    dropped = tally.checked - tally.kept
    if dropped > max_dropped * tally.checked:
        raise UserError(
            f"data set {tally.name}: {dropped} of {tally.checked} samples cannot be used: {tally.faults}. Mend them, "
            f"or train without them: --max-dropped {min(1.0, dropped / tally.checked + 0.01):.2f}."
        )
