"""The report's plots: what is drawn of a setting's runs and of the benchmarks."""

import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
from matplotlib.figure import Figure

from harness.report.drawing import (
    Bar,
    Series,
    Styles,
    draw_bars,
    draw_curves,
    draw_dots,
    draw_points,
)
from harness.report.episodes import Draw, accuracy, compared, evaluated
from harness.report.overhead import Overhead
from harness.report.settings import Setting
from harness.report.statistics import Spread
from harness.report.style import SETTINGS
from harness.report.tables import KINDS, robustness_conditions, time_unit


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


def gallery_picture(content: bytes) -> Picture:
    """Shows what ``harness gallery`` has drawn."""
    alt = "Pairs of images, their saliency, SAGE's mask, and the mix of each method"
    return Picture("gallery", "Pairs, saliency, mask and mixes", alt, content)


def accuracy_pictures(setting: Setting, styles: Styles) -> list[Picture]:
    """Accuracy against training time, and the learning curves."""
    pictures = []
    points = {}
    top1_axis = f"{setting.top1_name}, %"
    for runs in setting.methods:
        time, top1 = (
            Spread.of([*runs.values(name).values()]) for name in ("train_seconds", "top1")
        )
        if time and top1 and math.isfinite(time.mean + top1.mean):
            points[runs.label] = (time, top1)
    if points:
        unit, seconds = time_unit([time.mean for time, _ in points.values()])
        points = {label: (time.scaled(1 / seconds), top1) for label, (time, top1) in points.items()}
        pictures.append(
            Picture(
                "accuracy-time",
                "Accuracy against training time",
                _words(
                    (label, f"{top1.mean:.1f} % in {time.mean:.1f} {unit}")
                    for label, (time, top1) in points.items()
                ),
                partial(draw_points, points, styles, (f"training time, {unit}", top1_axis)),
            )
        )
    for measure, name, title, axis in (
        ("train_loss", "training-loss", "Training loss", "training loss"),
        ("top1", "top1-epochs", "Accuracy in the epochs that were measured", top1_axis),
    ):
        series = _histories(setting, measure)
        if series:
            pictures.append(_curves(name, title, series, styles, ("epoch", axis)))
    return pictures


def robustness_pictures(setting: Setting, styles: Styles) -> list[Picture]:
    """Accuracy against strength, a picture for each kind; clean images have strength 0."""
    conditions = robustness_conditions(setting)
    clean = [condition for condition in conditions if condition[0] == "clean"]
    pictures = []
    for kind in dict.fromkeys(kind for kind, _ in conditions if kind != "clean"):
        series: Series = {}
        for runs in setting.methods:
            for condition in (*clean, *(c for c in conditions if c[0] == kind)):
                lines = runs.robustness.get(condition, {})
                spread = Spread.of([line["top1"] for line in lines.values()])
                if spread:
                    strength = 0.0 if condition in clean else condition[1]
                    series.setdefault(runs.label, {})[strength] = spread
        title = f"Robustness: {kind}"
        axes = (KINDS.get(kind, kind), "top-1, %")
        name = re.sub(r"[^\w-]+", "-", f"robustness-{kind}")  # as a file may be called anywhere
        pictures.append(_curves(name, title, series, styles, axes))
    return pictures


def novel_picture(setting: Setting, draw: Draw, name: str, styles: Styles) -> Picture:
    """Accuracy on novel classes by method, a panel for each number of shots."""
    chosen, classifier = compared(setting, draw)
    panels: dict[str, dict[str, Spread]] = {}
    for shots in chosen:
        spreads = {
            runs.label: accuracy(evaluated(runs, draw, shots, classifier))
            for runs in setting.methods
        }
        panels[f"{shots}-shot"] = {label: spread for label, spread in spreads.items() if spread}
    alt = ". ".join(
        f"{panel}: " + _words((label, f"{spread.text(1)} %") for label, spread in spreads.items())
        for panel, spreads in panels.items()
    )
    used = f"{classifier.name}, {classifier.normalization}"
    title = f"Novel classes, {name} ({used}); bars: ± of the table"
    draws_dots = partial(draw_dots, panels, styles, "accuracy, %")
    return Picture("novel-classes", title, alt, draws_dots)


def overhead_picture(overhead: Overhead, styles: Styles) -> Picture | None:
    """The ratio of a step's time to one without mixing; None if no step was timed."""
    bars = [
        Bar(method, ratio, overhead.shares(method)) for method, ratio in overhead.ratios().items()
    ]
    if not bars:
        return None
    axis = "time of a step / time without mixing"
    return Picture(
        "overhead",
        "Cost of a step",
        _words((bar.label, f"{bar.length:.2f} times") for bar in bars),
        partial(draw_bars, bars, styles, axis),
    )


def _curves(
    name: str, title: str, series: Series, styles: Styles, axes: tuple[str, str]
) -> Picture:
    alt = _words((label, f"{[*curve.values()][-1].mean:.2f}") for label, curve in series.items())
    alt = f"{axes[1]} against {axes[0]}; at the end, {alt}"
    return Picture(name, title, alt, partial(draw_curves, series, styles, axes))


def _histories(setting: Setting, measure: str) -> Series:
    """A measure after each epoch that has it, over the seeds."""
    series: Series = {}
    for runs in setting.methods:
        histories = [run.get("history", []) for run in runs.results.values()]
        for epoch in range(max(map(len, histories), default=0)):
            lines = [history[epoch] for history in histories if epoch < len(history)]
            spread = Spread.of([line[measure] for line in lines if measure in line])
            if spread:
                series.setdefault(runs.label, {})[epoch + 1] = spread
    return series


def _words(parts: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{label}: {text}" for label, text in parts)
