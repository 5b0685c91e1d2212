"""Where the marks of the report's charts go: plain geometry in SVG user units, drawn by the report's template.

A colour is a slot name ("recall", "base", "c1" ...) that the template's style sheet gives a light and a dark shade.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

Series = tuple[str, str, list[float | None]]


@dataclass(frozen=True)
class Label:
    """A piece of text at (x, y); `full` is what a tooltip shows where `text` was cut."""

    x: float
    y: float
    text: str
    full: str


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map around (x, y): its text, tooltip, colour slot and how strongly it is filled, in [0, 1]."""

    x: float
    y: float
    text: str
    tip: str
    colour: str
    strength: float


@dataclass(frozen=True)
class HeatMap:
    """Layers down, models across."""

    title: str
    width: float
    height: float
    cell_width: float
    cell_height: float
    slanted: bool
    rows: list[Label]
    columns: list[Label]
    cells: list[Cell]


@dataclass(frozen=True)
class Line:
    """One series: the SVG paths over its known points and over the gaps between, and a dot with a tooltip on each."""

    label: str
    colour: str
    path: str
    bridges: str
    dots: list[Label]


@dataclass(frozen=True)
class LineChart:
    """Lines over equally spaced steps; `mark` is the x of a step to point out."""

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Label]
    y_ticks: list[Label]
    lines: list[Line]
    mark: float | None


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: where it starts and how long it is, its name to the left, its value beyond its end."""

    label: Label
    value: Label
    anchor: str
    x: float
    y: float
    length: float
    colour: str


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from one common zero line."""

    title: str
    width: float
    height: float
    zero: float
    bars: list[Bar]


def heat_map(title: str, layers: list[str], models: list[str], weights: list[list[float]], reach: float) -> HeatMap:
    """Colour each weight by how far it lies from an equal share, 1/K; `reach` is the distance that fills a cell fully.

    Args:
        weights: a row a layer, a column a model; K is the number of models.
    """
    cell_height = 17.0 if len(layers) <= 48 else 13.0
    cell_width = max(40.0, min(118.0, 236.0 / len(models)))
    slanted = len(models) > 2 and max(map(len, models)) > cell_width / 6.4
    left, top = 92.0, 84.0 if slanted else 24.0
    shown = 16 if slanted else int(cell_width / 6.4)
    cells = []
    for layer, (layer_name, shares) in enumerate(zip(layers, weights, strict=True)):
        for column, (model, share) in enumerate(zip(models, shares, strict=True)):
            away = share - 1 / len(models)
            cells.append(
                Cell(
                    x=round(left + (column + 0.5) * cell_width, 1),
                    y=round(top + (layer + 0.5) * cell_height, 1),
                    text=f"{share:.2f}",
                    tip=f"{layer_name}, {model}: {share:.4f}",
                    colour="even" if abs(away) < 0.0005 else "more" if away > 0 else "less",
                    strength=min(1.0, abs(away) / reach) if reach > 0 else 0.0,
                )
            )
    # model.layers.12 and model.layers.13 differ where they end, so it is the front that goes.
    short = [_cut(".".join(name.split(".")[-2:]), 14) for name in layers]
    rows = [
        Label(left - 8, top + i * cell_height + cell_height * 0.72, text, name)
        for i, (text, name) in enumerate(zip(short, layers, strict=True))
    ]
    columns = [Label(left + (i + 0.5) * cell_width, top - 8, _cut(n, shown), n) for i, n in enumerate(models)]
    width = left + cell_width * len(models) + (56 if slanted else 2)
    return HeatMap(
        title, width, top + cell_height * len(layers) + 2, cell_width, cell_height, slanted, rows, columns, cells
    )


def line_chart(
    title: str,
    steps: list[str],
    series: list[Series],
    low: float,
    high: float,
    unit: str = "",
    mark: int | None = None,
    short: list[str] | None = None,
) -> LineChart:
    """Draw each series over `steps` between `low` and `high`; a value that is None leaves a gap, which is bridged.

    Args:
        steps: what a tooltip calls each step; `short` is what stands below the axis, the same where left out.
        mark: the step to point out.
    """
    width, height, left, right, top, bottom = 340.0, 190.0, 38.0, 12.0, 12.0, 26.0
    span = max(1, len(steps) - 1)

    def x_of(step: int) -> float:
        return round(left + (width - left - right) * (step / span if len(steps) > 1 else 0.5), 2)

    def y_of(value: float) -> float:
        return round(top + (height - top - bottom) * (high - value) / (high - low), 2)

    lines = []
    for label, colour, values in series:
        known = [(step, value) for step, value in enumerate(values) if value is not None]
        dots = [Label(x_of(i), y_of(v), label, f"{label}, {steps[i]}: {_number(v, unit)}") for i, v in known]
        path, bridges = "", ""
        for (before, _), (step, _), start, end in zip(known, known[1:], dots, dots[1:], strict=False):
            piece = f"M{start.x} {start.y}L{end.x} {end.y}"
            path, bridges = (path + piece, bridges) if step == before + 1 else (path, bridges + piece)
        lines.append(Line(label, colour, path, bridges, dots))
    every = max(1, ceil(len(steps) / 8))
    x_ticks = [
        Label(x_of(i), height - 8, _cut(name, 9), name) for i, name in enumerate(short or steps) if i % every == 0
    ]
    y_ticks = [
        Label(left - 6, y_of(v), _number(v, unit, True), "") for v in (low + (high - low) * i / 4 for i in range(5))
    ]
    return LineChart(
        title, width, height, left, width - right, top, height - bottom, x_ticks, y_ticks, lines,
        None if mark is None else x_of(mark),
    )  # fmt: skip


def bar_chart(title: str, values: list[tuple[str, str, float]], low: float, high: float) -> BarChart:
    """Bars for (name, colour, points) on the scale from `low` <= 0 to `high` >= 0, so that charts can share it."""
    gutter, row, width = 148.0, 24.0, 340.0
    left, right = gutter + (44 if low < 0 else 0), width - 44
    scale = (right - left) / ((high - low) or 1.0)
    zero = left - low * scale
    bars = []
    for number, (name, colour, value) in enumerate(values):
        y, end = number * row + 4, zero + value * scale
        text = Label(end + (6 if value >= 0 else -6), y + 12, f"{value:.1f}", f"{name}: {value:.1f} points")
        bars.append(
            Bar(
                label=Label(gutter - 8, y + 12, name, name),
                value=text,
                anchor="start" if value >= 0 else "end",
                x=round(min(zero, end), 2),
                y=y,
                length=round(max(abs(value) * scale, 1.0), 2),
                colour=colour,
            )
        )
    return BarChart(title, width, row * len(values) + 4, round(zero, 2), bars)


def tens_around(values: list[float], floor_at: float = 0.0, top_at: float = 100.0) -> tuple[float, float]:
    """The smallest range of whole tens, and at least twenty wide, that holds `values` (points)."""
    low = max(floor_at, 10.0 * floor(min(values, default=floor_at) / 10))
    high = min(top_at, 10.0 * ceil(max(values, default=top_at) / 10))
    if high - low >= 20:
        return low, high
    return (low, low + 20.0) if low + 20 <= top_at else (top_at - 20, top_at)


def _number(value: float, unit: str, short: bool = False) -> str:
    if unit:
        return f"{value:.0f}" if short else f"{value:.1f} {unit}"
    return f"{value:.2f}" if short else f"{value:.3f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
