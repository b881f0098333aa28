"""The kinds of plots that the report has: points, curves and bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.report.labels import Point, label_points, wrapped
from harness.report.statistics import Spread
from harness.report.style import INK, Style

_DPI = 200
_WIDTH = 4.4  # inches: narrow, so that the text can be read on a phone
_LEGEND_LETTERS = 46
_LONG_LABEL = 24  # characters; where there is a longer one, the legend has one column
_NARROW = 18  # characters of a label beside panels
_LEGEND_ROW = 0.19  # inches
_MARKS = 8  # markers on a curve
_HATCHES = {"saliency": "....", "mixing": "////"}

Styles = Mapping[str, Style]
Series = dict[str, dict[float, Spread]]
"""By method, then by the place on the horizontal axis."""


@dataclass(frozen=True)
class Bar:
    """A method's bar: its length, and the parts that it ends with."""

    label: str
    length: float
    parts: dict[str, float]


def draw_points(
    points: dict[str, tuple[Spread, Spread]],
    styles: Styles,
    axes_labels: tuple[str, str],
) -> Figure:
    """Draws a point a method with its spread both ways, labelled where it stands."""
    figure = Figure(figsize=(_WIDTH, 3.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    places = []
    for label, (x, y) in points.items():
        look = styles[label].lines() | {"linestyle": "none"}
        axes.errorbar(
            x.mean, y.mean, xerr=x.deviation, yerr=y.deviation, elinewidth=0.8, capsize=2, **look
        )
        places.append(Point(x, y, label, look["color"]))
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    axes.margins(0.12)
    label_points(axes, places)
    return figure


def draw_curves(series: Series, styles: Styles, axes_labels: tuple[str, str]) -> Figure:
    """Draws a curve a method, with its spread as a bar where there are few places."""
    columns = 1 if max(map(len, series)) > _LONG_LABEL else 2
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(_WIDTH, 2.9 + _LEGEND_ROW * rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    handles = []
    few = max(map(len, series.values())) <= _MARKS
    for index, (label, curve) in enumerate(series.items()):
        look = styles[label].lines()
        x, y = list(curve), [spread.mean for spread in curve.values()]
        if few:
            deviations = [spread.deviation or 0.0 for spread in curve.values()]
            axes.errorbar(x, y, deviations, elinewidth=0.6, capsize=1.5, **look)
        else:
            every = max(len(x) // _MARKS, 1)
            axes.plot(x, y, markevery=(index * every // len(series), every), **look)
        handles.append(Line2D([], [], label=wrapped(label, _LEGEND_LETTERS, 1), **look))
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    if few:
        axes.set_xticks(sorted({place for curve in series.values() for place in curve}))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
    return figure


def draw_dots(
    panels: Mapping[str, Mapping[str, Spread]], styles: Styles, axis_label: str
) -> Figure:
    """Draws a dot a method with its spread, from the top down, a panel beside the other."""
    labels = [*dict.fromkeys(label for spreads in panels.values() for label in spreads)]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    names = [wrapped(label, _NARROW, 3) for label in labels]
    each = 0.1 + 0.12 * max(name.count("\n") + 1 for name in names)
    figure = Figure(
        figsize=(_WIDTH, rows * (0.8 + each * len(labels))), dpi=_DPI, layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (title, spreads) in zip(grid, panels.items(), strict=False):
        for label, spread in spreads.items():
            look = styles[label].lines() | {"linestyle": "none"}
            axes.errorbar(
                spread.mean, labels.index(label), xerr=spread.deviation, elinewidth=1, capsize=2,
                **look,
            )  # fmt: skip
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(axis_label)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(labels)), names)
    grid[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def draw_bars(bars: Sequence[Bar], styles: Styles, axis_label: str) -> Figure:
    """Draws a bar a method from the top down, its last parts hatched, its length at its end."""
    parts = [part for part in _HATCHES if any(part in bar.parts for bar in bars)]
    height = 0.7 + 0.28 * len(bars) + (0.3 if parts else 0)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for row, bar in enumerate(bars):
        colour = styles[bar.label].lines()["color"]
        left = max(bar.length - sum(bar.parts.values()), 0.0)
        axes.barh(row, left, color=colour, edgecolor=colour)
        for part, length in bar.parts.items():
            axes.barh(row, length, left=left, color="none", edgecolor=colour, hatch=_HATCHES[part])
            left += length
        axes.annotate(
            f"{bar.length:.2f}", (max(bar.length, left), row), (4, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [wrapped(bar.label) for bar in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.margins(x=0.12)
    axes.set_xlabel(axis_label)
    if parts:
        figure.legend(
            handles=[
                Patch(facecolor="none", edgecolor=INK, hatch=_HATCHES[part], label=part)
                for part in parts
            ],
            loc="outside lower center",
            ncols=len(parts),
        )
    return figure
