"""Plots as SVG text, for a page that loads nothing: colours come from the page's CSS classes c0, c1, ..."""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 12, 46
COLOURS = 6


@dataclass(frozen=True)
class Series:
    """Named points; x is a number, or the position of a label."""

    name: str
    points: list[tuple[float, float]]


def plot(
    title: str,
    x_title: str,
    y_title: str,
    series: list[Series],
    labels: list[str] | None = None,
    style: str = "line",
) -> str:
    """A figure with title, legend and one SVG.

    `labels` make the x axis one of names. `style`: line (with dots), step, or dots.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return ""
    frame = _Frame.around(shown, labels)
    legend = "".join(
        f'<span><i class="c{number % COLOURS}"></i>{escape(one.name)}</span>' for number, one in enumerate(shown)
    )
    body = _axes(frame, x_title, y_title, labels)
    for number, one in enumerate(shown):
        body += _draw(frame, one, f"c{number % COLOURS}", style, y_title, labels)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{legend if len(shown) > 1 else ""}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )


@dataclass(frozen=True)
class _Frame:
    """From data to pixels. y starts at 0; a nameless x starts at the least value."""

    x_ticks: list[float]
    y_ticks: list[float]
    x_span: tuple[float, float]

    @classmethod
    def around(cls, series: list[Series], labels: list[str] | None) -> "_Frame":
        xs = [x for one in series for x, _ in one.points]
        top = max(y for one in series for _, y in one.points)
        if labels:
            return cls([float(number) for number in range(len(labels))], ticks(top), (-0.5, len(labels) - 0.5))
        x_ticks = ticks(max(xs))
        return cls(x_ticks, ticks(top), (0.0, x_ticks[-1]))

    def x(self, value: float) -> float:
        low, high = self.x_span
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y_ticks[-1] * (HEIGHT - TOP - BOTTOM)


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(top / step - 1e-9) + 1)]


def _axes(frame: _Frame, x_title: str, y_title: str, labels: list[str] | None) -> str:
    parts = []
    for tick in frame.y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.10g}</text>')
    every = math.ceil(len(labels) / 8) if labels else 1
    for number, tick in enumerate(frame.x_ticks):
        text = escape(labels[number]) if labels else f"{tick:,.10g}"
        if number % every == 0:
            parts.append(f'<text x="{frame.x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<text class="axis" x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_title}</text>')
    parts.append(
        f'<text class="axis" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _draw(frame: _Frame, series: Series, colour: str, style: str, y_title: str, labels: list[str] | None) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    parts = []
    if style != "dots" and len(places) > 1:
        path = f"M{places[0][0]:.1f},{places[0][1]:.1f}"
        for x, y in places[1:]:
            path += f"H{x:.1f}V{y:.1f}" if style == "step" else f"L{x:.1f},{y:.1f}"
        parts.append(f'<path class="{colour}" d="{path}"/>')
    if style != "step":
        radius = 2.5 if style == "dots" else 4
        for (x, y), (at, value) in zip(places, series.points, strict=True):
            where = labels[int(at)] if labels else f"{at:.4g}"
            tip = escape(f"{series.name}, {where}: {value:.4g} {y_title}")
            parts.append(
                f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{tip}</title></circle>'
            )
    return "".join(parts)
