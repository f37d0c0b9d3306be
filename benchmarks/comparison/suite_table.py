"""The suite's table, and what has to be said beneath it."""

from typing import Any

from qwen_vqa.benchmarks.comparison.targets import MeasuredShape, has_turns

# Of fewer values, the 95th percentile is hardly more than the largest.
LEAST_OF_P95 = 20
COLUMNS = ("server", "cell", "req/s", "x (a)", "of limit", "decode", "prefill", "TTFT p50", "p95", "TPOT p50")

Results = dict[str, dict[str, Any]]


def table(results: Results, measured: MeasuredShape) -> list[tuple[str, ...]]:
    """A row per candidate and cell. Throughput: as a multiple of the fastest (a)'s and of the limit; decode and
    prefill: of one user, as a share of the limit. Times in ms."""
    rows: list[tuple[str, ...]] = [(*COLUMNS, "prompt", "failed")]
    for key, result in results.items():
        for cell in result["cells"]:
            rows.append((result["name"], cell["label"], *_rates(key, result, cell, measured), *_times(cell["summary"])))
    return rows


def _rates(key: str, result: dict[str, Any], cell: dict[str, Any], measured: MeasuredShape) -> tuple[str, ...]:
    """Requests/s and what they are of (a)'s and of the limit's, which are of requests with a new image each; and the
    shares of decode and prefill."""
    rate = cell["summary"]["requests_per_second"]
    plain = not result["text_only"] and not has_turns(cell)
    first = measured.fastest("a", cell["users"])
    base = measured.rate(first, cell["users"]) if first and plain else None
    limit = measured.limit(key) if plain else None
    alone = cell["users"] == 1 and not has_turns(cell)
    return (
        f"{rate:.3f}",
        f"{rate / base:.2f}" if base else "-",
        _percent(rate / limit["requests_per_second"] if limit else None),
        _percent(measured.decode_share(key) if alone else None),
        _percent(measured.prefill_share(key) if alone else None),
    )


def _times(summary: dict[str, Any]) -> tuple[str, ...]:
    ttft, tpot, completed = summary["ttft"], summary["tpot"], summary["completed"]
    few = f" (n={completed})" if completed < LEAST_OF_P95 else ""
    return (
        f"{ttft['p50']:.0f}" if ttft else "-",
        f"{ttft['p95']:.0f}{few}" if ttft else "-",
        f"{tpot['p50']:.1f}" if tpot else "-",
        f"{summary['prompt_tokens'] / completed:.0f}" if completed else "-",
        str(summary["failed"]),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def caption(results: Results) -> list[str]:
    """What a reader has to know to compare the rows."""
    lines = ["Decode and prefill: of one user, as shares of what the read bandwidth and the matmul rates allow."]
    counts = [cell["summary"]["completed"] for result in results.values() for cell in result["cells"]]
    if min(counts, default=LEAST_OF_P95) < LEAST_OF_P95:
        lines.append(f"p95 of fewer than {LEAST_OF_P95} requests is little more than the slowest one: n is beside it.")
    # Files from before there was this word were written at the end alone.
    if unfinished := [key for key, result in results.items() if not result.get("finished", True)]:
        lines.append(f"Not all cells were measured of {', '.join(unfinished)}.")
    if known := _known_pictures(results):
        lines.append(f"Not cold, since pictures were in the server's cache: {', '.join(known)}.")
    commits: dict[str | None, list[str]] = {}
    for key, result in results.items():
        commits.setdefault(result["environment"]["git"], []).append(f"{key} on {result['environment']['date'][:10]}")
    if len(commits) > 1:
        told = (f"{commit or 'unknown'}: {', '.join(keys)}" for commit, keys in commits.items())
        lines.append(f"Measured at different commits: {'; '.join(told)}.")
    return lines


def _known_pictures(results: Results) -> list[str]:
    """Cells of single questions whose pictures a server had seen before, which its speed then owes something to."""
    cells = ((key, cell) for key, result in results.items() for cell in result["cells"] if not has_turns(cell))
    shares = ((key, cell["label"], (cell.get("server") or {}).get("mm_cache_hit_rate")) for key, cell in cells)
    return [f"{key}, {label} ({share:.0%})" for key, label, share in shares if share]
