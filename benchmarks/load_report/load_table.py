"""The result as text: a row per cell."""

from typing import Any

from qwen_vqa.benchmarks.load_generator.image_repeats import warm_remark

COLUMNS = ("cell", "cache", "ok", "failed", "req/s", "tok/s", "client CPU")
LATENCIES = {"TTFT": "ttft", "TPOT": "tpot", "ITL": "itl", "e2e": "e2e"}
POINTS = ("mean", "p50", "p90", "p95", "p99", "max")
# A percentile says something where so many requests were slower than it.
FEWEST_BEYOND = 5
TAILS = {"p95": 0.05, "p99": 0.01}
# A client that sends later than this has a part in the latencies that one sees.
LATE_MS = 10.0


def cell_table(result: dict[str, Any]) -> str:
    """A row per cell, a row per latency and cell, then what the rows have no room for, then what was left out."""
    rows = [COLUMNS, *(_row(cell) for cell in result["cells"])]
    latencies = [_latency(name, cell) for name in LATENCIES for cell in result["cells"]]
    lines = [*align(rows), "", *align([("ms", *POINTS), *latencies]), ""]
    for cell in result["cells"]:
        lines += [f"{cell['label']}, {cell['cache']}: {remark}" for remark in remarks(cell)]
    lines += [f"note: {note}" for note in [*tail_notes(result["cells"]), *result["left_out"]]]
    return "\n".join([*lines, "Latencies count from the intended send time."])


def too_few(requests: int, point: str) -> bool:
    """Whether so few requests were slower than this percentile that a single one moves it."""
    return requests * TAILS.get(point, 1.0) < FEWEST_BEYOND


def tail_notes(cells: list[dict[str, Any]]) -> list[str]:
    """Which percentiles rest on a handful of requests, and how many requests would do."""
    notes = []
    for point, share in TAILS.items():
        few = sorted(count for cell in cells if too_few(count := cell["summary"]["completed"], point) and count)
        if few:
            numbers = f"{few[0]}" if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
            slowest = max(1, round(share * few[-1]))
            notes.append(
                f"{point} of {numbers} requests rests on the slowest {slowest}, and changes from run to run: "
                f"--requests {FEWEST_BEYOND / share:.0f}"
            )
    return notes


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
    for part, failures in (("", summary), ("warm-up: ", cell["warm_up"])):
        for kind, count in failures["errors"].items():
            found.append(f"{part}{count} failed, {kind}: {failures['error_examples'][kind][:120]}")
    if summary["other_length"]:
        found.append(f"{summary['other_length']} answers had another length than asked for")
    if cell["not_sent"]:
        found.append(f"{cell['not_sent']} requests did not end or were not sent")
    if (users := cell["arrivals"]["concurrency"]) and summary["requests"] + cell["not_sent"] < 2 * users:
        found.append(
            f"one wave: with fewer than {2 * users} requests, {users} users all begin at once and few ask again; "
            "a server that keeps getting requests has other figures"
        )
    if (delay := summary["send_delay"]) and delay["p95"] > LATE_MS:
        found.append(
            f"the client sent late, by {delay['p95']:.0f} ms (p95) and {delay['max']:.0f} ms at most: latencies hold it"
        )
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
        f"{cell['client_cpu_share']:.0%} x {cell['client_processes']}",
    )


def _latency(name: str, cell: dict[str, Any]) -> tuple[str, ...]:
    values = cell["summary"][LATENCIES[name]]
    points = (f"{values[point]:.4g}" if values else "-" for point in POINTS)
    return (f"{name}  {cell['label']}, {cell['cache']}", *points)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
