"""The report as a picture (SVG): bars of the quantised checkpoint against its original, which is 100%.

Beside each bar stands what it is a share of: both sides' numbers, how many questions or rounds, and an interval.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from qwen_vqa.benchmarks.quantisation.served_accuracy import served_label

# So narrow that a phone, which shows it at two thirds, leaves the letters readable.
WIDTH, MARGIN, ROW, BAR = 560, 14, 62, 14
LETTERS = 88  # of a line
GREEN, RED, BLUE = "#2e7d32", "#c62828", "#1565c0"
LEGEND = (
    "Bars: share of the original (dashed line: 100%). Black lines: the 95% interval of accuracy; of speed, the lowest "
    "and the highest round. Green: better. Red: worse. Blue: the black line crosses 100%."
)


@dataclass(frozen=True)
class Bar:
    """A measure: its share of the original, None where the original is 0, and the share's interval."""

    label: str
    share: float | None
    colour: str
    text: str
    interval: tuple[float, float] | None = None


def draw_report(report: dict[str, Any]) -> str:
    """A bar a measure, with its share of the original and both sides' own numbers in words below it."""
    bars = list(_bars(report))
    longest = max([1.0, *(end for bar in bars for end in (bar.share or 0, *(bar.interval or ())))])
    scale = (WIDTH - 2 * MARGIN) / longest
    title = textwrap.wrap(f"{report['scheme']}: {report['quantised']} against {report['original']} (100%)", 62)
    legend = textwrap.wrap(LEGEND, LETTERS)
    top = 26 + 21 * len(title)
    foot = top + ROW * len(bars)
    height = foot + 17 * len(legend) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'style="max-width:100%;height:auto" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    parts += [_line(28 + 21 * number, line, ' font-size="16"') for number, line in enumerate(title)]
    for number, bar in enumerate(bars):
        parts += _drawn(bar, top + ROW * number, scale)
    parts += [_line(foot + 14 + 17 * number, line, ' fill="#555"') for number, line in enumerate(legend)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{MARGIN}" y="{y}"{attributes}>{escape(text)}</text>'


def _drawn(bar: Bar, y: int, scale: float) -> list[str]:
    parts = [_line(y + 10, bar.label, ' font-weight="bold"')]
    middle = y + 16 + BAR / 2
    if bar.share is not None:
        parts.append(
            f'<rect x="{MARGIN}" y="{y + 16}" width="{bar.share * scale:.1f}" height="{BAR}" fill="{bar.colour}"/>'
        )
    if bar.interval is not None:
        low, high = (MARGIN + end * scale for end in bar.interval)
        parts.append(f'<path d="M{low:.1f},{middle}H{high:.1f}" stroke="black" stroke-width="2"/>')
        parts += [f'<path d="M{at:.1f},{middle - 4}v8" stroke="black" stroke-width="2"/>' for at in (low, high)]
    whole = f'<path d="M{MARGIN + scale:.1f},{y + 12}v{BAR + 8}" stroke="black" stroke-dasharray="3"/>'
    return [*parts, whole, _line(y + 46, bar.text)]


def _bars(report: dict[str, Any]) -> Iterator[Bar]:
    disk = report["disk"]
    yield _size("weights on disk", disk["original"], disk["quantised"])
    if "speed" in report:
        before, after = report["speed"]["original"], report["speed"]["quantised"]
        yield _size("memory when ready", before["ready_bytes"], after["ready_bytes"])
        yield _size("memory after the run", before["resident_bytes"], after["resident_bytes"])
        for phase in ("decode", "prefill"):
            for users in before[f"{phase}_tokens_per_second"]:
                yield _speed(phase, users, before, after)
    if "served" in report:
        yield from _accuracies(served_label(report["served"]), report["served"]["accuracy"])
    yield from _accuracies("exact match", report.get("accuracy", {}))


def _size(label: str, before: int, after: int) -> Bar:
    share = after / before
    text = f"{_of_the_original(share)}: {after / 2**20:,.1f} against {before / 2**20:,.1f} MiB"
    return Bar(label, share, GREEN if share < 1 else RED, text)


def _speed(phase: str, users: str, before: dict[str, Any], after: dict[str, Any]) -> Bar:
    key = f"{phase}_tokens_per_second"
    first, second = ({str(n): one for n, one in side["rounds"][phase].items()}[users] for side in (before, after))
    shares = [new / old for old, new in zip(first, second, strict=True)]
    share = after[key][users] / before[key][users]
    low, high = min(shares), max(shares)
    rounds = f"{len(shares)} rounds, {100 * low:.0f} to {100 * high:.0f}%" if len(shares) > 1 else "1 round"
    text = f"{_of_the_original(share)}: {after[key][users]:.1f} against {before[key][users]:.1f} tokens/s ({rounds})"
    label = f"{phase}, {users} user{'s' if users != '1' else ''}"
    return Bar(label, share, GREEN if low >= 1 else RED if high < 1 else BLUE, text, (low, high))


def _accuracies(label: str, rows: dict[str, Any]) -> Iterator[Bar]:
    for name, row in rows.items():
        before, after, (low, high) = row["original"], row["quantised"], row["change_ci"]
        text = f"{after:.1f}% against {before:.1f}%, {row['change']:+.1f} points ({low:+.1f} to {high:+.1f})"
        title = f"{label}, {name} (n {row['n']})"
        if not before:
            yield Bar(title, None, BLUE, text)
            continue
        colour = BLUE if low <= 0 <= high else GREEN if low > 0 else RED
        interval = max(0.0, (before + low) / before), (before + high) / before
        yield Bar(title, after / before, colour, f"{_of_the_original(after / before)}: {text}", interval)


def _of_the_original(share: float) -> str:
    return f"{100 * share:.0f}% of the original"
