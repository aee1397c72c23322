"""Plots as SVG text, drawn here: lines, points, a map. They know numbers and labels only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

import msgspec

Point = tuple[float, float]
WIDTH: Final = 640
HEIGHT: Final = 320
#: From so many cities on their circles are small.
CROWD: Final = 50
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44
#: Colours that differ for colour-blind eyes too (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


class Series(msgspec.Struct, frozen=True):
    """A named line."""

    name: str
    points: Sequence[Point]


class Axis(msgspec.Struct, frozen=True):
    """One direction: its label and range. On a logarithmic one, ``low`` is above 0."""

    label: str
    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.is_log:
            low, high = math.log10(self.low), math.log10(self.high)
            found = (math.log10(max(value, self.low)) - low) / (high - low)
        else:
            found = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, found))

    def ticks(self) -> list[float]:
        """Round values inside the range."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self.low / step)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis over whole powers of ten around the values."""
    positive = [value for value in values if value > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(positive)))
    high = 10.0 ** math.ceil(math.log10(max(positive)))
    return Axis(label, low, high if high > low else low * 10, is_log=True)


def axis(label: str, values: Sequence[float]) -> Axis:
    """A linear axis from 0 on."""
    return Axis(label, 0.0, max([*values, 1e-9]) * 1.05)


def cdf(values: Sequence[float], number: int = 200) -> list[Point]:
    """A cumulative distribution, in so many points."""
    ordered = sorted(values)
    if not ordered:
        return []
    ranks = {round(n * (len(ordered) - 1) / number) for n in range(number + 1)}
    return [(ordered[rank], (rank + 1) / len(ordered)) for rank in sorted(ranks)]


def lines(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A chart of lines with a legend."""
    drawn = []
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in one.points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return _chart(title, x, y, [*drawn, *_legend([one.name for one in series])])


def dots(title: str, x: Axis, y: Axis, points: Sequence[Point]) -> str:
    """A chart of points."""
    drawn = [
        f'<circle cx="{_x(x, px):.1f}" cy="{_y(y, py):.1f}" r="2.2" fill="{COLOURS[0]}" '
        'fill-opacity="0.45"/>'
        for px, py in points
    ]
    return _chart(title, x, y, drawn)


def world_map(
    title: str, places: Sequence[Point], sizes: Sequence[float], shades: Sequence[float], note: str
) -> str:
    """Cities in a plane: circles by size, from blue (least) to orange (most) by shade."""
    xs, ys = [px for px, _ in places], [py for _, py in places]
    height = HEIGHT + 60
    wide, tall = WIDTH - 2 * LEFT, height - 2 * LEFT
    scale = 1 / max((max(xs) - min(xs)) / wide, (max(ys) - min(ys)) / tall, 1e-9)
    middle_x, middle_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    largest = max([*sizes, 1e-9])
    known = sorted(shade for shade in shades if shade > 0) or [1.0]
    low, high = known[0], known[int(0.95 * (len(known) - 1))]
    drawn = []
    widest = 12 if len(places) < CROWD else 6
    order = sorted(range(len(places)), key=lambda n: -sizes[n])
    for number in order:
        px, py = places[number]
        cx, cy = WIDTH / 2 + (px - middle_x) * scale, height / 2 + (py - middle_y) * scale
        radius = 2 + widest * math.sqrt(sizes[number] / largest)
        share = (shades[number] - low) / (high - low) if high > low else 0.0
        colour = _mix(min(1.0, max(0.0, share))) if shades[number] > 0 else "#bbbbbb"
        drawn.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}" fill="{colour}" '
            'fill-opacity="0.7" stroke="#fff" stroke-width="0.7"/>'
        )
    label = f'<text x="16" y="{height - 10}" class="n">{escape(note)}</text>'
    ends = f"least {low:.2f} s: blue; most {high:.2f} s: orange; grey: nobody asked"
    legend = f'<text x="{WIDTH - 16}" y="{height - 10}" class="n" text-anchor="end">{ends}</text>'
    return _svg(title, height, [*drawn, label, legend])


def _mix(share: float) -> str:
    """From blue to orange."""
    first, last = (0, 114, 178), (230, 110, 0)
    mixed = (round(a + share * (b - a)) for a, b in zip(first, last, strict=True))
    return "#" + "".join(f"{one:02x}" for one in mixed)


def _x(scale: Axis, value: float) -> float:
    return LEFT + scale.at(value) * (WIDTH - LEFT - RIGHT)


def _y(scale: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - scale.at(value) * (HEIGHT - TOP - BOTTOM)


def _chart(title: str, x: Axis, y: Axis, drawn: Sequence[str]) -> str:
    grid = [*_ticks(x, _x, upright=True), *_ticks(y, _y, upright=False)]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    start = f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
    turned = f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
    labels = [f"{start}{escape(x.label)}</text>", f"{turned}{escape(y.label)}</text>"]
    return _svg(title, HEIGHT, [*grid, *labels, *drawn])


def _ticks(scale: Axis, place: Callable[[Axis, float], float], *, upright: bool) -> list[str]:
    made = []
    for value in scale.ticks():
        at = place(scale, value)
        if upright:
            made.append(
                f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" class="g"/>'
                f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
                f"{_number(value)}</text>"
            )
        else:
            made.append(
                f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" class="g"/>'
                f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>'
            )
    return made


def _legend(names: Sequence[str]) -> list[str]:
    made, x = [], float(LEFT)
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        made.append(
            f'<rect x="{x:.0f}" y="{TOP - 11}" width="10" height="3" fill="{colour}"/>'
            f'<text x="{x + 14:.0f}" y="{TOP - 6}">{escape(name)}</text>'
        )
        x += 26 + 6.2 * len(name)
    return made


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    style = (
        "text{font:11px system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}"
        ".g{stroke:#ddd;stroke-width:1}.n{fill:#666}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{style}</style>'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="15" class="t">{escape(title)}</text>{"".join(parts)}</svg>'
    )
