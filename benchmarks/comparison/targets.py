"""The project's targets, each computed from what the suite measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwen_vqa.benchmarks.machine.flop_counts import WORK
from qwen_vqa.benchmarks.machine.machine_limits import decode_share, prefill_share
from qwen_vqa.benchmarks.machine.part_formats import SCHEMES, scheme_of

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class MeasuredShape:
    """All that a target may be computed from. `limits` by scheme, as `limits.limits` makes them; `rates` are
    operations a second by type. Both are empty where the machine was not measured."""

    shape: str
    output_tokens: int
    results: Results
    limits: dict[str, dict[str, float]]
    rates: dict[str, float]

    def cell(self, key: str, users: int) -> dict[str, Any] | None:
        """The summary of a candidate's cell with so many users."""
        cells = self.results.get(key, {}).get("cells", [])
        return next((c["summary"] for c in cells if c["users"] == users and not has_turns(c)), None)

    def rate(self, key: str, users: int) -> float | None:
        """Requests a second."""
        summary = self.cell(key, users)
        return summary["requests_per_second"] if summary else None

    def fastest(self, start: str, users: int, schemes: tuple[str, ...] = ("bfloat16", "float32")) -> str | None:
        """The candidate of a side (its key or key-f32) with the most requests a second; None before any is there."""
        sides = [key for key in (start, f"{start}-f32") if self.rate(key, users)]
        sides = [key for key in sides if self.results[key]["scheme"] in schemes]
        return max(sides, key=lambda key: self.rate(key, users) or 0.0, default=None)

    def decode_share(self, key: str) -> float | None:
        """Of one user, of what reading the weights allows; None where something is not measured."""
        limit, summary = self.limit(key), self.cell(key, 1)
        return decode_share(summary, limit) if limit and summary else None

    def prefill_share(self, key: str) -> float | None:
        """Of one user, of what the matmul rates allow; None where something is not measured."""
        summary = self.cell(key, 1)
        if not summary or not self.rates:
            return None
        result = self.results[key]
        scheme = SCHEMES[scheme_of(result)]
        return prefill_share(summary, WORK[self.shape], scheme, self.rates, image=not result["text_only"])

    def limit(self, key: str) -> dict[str, float] | None:
        """Of a candidate's scheme."""
        return self.limits.get(scheme_of(self.results[key])) if key in self.results else None


def has_turns(cell: dict[str, Any]) -> bool:
    """A cell of conversations, whose later turns find much of their prompts in caches."""
    return cell["summary"]["later_turns"] is not None


@dataclass(frozen=True)
class ProjectTarget:
    """`value` gives the figure and how it came about, or None where something is not measured; `least`: the bound is
    a lower one. `shape` and `output_tokens` None: of every run."""

    what: str
    bound: float
    value: Callable[[MeasuredShape], tuple[float, str] | None]
    least: bool = True
    shape: str | None = None
    output_tokens: int | None = None

    def row(self, measured: MeasuredShape) -> dict[str, Any] | None:
        """Beside its result, or None where it is not of this run."""
        if self.shape not in (None, measured.shape) or self.output_tokens not in (None, measured.output_tokens):
            return None
        found = self.value(measured)
        row: dict[str, Any] = {"what": self.what, "target": f"{'>=' if self.least else '<='} {self.bound:g}"}
        if found is None:
            return row | {"result": None, "reached": None, "from": "not measured"}
        value, source = found
        return row | {"result": float(f"{value:.3g}"), "reached": (value >= self.bound) is self.least, "from": source}


def against_a(side: str, users: int) -> Callable[[MeasuredShape], tuple[float, str] | None]:
    """Requests/s as a multiple of the faster of (a)'s float types."""

    def value(measured: MeasuredShape) -> tuple[float, str] | None:
        left = measured.fastest(side, users) if side == "ours" else side
        right = measured.fastest("a", users)
        if not left or not right or not (rate := measured.rate(left, users)):
            return None
        base = measured.rate(right, users) or float("nan")
        return rate / base, f"{left} {rate:.3g}/s, {right} {base:.3g}/s"

    return value


