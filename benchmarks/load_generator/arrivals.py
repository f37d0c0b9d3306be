"""When requests are to be sent: the schedules of an open loop."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_vqa.plugin.command.text_files import read_text
from qwen_vqa.plugin.errors import UserError


@dataclass(frozen=True)
class Arrivals:
    """How requests arrive. `kind` is closed, poisson, gamma, ramp or trace.

    closed: `concurrency` users, each of whom sends as soon as the answer before has ended.
    poisson: independent arrivals, `rate` a second.
    gamma: bursts; intervals drawn from a gamma distribution of shape `burstiness` and mean 1 / rate. 1 is Poisson,
      smaller is burstier (its coefficient of variation is 1 / sqrt(burstiness)).
    ramp: Poisson arrivals whose rate grows linearly from `rate` to `rate_end` over the cell.
    trace: the times in `times`.
    """

    kind: str
    concurrency: int = 0
    rate: float = 0.0
    rate_end: float = 0.0
    burstiness: float = 1.0
    times: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """What tables call the cell."""
        if self.kind == "closed":
            return f"{self.concurrency} users" if self.concurrency != 1 else "1 user"
        if self.kind == "trace":
            return "trace"
        if self.kind == "ramp":
            return f"ramp {self.rate:g}-{self.rate_end:g}/s"
        return f"{self.kind} {self.rate:g}/s"

    def schedule(self, count: int, seed: int) -> list[float] | None:
        """The send times of `count` conversations, in seconds from the cell's start; None in a closed loop."""
        random = np.random.default_rng([seed, 1])
        if self.kind == "closed":
            return None
        if self.kind == "trace":
            return list(self.times[:count])
        if self.kind == "ramp":
            return _ramp(self.rate, self.rate_end, random.exponential(size=count))
        shape = self.burstiness if self.kind == "gamma" else 1.0
        return np.cumsum(random.gamma(shape, 1 / (self.rate * shape), count)).tolist()


def _ramp(start: float, end: float, intervals: np.ndarray) -> list[float]:
    """Times at which the summed rate r0 t + (r1 - r0) t^2 / 2T reaches the sum of unit intervals.

    That is an inhomogeneous Poisson process; T = 2n / (r0 + r1) is when n arrivals are expected.
    """
    reached = np.cumsum(intervals)
    growth = (end - start) * (start + end) / (4 * len(intervals))  # (r1 - r0) / 2T
    if growth == 0:
        return (reached / start).tolist()
    # A ramp downwards ends when its rate is 0; what would come later comes then.
    discriminant = np.maximum(start**2 + 4 * growth * reached, 0)
    return ((np.sqrt(discriminant) - start) / (2 * growth)).tolist()


def read_trace(path: Path) -> tuple[tuple[float, ...], tuple[int | None, ...]]:
    """Send times and output lengths of a trace: a line per request, either seconds or JSON.

    A JSON line is {"time": seconds, "output_tokens": n}; the second may be missing. Times count from the first one.

    Raises:
        UserError: a line that is neither, times that go backwards, or an answer of no tokens.
    """
    times: list[float] = []
    lengths: list[int | None] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            row = {"time": row} if isinstance(row, int | float) else row
            times.append(float(row["time"]))
            lengths.append(int(row["output_tokens"]) if row.get("output_tokens") is not None else None)
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f'{path}, line {number}: expected seconds, or {{"time": seconds, "output_tokens": n}}.'
            ) from None
        if len(times) > 1 and times[-1] < times[-2]:
            raise UserError(f"{path}, line {number}: {times[-1]:g} s is before the line above it; sort the trace.")
        if (length := lengths[-1]) is not None and length < 1:
            raise UserError(f"{path}, line {number}: output_tokens {length}; an answer has 1 or more.")
        if not np.isfinite(times[-1]):
            raise UserError(f"{path}, line {number}: {times[-1]} is no time.")
    if not times:
        raise UserError(f"{path} is empty: a trace has a line per request.")
    return tuple(time - times[0] for time in times), tuple(lengths)


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path).splitlines() if line.strip()]
