"""The tables of the runs: accuracy and time, robustness, foreground kept."""

import math
from collections.abc import Sequence
from functools import partial

from harness.report.cells import (
    Best,
    Cell,
    Table,
    column,
    make_table,
    seeds_column,
    seeds_text,
)
from harness.report.comparisons import comparison_tables
from harness.report.settings import MethodRuns, Setting
from harness.report.statistics import Spread

KINDS = {
    "clean": "clean",
    "noise": "noise: standard deviation on pixels from 0 to 1",
    "replacement": "replacement: share of the area",
    "fgsm": "fgsm: ε in 1/255",
    "pgd": "pgd: ε in 1/255",
}
"""The kinds of images that robustness is measured on, and what their strength is."""
_MEASURES: dict[str, tuple[str, Best]] = {
    "top1": ("{}, %", max),
    "balanced": ("balanced accuracy, %", max),
    "top5": ("top-5, %", max),
    "nll": ("NLL", min),
    "ece": ("ECE, %", min),
}
_FOREGROUND = {
    "foreground_kept_0": "of image 0, %",
    "foreground_kept_1": "of image 1, %",
    "foreground_kept_least": "the smaller of the two, %",
}
_MOST_CLASSES = 30  # in a table; more would be no table to read
_ROUNDING = 1e-3  # percent
_TIME_UNITS = ((2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))


def accuracy_table(setting: Setting) -> Table:
    """Accuracy, likelihood, calibration and time of the runs."""
    methods = setting.trained()
    few_shot = setting.learner is not None
    times = [Spread.of([*runs.values("train_seconds").values()]) for runs in methods]
    unit, seconds = time_unit([time.mean for time in times if time])
    columns = [
        seeds_column(methods, [set(runs.results) for runs in methods]),
        *(
            column(
                title.format(setting.top1_name),
                best,
                [[*runs.values(name).values()] for runs in methods],
            )
            for name, (title, best) in _measured(setting).items()
        ),
        *([_best_epoch_column(methods)] if few_shot else []),
        column("training loss", None, [[*r.values("train_loss").values()] for r in methods]),
        column(
            f"training, {unit}",
            None,
            [[t / seconds for t in r.values("train_seconds").values()] for r in methods],
            digits=1,
        ),
    ]
    title = "Accuracy and time"
    epochs = (setting.config or {}).get("measured_epochs", 10)
    figure = (
        f"Each run's figure is the median of its last {epochs} epochs (training loss: the last "
        "epoch)"
        if epochs > 1
        else "Each run's figure is that after its last epoch"
    )
    if few_shot:
        title, figure = "Validation classes and time", _validation(setting)
    note = (
        f"{figure}; mean ± sample standard deviation over seeds; training: by the clock, whatever "
        f"else the machine did{_geometry(setting)}."
    )
    results = [run for runs in methods for run in runs.results.values()]
    remarks = [*dict.fromkeys(f"{note}" for run in results for note in run.get("notes", ()))]
    broken = max((run.get("broken_images") or 0 for run in results), default=0)
    if broken:
        remarks.append(f"{broken} training images could not be read; others stood in for them")
    for runs in methods:
        for seed, failure in sorted(runs.failures.items()):
            remarks.append(f"{runs.label}, seed {seed}, failed: {failure['error']}")
        for seed, reason in sorted(runs.diverged.items()):
            remarks.append(f"{runs.label}, seed {seed}, diverged: {reason}")
    return make_table(title, methods, columns, note, remarks)


def _geometry(setting: Setting) -> str:
    """Says how images are shown, where the lines tell."""
    data = (setting.config or {}).get("data", {})
    if "crop_mode" not in data:
        return ""
    return (
        f"; images: {data['image_size']} pixels, crop_mode {data['crop_mode']}, crop_pct "
        f"{data['crop_pct']:g}, in training also train_crop_mode {data['train_crop_mode']}"
    )


def class_table(setting: Setting) -> Table | None:
    """The accuracy of each class; None if it was not measured, or there are many classes."""
    methods = [runs for runs in setting.trained() if runs.results]
    measured = [
        [line for line in runs.results.values() if "class_accuracy" in line and "classes" in line]
        for runs in methods
    ]
    classes = next((lines[0]["classes"] for lines in measured if lines), [])
    if not 0 < len(classes) <= _MOST_CLASSES:
        return None
    rows = []
    for index, name in enumerate(classes):
        known = [[line["class_accuracy"][index] for line in lines] for lines in measured]
        values = [[value for value in of_one if value is not None] for of_one in known]
        _, cells = column(name, max, values, digits=1)
        rows.append([Cell(str(name)), *cells])
    note = (
        "Percent of each class's validation images, after the last epoch; mean ± sample standard "
        "deviation over seeds."
    )
    header = ["class", *(runs.label for runs in methods)]
    return Table("Accuracy of each class", header, rows, note)


def accuracy_comparisons(setting: Setting) -> list[Table]:
    """Accuracy, likelihood and calibration against the peers', seed by seed."""
    measures = [
        (title.format(setting.top1_name), partial(MethodRuns.values, measure=name))
        for name, (title, _) in _measured(setting).items()
    ]
    return comparison_tables(setting, "Accuracy", measures, "in the columns' units")


