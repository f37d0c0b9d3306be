"""Two results beside each other."""

from collections import Counter
from typing import Any

from qwen_vqa.benchmarks.load_report.load_table import align

# Where in a summary, what it is called, and whether more is better.
FIGURES: tuple[tuple[str, str | None, str, bool], ...] = (
    ("requests_per_second", None, "requests/s", True),
    ("output_tokens_per_second", None, "tokens/s", True),
    ("goodput_per_second", None, "goodput/s", True),
    ("ttft", "p50", "TTFT p50 ms", False),
    ("ttft", "p95", "TTFT p95 ms", False),
    ("tpot", "p50", "TPOT p50 ms", False),
    ("itl", "p99", "ITL p99 ms", False),
    ("e2e", "p50", "e2e p50 ms", False),
    ("e2e", "p95", "e2e p95 ms", False),
    ("failed", None, "failed", False),
)
# Less than this apart is called equal: runs of the same command differ by as much.
EQUAL = 0.03


def compare(a: dict[str, Any], b: dict[str, Any]) -> str:
    """A table of the cells that both have, and first what makes them hard to compare."""
    cells_a, cells_b = _cells(a), _cells(b)
    lines = [f"A: {_about(a)}", f"B: {_about(b)}", *_differences(a, b)]
    rows: list[tuple[str, ...]] = [("cell", "figure", "A", "B", "B / A", "")]
    for name in cells_a:
        if name in cells_b:
            lines += _unequal(f"other arrivals in {name}", cells_a[name]["arrivals"], cells_b[name]["arrivals"])
            rows += _rows(name, cells_a[name]["summary"], cells_b[name]["summary"])
    only = cells_a.keys() ^ cells_b.keys()
    if only:
        lines.append(f"in one of them alone, not shown: {'; '.join(sorted(only))}")
    return "\n".join([*lines, "", *align(rows)])


def _cells(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By label and cache; of several alike, the later ones with their number."""
    found: dict[str, dict[str, Any]] = {}
    alike: Counter[str] = Counter()
    for cell in result["cells"]:
        name = f"{cell['label']}, {cell['cache']}"
        alike[name] += 1
        found[name if alike[name] == 1 else f"{name} ({alike[name]})"] = cell
    return found


def _rows(title: str, a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, point, label, more_is_better in FIGURES:
        left, right = _value(a, name, point), _value(b, name, point)
        if left is None or right is None:
            continue
        ratio = right / left if left else None
        verdict = ""
        if ratio is not None and abs(ratio - 1) > EQUAL:
            verdict = "better" if (ratio > 1) == more_is_better else "worse"
        elif ratio is None and right > 0:
            verdict = "better" if more_is_better else "worse"
        rows.append((title, label, f"{left:.4g}", f"{right:.4g}", f"{ratio:.2f}" if ratio else "-", verdict))
    return rows


def _value(summary: dict[str, Any], name: str, point: str | None) -> float | None:
    value = summary.get(name)
    return value[point] if point and value else (value if not point else None)


def _about(result: dict[str, Any]) -> str:
    about = result["environment"]
    return f"{about['date']}, commit {about['git']}, {about['machine']['processor']}: {about['command']}"


def _versions(result: dict[str, Any]) -> dict[str, str | None]:
    """Of the packages beside the client, and what the server said of itself."""
    return result["environment"]["versions"] | {"the server's vLLM": result["server"]["version"]}


def _unequal(what: str, a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    names = sorted(a.keys() | b.keys())
    return [f"careful: {what} ({n}: {a.get(n)} and {b.get(n)})" for n in names if a.get(n) != b.get(n)]


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    notes = []
    for name in ("processor", "cores"):
        left, right = (result["environment"]["machine"][name] for result in (a, b))
        if left != right:
            notes.append(f"careful: other machines ({name}: {left} and {right})")
    notes += _unequal("other workloads", a["workload"], b["workload"])
    notes += _unequal("other versions", *(_versions(result) for result in (a, b)))
    notes += _unequal("other goodput bounds, ms", *(result["goodput_bounds_ms"] or {} for result in (a, b)))
    for name, result in (("A", a), ("B", b)):
        if result["interrupted"]:
            notes.append(f"careful: {name} was interrupted")
        if result.get("error"):
            notes.append(f"careful: {name} did not come to its end ({result['error']})")
    return notes
