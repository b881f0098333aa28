"""The report's pictures: how methods look in them, the kinds of plots, and what is drawn."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.figures import Table, figure, plus_minus, spread
from harness.measures.robustness import STRENGTHS, pivot
from harness.methods import METHODS
from harness.report.groups import Setting
from harness.report.tables import times
from harness.store import Line

# Plots have no ground of their own, so that they stand on a white page and on a dark one. Every
# colour has a contrast of 3 or more to both (the ink 4), and they stay apart for protanopes,
# deuteranopes and tritanopes (CIELAB distance of 26 or more, after Machado et al., 2009).
GROUNDS = ("#ffffff", "#16191d")
"""The page's, in light and in dark."""
INK = "#7a7a7a"
SAGE = "#d55e00"
OTHERS = (INK, "#3c78a5", "#872dff", "#c369ff", "#a55a3c")
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SETTINGS: dict[str, Any] = {
    **dict.fromkeys((*_INKED, "grid.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
}
"""Matplotlib's."""
Styles = Mapping[str, dict[str, Any]]
"""Matplotlib's keywords for a line, by label."""
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = "osD^vPX<>pdh*"
_WIDTH = 4.4  # inches: narrow, so that the text can be read on a phone
_LEGEND_ROW = 0.19  # inches
_LONG_LABEL = 24  # characters; where there is a longer one, the legend has one column
_MARKS = 8  # markers on a curve
_HATCHES = {"saliency": "....", "mixing": "////"}


@dataclass(frozen=True)
class Picture:
    """A picture of the report."""

    name: str
    """File name less its ending."""
    title: str
    alt: str
    """What it shows, in words."""
    draw: Callable[[], Figure] | bytes
    """Draws it; or a PNG file, which another command has drawn."""

    def png(self) -> bytes:
        """Gives it as PNG; plots without a ground of their own."""
        if isinstance(self.draw, bytes):
            return self.draw
        file = io.BytesIO()
        with mpl.rc_context(SETTINGS):
            self.draw().savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


@dataclass(frozen=True)
class Part:
    """A table and the pictures that belong to it, or one of the two."""

    table: Table | None
    pictures: list[Picture] = field(default_factory=list)


def styles(labels: Collection[str]) -> Styles:
    """Gives each method a style; a method of the registry has the same in every report."""
    of_sage = sorted(x for x in labels if x == "sage" or x.startswith("sage,"))
    others = [name for name in METHODS if name != "sage"]
    others += sorted(x for x in labels if x not in METHODS and x not in of_sage)
    found, colours, marks = {}, len(OTHERS), len(_MARKERS)
    for i, label in enumerate(others):
        look = {"color": OTHERS[i % colours], "linestyle": _LINES[i // colours % len(_LINES)]}
        found[label] = look | {"marker": _MARKERS[i % marks], "linewidth": 1.3, "markersize": 5}
    for i, label in enumerate(of_sage):
        look = {
            "color": SAGE,
            "linestyle": _LINES[i % len(_LINES)],
            "marker": _MARKERS[-1 - i % marks],
        }
        found[label] = look | {"linewidth": 2.0, "markersize": 5 if i % marks else 8}
    return found


def accuracy_pictures(setting: Setting, looks: Styles) -> list[Picture]:
    """Draws accuracy against training time, and the learning curves."""
    results, pictures = setting.results(), []
    if not len(results):
        return []
    top1_axis = f"{setting.top1_name}, %"
    seconds, unit, size = times(results)
    time, top1 = spread(seconds / size), spread(results["top1"])
    time.columns = ["place", "deviation_of_place"]
    points = time.join(top1, how="inner").reset_index()
    if len(points):
        words = (f"{p.mean:.1f} % in {p.place:.1f} {unit}" for p in points.itertuples())
        alt = _words(zip(points["label"], words, strict=True))
        draw = partial(draw_lines, points, looks, (f"training time, {unit}", top1_axis))
        pictures.append(Picture("accuracy-time", "Accuracy against training time", alt, draw))
    epochs = {
        (*run, epoch): values
        for run, history in results["history"].dropna().items()
        for epoch, values in enumerate(history, start=1)
    }
    index = pd.MultiIndex.from_tuples(epochs, names=["label", "seed", "epoch"])
    histories = pd.DataFrame([*epochs.values()], index)
    for measure, name, title, axis in (
        ("train_loss", "training-loss", "Training loss", "training loss"),
        ("top1", "top1-epochs", "Accuracy in the epochs that were measured", top1_axis),
    ):
        if measure in histories:
            pictures.append(_curves(name, title, histories[measure], looks, ("epoch", axis)))
    return pictures


def robustness_pictures(lines: Sequence[Line], looks: Styles) -> list[Picture]:
    """Draws accuracy against strength for each kind; clean images have strength 0."""
    frame, pictures = pivot(lines), []
    for kind in dict.fromkeys(kind for kind, _ in frame if kind != "clean"):
        of_kind = frame[[c for c in frame if c[0] in ("clean", kind)]]
        of_kind.columns = pd.Index([c[1] * (c[0] == kind) for c in of_kind], name="strength")
        name = re.sub(r"[^\w-]+", "-", f"robustness-{kind}")  # as a file may be called anywhere
        axes = (STRENGTHS.get(kind, kind), "top-1, %")
        pictures.append(_curves(name, f"Robustness: {kind}", of_kind.stack(), looks, axes))
    return pictures


def novel_picture(title: str, panels: Mapping[str, pd.DataFrame], looks: Styles) -> Picture:
    """Draws accuracies on novel classes by method, a panel for each number of shots."""
    alt = ". ".join(
        f"{panel}: " + _words((label, f"{plus_minus(*row, 1)} %") for label, row in rows.iterrows())
        for panel, rows in panels.items()
    )
    return Picture("novel-classes", title, alt, partial(draw_dots, panels, looks, "accuracy, %"))


def overhead_picture(lines: Sequence[Line], looks: Styles) -> Picture | None:
    """Draws the ratio of a step's time to one without mixing; None if no step was timed."""
    steps = {x["label"]: x for x in lines if x["part"] == "step" and x.get("ratio") is not None}
    if not steps:
        return None
    bars = pd.DataFrame({"ratio": {label: step["ratio"] for label, step in steps.items()}})
    for line in lines:
        step = steps.get(line["label"])
        if step and line["part"] in _HATCHES:
            share = line["milliseconds"] / step["milliseconds"] * step["ratio"]
            bars.loc[line["label"], line["part"]] = share
    return Picture(
        "overhead",
        "Cost of a step",
        _words((label, f"{ratio:.2f} times") for label, ratio in bars["ratio"].items()),
        partial(draw_bars, bars, looks, "time of a step / time without mixing"),
    )


def gallery_picture(content: bytes) -> Picture:
    """Shows what ``harness gallery`` has drawn."""
    alt = "Pairs of images, their saliency, SAGE's mask, and the mix of each method"
    return Picture("gallery", "Pairs, saliency, mask and mixes", alt, content)


def draw_lines(series: pd.DataFrame, looks: Styles, axes_labels: tuple[str, str]) -> Figure:
    """Draws a line a method, with its spread as bars where there are few places; a lone point too.

    ``series`` has a label and a place a row; mean, deviation, and maybe that of the place.
    """
    curves = dict([*series.groupby("label", sort=False)])
    columns = 1 if max(map(len, curves)) > _LONG_LABEL else 2
    height = 2.9 + _LEGEND_ROW * math.ceil(len(curves) / columns)
    figure = Figure((_WIDTH, height), dpi=200, layout="constrained")
    axes, handles = figure.subplots(), []
    longest = max(map(len, curves.values()))
    for number, (label, curve) in enumerate(curves.items()):
        look = looks[label] | ({"linestyle": "none"} if longest == 1 else {})
        if longest <= _MARKS:
            across = curve.get("deviation_of_place")
            bars = {"yerr": curve["deviation"], "xerr": across, "elinewidth": 0.7, "capsize": 2}
            axes.errorbar(curve["place"], curve["mean"], **bars, **look)
        else:
            every = max(len(curve) // _MARKS, 1)
            marks = (number * every // len(curves), every)
            axes.plot(curve["place"], curve["mean"], markevery=marks, **look)
        handles.append(Line2D([], [], label=_wrapped(label, 46, 1), **look))
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    if 1 < longest <= _MARKS:
        axes.set_xticks(sorted(series["place"].unique()))
    elif longest > _MARKS:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
    return figure


def draw_dots(panels: Mapping[str, pd.DataFrame], looks: Styles, axis_label: str) -> Figure:
    """Draws a dot a method with its spread, from the top down, a panel beside the other."""
    labels = [*dict.fromkeys(label for rows in panels.values() for label in rows.index)]
    columns = min(len(panels), 2)
    count = math.ceil(len(panels) / columns)
    names = [_wrapped(label, 18, 3) for label in labels]
    each = 0.1 + 0.12 * max(name.count("\n") + 1 for name in names)
    size = (_WIDTH, count * (0.8 + each * len(labels)))
    figure = Figure(size, dpi=200, layout="constrained")
    grid = figure.subplots(count, columns, sharey=True, squeeze=False).ravel()
    for axes, (title, rows) in zip(grid, panels.items(), strict=False):
        for label, (mean, deviation) in rows.iterrows():
            look = looks[label] | {"linestyle": "none", "elinewidth": 1, "capsize": 2}
            axes.errorbar(mean, labels.index(label), xerr=deviation, **look)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(axis_label)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(labels)), names)
    grid[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def draw_bars(bars: pd.DataFrame, looks: Styles, axis_label: str) -> Figure:
    """Draws a bar a method from the top down, its last parts hatched, its length at its end."""
    parts = [part for part in _HATCHES if part in bars]
    height = 0.7 + 0.28 * len(bars) + (0.3 if parts else 0)
    figure = Figure((_WIDTH, height), dpi=200, layout="constrained")
    axes = figure.subplots()
    for row, (label, bar) in enumerate(bars.fillna(0.0).iterrows()):
        colour = looks[label]["color"]
        left = max(bar["ratio"] - bar[parts].sum(), 0.0)
        axes.barh(row, left, color=colour, edgecolor=colour)
        for part in parts:
            look = {"color": "none", "edgecolor": colour, "hatch": _HATCHES[part]}
            if bar[part]:
                axes.barh(row, bar[part], left=left, **look)
            left += bar[part]
        end, offset = (max(bar["ratio"], left), row), {"textcoords": "offset points"}
        axes.annotate(f"{bar['ratio']:.2f}", end, (4, 0), va="center", **offset)
    axes.set_yticks(range(len(bars)), [_wrapped(label, 24, 2) for label in bars.index])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.margins(x=0.12)
    axes.set_xlabel(axis_label)
    if parts:
        looks = {"facecolor": "none", "edgecolor": INK}
        handles = [Patch(hatch=_HATCHES[part], label=part, **looks) for part in parts]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(parts))
    return figure


def _curves(
    name: str, title: str, values: pd.Series, looks: Styles, axes: tuple[str, str]
) -> Picture:
    """Draws means over the seeds of values by label, seed and place."""
    series = spread(values).reset_index(names=["label", "place"])
    ends = series.groupby("label", sort=False)["mean"].last()
    words = _words((label, figure(end, 2)) for label, end in ends.items())
    alt = f"{axes[1]} against {axes[0]}; at the end, {words}"
    return Picture(name, title, alt, partial(draw_lines, series, looks, axes))


def _wrapped(label: str, letters: int, lines: int) -> str:
    """Breaks a label into lines, and cuts off what is more than ``lines`` of them."""
    return "\n".join(textwrap.wrap(label, letters, max_lines=lines, placeholder="…"))


def _words(parts: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{label}: {text}" for label, text in parts)
