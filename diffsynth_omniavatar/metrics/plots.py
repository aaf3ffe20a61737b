"""Small line plots as SVG text, to be put into a page or a file; no library draws them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8a5a9e", "#b07d2b")
WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 42
"""Room around the curves for title, legend and numbers."""

Series = Mapping[str, Sequence[float]]


def line_plot(
    series: Series,
    *,
    title: str,
    x_label: str,
    y_label: str,
    x: Sequence[float] | None = None,
    level: float | None = None,
    dots: bool = False,
) -> str:
    """Curves over a common axis.

    Args:
        series: name -> values, all of one length; a NaN leaves a gap.
        title, x_label, y_label: what stands at the plot.
        x: where the values stand; by default 0, 1, 2, ...
        level: a dashed horizontal line, for a goal.
        dots: mark each value, where they are few.

    Returns:
        An `<svg>` element that scales with its place.

    Raises:
        ValueError: there is no finite value, or lengths differ.
    """
    places = list(range(max(map(len, series.values()), default=0))) if x is None else list(x)
    if any(len(values) != len(places) for values in series.values()):
        raise ValueError(f"curves of {[len(values) for values in series.values()]} values over {len(places)} places")
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError(f"{title}: there is no finite value to draw")
    across = _Axis(min(places), max(places), LEFT, WIDTH - RIGHT)
    up = _Axis(min([*finite, *_known(level)]), max([*finite, *_known(level)]), HEIGHT - BOTTOM, TOP)
    parts = [_frame(across, up, title, x_label, y_label)]
    if level is not None:
        parts.append(f'<path d="M{LEFT} {up(level):.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="5 4"/>')
    for index, (name, values) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<path d="{_path(across, up, places, values)}" stroke="{colour}" stroke-width="1.8"/>')
        parts += _dots(across, up, places, values, colour) if dots else ()
        parts.append(_legend(index, len(series), name, colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="none" stroke-linejoin="round">{"".join(parts)}</svg>'
    )


class _Axis:
    """Values from `low` to `high` on pixels from `start` to `end`, with round numbers in between."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high - low < 1e-12 * max(1.0, abs(low)):
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About six numbers of the kind 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 7
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _known(level: float | None) -> list[float]:
    return [] if level is None else [level]


def _path(across: _Axis, up: _Axis, places: Sequence[float], values: Sequence[float]) -> str:
    steps, pen = [], "M"
    for place, value in zip(places, values, strict=True):
        if math.isfinite(value):
            steps.append(f"{pen}{across(place):.1f} {up(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(steps)


def _dots(across: _Axis, up: _Axis, places: Sequence[float], values: Sequence[float], colour: str) -> list[str]:
    return [
        f'<circle cx="{across(place):.1f}" cy="{up(value):.1f}" r="3" fill="{colour}"/>'
        for place, value in zip(places, values, strict=True)
        if math.isfinite(value)
    ]


def _text(x: float, y: float, words: str, anchor: str = "middle", **more: str) -> str:
    attributes = "".join(f' {name}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333"{attributes}>{html.escape(words)}</text>'


def _frame(across: _Axis, up: _Axis, title: str, x_label: str, y_label: str) -> str:
    """Background, lines of the grid with their numbers, title and labels."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for value in up.ticks():
        parts.append(f'<path d="M{LEFT} {up(value):.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, up(value) + 4, f"{value:.4g}", "end"))
    for value in across.ticks():
        parts.append(f'<path d="M{across(value):.1f} {bottom}v5" stroke="#888"/>')
        parts.append(_text(across(value), bottom + 18, f"{value:.4g}"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="#888"/>')
    parts.append(_text(LEFT, 17, title, "start", **{"font-weight": "bold"}))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 6, x_label))
    middle = (TOP + bottom) / 2
    parts.append(_text(13, middle, y_label, transform=f"rotate(-90 13 {middle:.0f})"))
    return "".join(parts)


def _legend(index: int, count: int, name: str, colour: str) -> str:
    x = WIDTH - RIGHT - 110 * (count - index)
    return f'<path d="M{x} 13h16" stroke="{colour}" stroke-width="3"/>' + _text(x + 21, 17, name, "start")
