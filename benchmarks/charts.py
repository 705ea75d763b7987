"""Charts as SVG text: lines and bars. Colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from attrs import frozen

__all__ = ["Axis", "Bar", "Series", "bar_chart", "line_chart", "log_ticks"]

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 14, 48
BAR_HEIGHT, BAR_GAP, NAME_WIDTH, VALUE_WIDTH = 22, 9, 128, 84


@frozen
class Series:
    """A line: its name, its colour (a CSS value), and points ordered by x. Dashes mark lines without a gateway."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@frozen
class Bar:
    """A bar. ``note`` is printed after the value, for example for saturated subjects."""

    name: str
    colour: str
    value: float
    note: str = ""


@frozen
class Axis:
    """A title, ticks (value and label), and a function that maps values to 0 to 1."""

    title: str
    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]

    @classmethod
    def logarithmic(cls, title: str, lowest: float, highest: float) -> Axis:
        ticks = log_ticks(lowest, highest)
        low, high = math.log(ticks[0]), math.log(ticks[-1])
        return cls(
            title,
            [(tick, format_number(tick)) for tick in ticks],
            lambda value: (math.log(max(value, ticks[0])) - low) / (high - low or 1),
        )

    @classmethod
    def categories(cls, title: str, values: Sequence[float]) -> Axis:
        """Place ``values`` at equal distances, regardless of the differences between them."""
        places = {value: (index + 0.5) / len(values) for index, value in enumerate(values)}
        return cls(title, [(value, format_number(value)) for value in values], places.__getitem__)

    @classmethod
    def percentiles(cls, title: str, highest: float) -> Axis:
        """Place percentiles below 100 so that 90, 99, 99.9 have equal distances; ``highest`` is the last one drawn."""
        scale = -math.log10(1 - highest / 100)
        ticks = [percent for percent in (0, 50, 90, 99, 99.9, 99.99) if percent <= highest + 1e-9]
        return cls(
            title,
            [(tick, f"{tick:g}") for tick in ticks],
            lambda percent: -math.log10(1 - min(percent, highest) / 100) / scale,
        )


def log_ticks(lowest: float, highest: float) -> list[float]:
    """Return ticks from at most ``lowest`` to at least ``highest``: 1, 2, 5 times powers of ten.

    If the range is wider than a factor of 200, there are only powers of ten.
    """
    lowest = max(lowest, 1e-6)
    highest = max(highest, lowest * 1.01)
    factors = (1, 2, 5) if highest / lowest < 200 else (1,)
    exponents = range(math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(highest)) + 2)
    candidates = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    # The factors tolerate rounding errors of the powers: a value of 1000 needs no tick above 1000.
    first = max(index for index, tick in enumerate(candidates) if tick <= lowest * 1.0001)
    last = min(index for index, tick in enumerate(candidates) if tick >= highest * 0.9999)
    return candidates[first : last + 1]


def format_number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g} k"
    return f"{value:,.10g}"


def _axis_parts(x: Axis, y: Axis) -> Iterable[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value, label in y.ticks:
        at = bottom - y.place(value) * (bottom - TOP)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    for value, label in x.ticks:
        at = LEFT + x.place(value) * (right - LEFT)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>'
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    yield f'<text class="title" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>'
    turned = f'transform="rotate(-90 14 {middle_y})"'
    yield f'<text class="title" x="14" y="{middle_y}" text-anchor="middle" {turned}>{escape(y.title)}</text>'


def line_chart(label: str, x: Axis, y: Axis, series: Sequence[Series], *, has_dots: bool = True) -> str:
    """Draw one polyline per series. Dots show their figures as tooltips."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = list(_axis_parts(x, y))
    for line in series:
        places = [
            (LEFT + x.place(at) * (right - LEFT), bottom - y.place(value) * (bottom - TOP)) for at, value in line.points
        ]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
        parts.append(f'<polyline class="line" style="stroke:{line.colour}"{dashes} points="{path}"/>')
        if has_dots:
            for (left, top), (at, value) in zip(places, line.points, strict=True):
                hint = escape(f"{line.name}, {format_number(at)}: {value:,.1f}")
                dot = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" style="fill:{line.colour}">'
                parts.append(f"{dot}<title>{hint}</title></circle>")
    return _svg(label, WIDTH, HEIGHT, parts)


def bar_chart(label: str, bars: Sequence[Bar], show: Callable[[float], str]) -> str:
    """Draw horizontal bars from zero, with names to the left and values to the right."""
    highest = max((bar.value for bar in bars), default=0) or 1
    longest = WIDTH - NAME_WIDTH - VALUE_WIDTH - 60
    parts = []
    for index, bar in enumerate(bars):
        top = 6 + index * (BAR_HEIGHT + BAR_GAP)
        width = max(bar.value / highest * longest, 1.5)
        middle = top + BAR_HEIGHT / 2 + 4.5
        text = f"{show(bar.value)} {bar.note}".strip()
        parts.append(
            f'<text class="name" x="{NAME_WIDTH - 8}" y="{middle}" text-anchor="end">{escape(bar.name)}</text>'
        )
        parts.append(
            f'<rect x="{NAME_WIDTH}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2" '
            f'style="fill:{bar.colour}"/>'
        )
        parts.append(f'<text class="value" x="{NAME_WIDTH + width + 7:.1f}" y="{middle}">{escape(text)}</text>')
    return _svg(label, WIDTH, 12 + len(bars) * (BAR_HEIGHT + BAR_GAP), parts)


def _svg(label: str, width: int, height: int, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">\n{body}\n</svg>'