def robustness_table(setting: Setting) -> Table | None:
    """Top-1 under each corruption and attack; None if none was measured."""
    conditions, methods = robustness_conditions(setting), setting.trained()
    if not conditions:
        return None
    measured = [
        [runs.robustness.get(condition, {}) for condition in conditions] for runs in methods
    ]
    columns = [
        seeds_column(
            methods,
            [set.intersection(*map(set, row)) for row in measured],
            [set().union(*row) for row in measured],
        ),
        *(
            column(
                condition_name(*condition),
                max,
                [[line["top1"] for line in row[index].values()] for row in measured],
            )
            for index, condition in enumerate(conditions)
        ),
    ]
    lines = [line for row in measured for condition in row for line in condition.values()]
    images = {str(line["images"]) for line in lines if "images" in line}
    kinds = dict.fromkeys(kind for kind, _ in conditions if kind != "clean")
    parts = (
        f"Top-1 in percent of the trained network{f' on {_or(images)} images' if images else ''}",
        "mean ± sample standard deviation over seeds",
        *(KINDS.get(kind, kind) for kind in kinds),
    )
    return make_table("Robustness", methods, columns, f"{'; '.join(parts)}.")


def robustness_comparisons(setting: Setting) -> list[Table]:
    """Top-1 under each corruption and attack against the peers', seed by seed."""
    measures = [
        (condition_name(*condition), partial(_robust_top1, condition=condition))
        for condition in robustness_conditions(setting)
    ]
    return comparison_tables(setting, "Robustness", measures, "points of top-1")


def foreground_table(setting: Setting) -> Table | None:
    """The share of each image's foreground that the mixes keep; None if it was not measured."""
    methods = [runs for runs in setting.methods if runs.foreground]
    if not methods:
        return None
    lines = [runs.foreground for runs in methods]
    expected = set().union(*lines)
    columns = [
        ("seeds", [Cell(seeds_text(set(row), missing=expected - set(row))) for row in lines]),
        *(
            column(
                title, max, [[line[name] for line in row.values() if name in line] for row in lines]
            )
            for name, title in _FOREGROUND.items()
        ),
    ]
    pairs = {str(line["pairs"]) for row in lines for line in row.values() if "pairs" in line}
    note = (
        "Percent of the contrast of the foreground that survives the mixing, mean over "
        f"{_or(pairs) + ' ' if pairs else ''}pairs; mean ± sample standard deviation over seeds."
    )
    return make_table("Foreground kept", methods, columns, note)


def robustness_conditions(setting: Setting) -> list[tuple[str, float]]:
    """All kinds and strengths that any run was measured with, in the tables' order."""
    order = list(KINDS)
    return sorted(
        {condition for runs in setting.methods for condition in runs.robustness},
        key=lambda c: (order.index(c[0]) if c[0] in order else len(order), *c),
    )


def condition_name(kind: str, strength: float) -> str:
    """Names a corruption or attack with its strength."""
    if kind == "clean":
        return kind
    return f"{kind} {strength:g}{'/255' if kind in ('fgsm', 'pgd') else ''}"


def time_unit(times: Sequence[float]) -> tuple[str, int]:
    """Chooses a unit for some times in seconds, and says how many seconds it has."""
    longest = max(filter(math.isfinite, times), default=0)
    return next((unit, seconds) for least, seconds, unit in _TIME_UNITS if longest >= least)


def _measured(setting: Setting) -> dict[str, tuple[str, Best]]:
    found = {
        name: measure
        for name, measure in _MEASURES.items()
        if any(runs.values(name) for runs in setting.trained())
    }
    if "balanced" in found and not any(map(_unequal_classes, setting.trained())):
        del found["balanced"]  # with classes of one size it is top-1
    return found


def _unequal_classes(runs: MethodRuns) -> bool:
    top1 = runs.values("top1")
    return any(abs(v - top1[seed]) > _ROUNDING for seed, v in runs.values("balanced").items())


def _robust_top1(runs: MethodRuns, condition: tuple[str, float]) -> dict[int, float]:
    return {seed: line["top1"] for seed, line in runs.robustness.get(condition, {}).items()}


def _best_epoch_column(methods: list[MethodRuns]) -> tuple[str, list[Cell]]:
    epochs = [[*runs.values("best_epoch").values()] for runs in methods]
    return column("best epoch", None, epochs, digits=0)


def _validation(setting: Setting) -> str:
    """Says what few-shot training chose its epoch by."""
    episodes = (setting.config or {}).get("validation") or {}
    words = ("{ways}-way {shots}-shot episodes", "{episodes:,} episodes, {queries} queries a class")
    try:
        kind, count = (text.format(**episodes) for text in words)
    except KeyError:
        kind, count = "episodes", ""
    return (
        f"Validation accuracy: {kind} of the validation classes{f' ({count})' if count else ''} at "
        "each run's best epoch, which was chosen by it, so that it is no measure of new classes; "
        "training loss: the last epoch"
    )


def _or(values: set[str]) -> str:
    return " or ".join(sorted(values))
