"""The report as a picture (SVG): bars of the quantised checkpoint against its original, which is 100%."""

from collections.abc import Iterator
from html import escape
from typing import Any

from qwen_vqa.benchmarks.quantisation.served_accuracy import served_label

WIDTH, ROW, TOP = 420, 26, 56
LETTER = 7.5  # of a label, in pixels, at most on average
GREEN, RED, BLUE = "#2e7d32", "#c62828", "#1565c0"
Bar = tuple[str, float, str, str]  # its label, its share of the original, its colour and its text


def draw_report(report: dict[str, Any]) -> str:
    """A bar a measure: green is better than the original, red worse, blue within its confidence interval."""
    bars = list(_bars(report))
    largest = max([1.0, *(share for _, share, _, _ in bars)])
    scale = WIDTH / (largest * 1.1)
    left = 20 + LETTER * max(len(label) for label, _, _, _ in bars)
    height = TOP + ROW * len(bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + WIDTH + 170:.0f}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="24" font-size="16">{escape(report["scheme"])}: {escape(report["quantised"])} against '
        f"{escape(report['original'])} (100%)</text>",
    ]
    for number, (label, share, colour, text) in enumerate(bars):
        y = TOP + number * ROW
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{share * scale:.1f}" height="18" fill="{colour}"/>')
        parts.append(f'<text x="{left + share * scale + 6:.1f}" y="{y + 13}">{escape(text)}</text>')
    line = left + scale
    parts.append(
        f'<line x1="{line:.1f}" y1="{TOP - 10}" x2="{line:.1f}" y2="{height - 22}" stroke="black" '
        'stroke-dasharray="4"/>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bars(report: dict[str, Any]) -> Iterator[Bar]:
    disk = report["disk"]
    yield _smaller("weights on disk", disk["quantised"] / disk["original"])
    if "speed" in report:
        before, after = report["speed"]["original"], report["speed"]["quantised"]
        yield _smaller("memory when ready", after["ready_bytes"] / before["ready_bytes"])
        yield _smaller("memory after the run", after["resident_bytes"] / before["resident_bytes"])
        for phase in ("decode", "prefill"):
            key = f"{phase}_tokens_per_second"
            for users, speed in before[key].items():
                share = after[key][users] / speed
                colour = GREEN if share >= 1 else RED
                yield f"{phase}, {users} user{'s' if users != '1' else ''}", share, colour, f"{100 * share:.0f}%"
    if "served" in report:
        yield from _accuracies(served_label(report["served"]), report["served"]["accuracy"])
    yield from _accuracies("to the letter", report.get("accuracy", {}))


def _accuracies(label: str, rows: dict[str, Any]) -> Iterator[Bar]:
    for name, row in rows.items():
        if row["original"]:
            low, high = row["change_ci"]
            colour = BLUE if low <= 0 <= high else GREEN if low > 0 else RED
            text = f"{row['quantised']:.1f}% ({row['change']:+.1f} points)"
            yield f"{label}, {name}", row["quantised"] / row["original"], colour, text


def _smaller(label: str, share: float) -> Bar:
    return label, share, GREEN if share < 1 else RED, f"{100 * share:.0f}%"
