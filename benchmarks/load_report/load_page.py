"""The result as one HTML file that needs no network."""

from html import escape
from typing import Any

from qwen_vqa.benchmarks.load_report.load_table import remarks, tail_notes, too_few
from qwen_vqa.benchmarks.load_report.plots import Series, plot
from qwen_vqa.benchmarks.load_report.workload_text import workload_facts

# Points of a distribution's curve; more is not seen.
CURVE_POINTS = 200
DOTS = 2000
STYLE = """
:root { --ink: #1d2430; --dim: #667085; --line: #e4e7ec; --paper: #ffffff; --card: #f8f9fb;
  --c0: #2563eb; --c1: #ea580c; --c2: #0f9d76; --c3: #9333ea; --c4: #db2777; --c5: #7a6a1d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --line: #2e3644; --paper: #12161d;
  --card: #1a202a; --c0: #6ea8fe; --c1: #fb923c; --c2: #4fd1a5; --c3: #c084fc; --c4: #f472b6; --c5: #d6c25c; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 36px 0 12px }
.dim, .axis { color: var(--dim) } .tiles { display: grid; gap: 12px; margin: 20px 0;
  grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)) }
.tile { background: var(--card); border-radius: 10px; padding: 12px 16px } .tile b { display: block; font-size: 24px }
.tile small { color: var(--dim) } .plots { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)) }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 14px 16px }
figcaption { font-weight: 600 } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif } .grid { stroke: var(--line) }
path { fill: none; stroke-width: 2 } .legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 13px;
  color: var(--dim); min-height: 22px } .legend i { display: inline-block; width: 10px; height: 10px;
  border-radius: 50%; margin-right: 5px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--dim); font-weight: 600 } th:first-child, td:first-child { text-align: left } .bad { color: var(--c4) }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere } dt { color: var(--dim) } dd { margin: 0 0 8px }
""" + "".join(
    f"path.c{n} {{ stroke: var(--c{n}) }} circle.c{n} {{ fill: var(--c{n}) }} i.c{n} {{ background: var(--c{n}) }}\n"
    for n in range(6)
)


def page(result: dict[str, Any]) -> str:
    """Tiles, plots over the cells, distributions, times of single requests, the table, and how it was measured."""
    cells = [cell for cell in result["cells"] if cell["summary"]["completed"]]
    about = result["environment"]
    title = f"Load on {result['workload']['models'][0][0]}"
    stopped = "Interrupted" if result["interrupted"] else result["error"]
    interrupted = f'<p class="bad">{escape(stopped)}: this is what was measured until then.</p>' if stopped else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body><h1>{escape(title)}</h1>"
        f'<div class="dim">{escape(about["date"])} · {escape(about["machine"]["processor"])}, '
        f"{about['machine']['cores']} cores · {escape(result['server']['url'])}</div>{interrupted}"
        f'<div class="tiles">{_tiles(cells)}</div><h2>By load</h2><div class="plots">{_by_cell(cells)}</div>'
        f'<h2>Single requests</h2><div class="plots">{_single(cells)}</div>'
        f'<h2>Figures</h2><div class="scroll">{_table(result["cells"])}</div>{_remarks(result)}'
        f"<h2>How it was measured</h2>{_how(result)}</body></html>\n"
    )


