"""The result as text: a row per cell."""

from typing import Any

from qwen_vqa.benchmarks.repeats import warm_remark

COLUMNS = ("cell", "cache", "ok", "failed", "req/s", "tok/s", "TTFT p50", "p95", "p99", "TPOT p50", "p95")
MORE = ("ITL p50", "p99", "e2e p50", "p95", "p99", "client CPU")


def cell_table(result: dict[str, Any]) -> str:
    """Figures in ms, then the server's own, goodput and errors, then what was left out."""
    rows = [(*COLUMNS, *MORE), *(_row(cell) for cell in result["cells"])]
    lines = [*align(rows), ""]
    for cell in result["cells"]:
        lines += [f"{cell['label']}, {cell['cache']}: {remark}" for remark in remarks(cell)]
    lines += [f"note: {note}" for note in result["left_out"]]
    return "\n".join([*lines, "Times in ms, from the intended send time; see the JSON for every percentile."])


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest entry, numbers to the right, the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def remarks(cell: dict[str, Any]) -> list[str]:
    """What a cell's row has no room for: goodput, caches, queue, turns, errors with an example."""
    summary, server = cell["summary"], cell["server"]
    found = [warm] if (warm := warm_remark(cell)) else []
    if "goodput_per_second" in summary:
        found.append(f"goodput {summary['goodput_per_second']:.2f}/s ({summary['good_share']:.0%} of requests)")
    if server:
        found.append(
            f"server: prefix cache {_percent(server['prefix_cache_hit_rate'])}, "
            f"image cache {_percent(server['mm_cache_hit_rate'])}, queued {_seconds(server['queue_seconds'])} on "
            f"average, waiting {_plain(server['waiting_max'])} at most, KV cache {_percent(server['kv_cache_max'])}"
        )
        if server["fair_queue_seconds"] is not None:
            found.append(
                f"queue before the engine: {_seconds(server['fair_queue_seconds'])} on average, waiting "
                f"{_plain(server['fair_queue_waiting_max'])} at most"
            )
    if (turns := summary["later_turns"]) and turns["first_ttft"]:
        ratio = turns["later_ttft"]["p50"] / turns["first_ttft"]["p50"]
        found.append(f"later turns: TTFT p50 {turns['later_ttft']['p50']:.0f} ms, {ratio:.0%} of first turns'")
    for kind, count in summary["errors"].items():
        found.append(f"{count} failed, {kind}: {summary['error_examples'][kind][:120]}")
    if summary["other_length"]:
        found.append(f"{summary['other_length']} answers had another length than asked for")
    if cell["not_sent"]:
        found.append(f"{cell['not_sent']} requests did not end or were not sent")
    if cell["client_cpu_share"] > 0.7:
        found.append(f"the client was busy ({cell['client_cpu_share']:.0%} of a core): latencies hold its own waiting")
    return found


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
    summary = cell["summary"]
    return (
        cell["label"],
        cell["cache"],
        str(summary["completed"]),
        str(summary["failed"]),
        f"{summary['requests_per_second']:.2f}",
        f"{summary['output_tokens_per_second']:.1f}",
        *_points(summary["ttft"], "p50", "p95", "p99"),
        *_points(summary["tpot"], "p50", "p95"),
        *_points(summary["itl"], "p50", "p99"),
        *_points(summary["e2e"], "p50", "p95", "p99"),
        f"{cell['client_cpu_share']:.0%} x {cell['client_processes']}",
    )


def _points(values: dict[str, float] | None, *names: str) -> list[str]:
    return [f"{values[name]:.4g}" if values else "-" for name in names]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