def ttft_against_a(measured: MeasuredShape) -> tuple[float, str] | None:
    """p95 TTFT at 8 users as a share of (a)'s, the faster float type of each side."""
    left, right = measured.fastest("ours", 8), measured.fastest("a", 8)
    ours, theirs = (measured.cell(key, 8) if key else None for key in (left, right))
    if not ours or not theirs or not ours["ttft"] or not theirs["ttft"]:
        return None
    points = ours["ttft"]["p95"], theirs["ttft"]["p95"]
    texts = (
        f"{key} {point:.0f} ms (n = {summary['completed']})"
        for key, point, summary in zip((left, right), points, (ours, theirs), strict=True)
    )
    return points[0] / points[1], ", ".join(texts)


def against_d(key: str, users: int) -> Callable[[MeasuredShape], tuple[float, str] | None]:
    """Requests/s as a multiple of stock vLLM's on its own LLaVA, in the same float type."""

    def value(measured: MeasuredShape) -> tuple[float, str] | None:
        theirs = measured.rate(key, users)
        scheme = measured.results.get(key, {}).get("scheme")
        same = [k for k in ("ours", "ours-f32") if measured.results.get(k, {}).get("scheme") == scheme]
        rate = measured.rate(same[0], users) if same else None
        return (rate / theirs, f"{same[0]} {rate:.3g}/s, {key} {theirs:.3g}/s") if rate and theirs else None

    return value


def second_question(measured: MeasuredShape) -> tuple[float, str] | None:
    """TTFT of a second question about an image as a share of the first's, as second_question.py measures it."""
    key = measured.fastest("ours", 1)
    found = measured.results[key].get("second_question") if key else None
    if not found:
        return None
    source = f"{key} {found['second_ms']:.0f} ms, {found['first_ms']:.0f} ms, {found['pictures']} pictures"
    return found["ratio"], source


def decode_of(key: str) -> Callable[[MeasuredShape], tuple[float, str] | None]:
    """See `MeasuredShape.decode_share`."""

    def value(measured: MeasuredShape) -> tuple[float, str] | None:
        share, limit, summary = measured.decode_share(key), measured.limit(key), measured.cell(key, 1)
        if share is None or not limit or not summary:
            return None
        rate, best = 1000 / summary["tpot"]["p50"], limit["decode_tokens_per_second"]
        return share, f"{key} {rate:.3g} tokens/s of {best:.3g}"

    return value


def prefill_of(key: str) -> Callable[[MeasuredShape], tuple[float, str] | None]:
    """See `MeasuredShape.prefill_share`."""

    def value(measured: MeasuredShape) -> tuple[float, str] | None:
        share, summary = measured.prefill_share(key), measured.cell(key, 1)
        if share is None or not summary:
            return None
        milliseconds = summary["ttft"]["p50"]
        return share, f"{key} {milliseconds:.0f} ms, at best {share * milliseconds:.0f}"

    return value


MULTIPLE = "requests/s at 32 users against (a)"
TARGETS = (
    ProjectTarget(f"{MULTIPLE}, 16 or 32 bits", 3.5, against_a("ours", 32), shape="0.5b", output_tokens=32),
    ProjectTarget(f"{MULTIPLE}, int8", 6, against_a("ours-int8", 32), shape="0.5b", output_tokens=32),
    ProjectTarget(f"{MULTIPLE}, 16 or 32 bits", 7, against_a("ours", 32), shape="0.5b", output_tokens=128),
    ProjectTarget(f"{MULTIPLE}, int8", 10, against_a("ours-int8", 32), shape="0.5b", output_tokens=128),
    ProjectTarget("p95 TTFT at 8 users against (a)", 0.25, ttft_against_a, False, shape="0.5b", output_tokens=32),
    *(ProjectTarget(f"requests/s against (d), {n} users", 1.0, against_d("d", n)) for n in (1, 8, 32)),
    *(
        ProjectTarget(f"requests/s against (d) on all cores, {n} users", 1.0, against_d("d-cores", n))
        for n in (1, 8, 32)
    ),
    ProjectTarget("decode of one user, share of the read bandwidth", 0.8, decode_of("ours"), shape="3b"),
    ProjectTarget("prefill, share of the matmul rate", 0.85, prefill_of("ours"), shape="3b"),
    ProjectTarget("second question about an image: TTFT against the first's", 0.3, second_question, False),
)


def target_rows(measured: MeasuredShape) -> list[dict[str, Any]]:
    """The targets of this run, reached or not."""
    return [row for target in TARGETS if (row := target.row(measured))]