def _tiles(cells: list[dict]) -> str:
    if not cells:
        return "No request was answered."
    best = max(cells, key=lambda cell: cell["summary"]["requests_per_second"])
    quick = min(cells, key=lambda cell: cell["summary"]["ttft"]["p50"])
    failed = sum(cell["summary"]["failed"] for cell in cells)
    few = "~" if too_few(best["summary"]["completed"], "p95") else ""
    facts = [
        (f"{_number(best['summary']['requests_per_second'])}/s", "requests", _name(best)),
        (f"{_number(best['summary']['output_tokens_per_second'])}/s", "output tokens", _name(best)),
        (f"{_number(quick['summary']['ttft']['p50'])} ms", "TTFT p50, lowest", _name(quick)),
        (f"{few}{_number(best['summary']['e2e']['p95'])} ms", "end to end p95", _name(best)),
        (str(failed), "failed requests", f"of {sum(cell['summary']['requests'] for cell in cells)}"),
    ]
    return "".join(
        f'<div class="tile"><small>{escape(what)}</small><b>{value}</b><small>{escape(where)}</small></div>'
        for value, what, where in facts
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _name(cell: dict) -> str:
    return f"{cell['label']}, {cell['cache']}"


def _by_cell(cells: list[dict]) -> str:
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    caches = list(dict.fromkeys(cell["cache"] for cell in cells))

    def over(name: str, point: str | None = None, cache: str = "cold") -> list[tuple[float, float]]:
        found = []
        for cell in cells:
            value = cell["summary"][name]
            value = value[point] if point and value else value
            if cell["cache"] == cache and value is not None:
                found.append((float(labels.index(cell["label"])), value))
        return found

    plots = [
        plot(title, "load", unit, [Series(f"{cache} caches", over(name, cache=cache)) for cache in caches], labels)
        for title, unit, name in (
            ("Requests", "requests/s", "requests_per_second"),
            ("Output tokens", "tokens/s", "output_tokens_per_second"),
        )
    ]
    for title, name in (
        ("Time to first token", "ttft"),
        ("Time per output token", "tpot"),
        ("Inter-token latency", "itl"),
        ("End to end", "e2e"),
    ):
        series = []
        for cache in caches:
            suffix = f", {cache}" if len(caches) > 1 else ""
            series += [Series(f"{point}{suffix}", over(name, point, cache)) for point in ("p50", "p95", "p99")]
        plots.append(plot(title, "load", "ms", series, labels))
    return "".join(plots)


def _single(cells: list[dict]) -> str:
    ttft, dots = [], []
    for cell in cells:
        good = [row for row in cell["records"] if not row["error"]]
        values = sorted(1000 * (row["first_token"] - row["intended"]) for row in good)
        ttft.append(Series(_name(cell), _curve(values)))
        every = -(-len(good) // DOTS)
        dots.append(
            Series(_name(cell), [(row["intended"], 1000 * (row["end"] - row["intended"])) for row in good[::every]])
        )
    return plot("Share of requests with a first token within", "ms", "%", ttft, style="step") + plot(
        "End to end over the time of sending", "seconds since the cell's start", "ms", dots, style="dots"
    )


def _curve(values: list[float]) -> list[tuple[float, float]]:
    count = len(values)
    positions = sorted({round(step * (count - 1) / CURVE_POINTS) for step in range(CURVE_POINTS + 1)})
    return [(values[at], 100 * (at + 1) / count) for at in positions]


def _table(cells: list[dict]) -> str:
    points = [(name, point) for name in ("ttft", "tpot", "itl", "e2e") for point in ("p50", "p90", "p95", "p99")]
    head = "".join(f"<th>{name.upper() if name != 'e2e' else 'e2e'} {point}</th>" for name, point in points)
    rows = ""
    for cell in cells:
        summary = cell["summary"]
        values = "".join(_percentile(summary, name, point) for name, point in points)
        bad = ' class="bad"' if summary["failed"] else ""
        rows += (
            f"<tr><td>{escape(_name(cell))}</td><td>{summary['completed']}</td><td{bad}>{summary['failed']}</td>"
            f"<td>{summary['requests_per_second']:.2f}</td><td>{summary['output_tokens_per_second']:,.1f}</td>"
            f"{values}<td>{cell['client_cpu_share']:.0%}</td></tr>"
        )
    return (
        "<table><tr><th>cell</th><th>ok</th><th>failed</th><th>requests/s</th><th>tokens/s</th>"
        f"{head}<th>client CPU</th></tr>{rows}</table><p class='dim'>Latencies in ms, from the intended send time.</p>"
    )


def _percentile(summary: dict[str, Any], name: str, point: str) -> str:
    if not summary[name]:
        return "<td>-</td>"
    mark = ' class="dim">~' if too_few(summary["completed"], point) else ">"
    return f"<td{mark}{_number(summary[name][point])}</td>"


def _remarks(result: dict[str, Any]) -> str:
    found = [f"~ {note}" for note in tail_notes(result["cells"])]
    found += [f"{_name(cell)}: {remark}" for cell in result["cells"] for remark in remarks(cell)] + result["left_out"]
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in found)}</ul>"


def _how(result: dict[str, Any]) -> str:
    about, ceiling = result["environment"], result["client_ceiling"]
    facts = {
        "command": f"<code>{escape(about['command'])}</code>",
        "versions": escape(", ".join(f"{name} {found}" for name, found in about["versions"].items())),
        "commit": escape(str(about["git"])),
        "server": escape(f"vLLM {result['server']['version']}" if result["server"]["version"] else "version unknown"),
        **{name: escape(value) for name, value in workload_facts(result["workload"]).items()},
        "seeds": escape(", ".join(f"{_name(cell)}: {cell['seed']}" for cell in result["cells"])),
        "machine": escape(
            f"{about['machine']['processor']}, {about['machine']['cores']} cores, "
            f"{about['machine']['memory_gib']} GiB of memory, {about['machine']['system']}, load average "
            f"{about['machine']['load_average']} before"
        ),
    }
    if ceiling:
        facts["the client itself"] = (
            f"{ceiling['cpu_ms_per_request']:.2f} ms of CPU per request, so {ceiling['requests_per_second']:.0f} "
            "requests/s at most in one process"
        )
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()) + "</dl>"
