"""Tables of the runs: accuracy and time, each class, and paired comparisons between methods."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from harness.figures import CONFIDENCE, NO_VALUE, Column, Table, spread, table_of_means
from harness.methods.sage import is_sage
from harness.report.groups import Setting

REFERENCES = ("mixup", "cutmix")
"""The methods that the others are compared with; SAGE's variants also with SAGE."""
LEAST_SEEDS = 3
"""Fewer rank nothing."""
_MEASURES = {
    "top1": ("{}, %", Column("max")),
    "balanced": ("balanced accuracy, %", Column("max")),
    "top5": ("top-5, %", Column("max")),
    "nll": ("NLL", Column("min")),
    "ece": ("ECE, %", Column("min")),
}
_MOST_CLASSES = 30  # in a table; more would be no table to read
_UNEQUAL = 1e-3  # percent; closer accuracies are the same
_ROUNDING = 1e-9  # of figures in percent or nats; closer differences are the same
_TIME_UNITS = ((2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))


@dataclass(frozen=True)
class Difference:
    """Mean of the differences seed by seed, with Student's 95 % interval where they spread."""

    mean: float
    seeds: list[int]
    interval: tuple[float, float] | None = None
    p_value: float = 1.0
    """How often chance alone brings a difference as large as this, of that spread."""

    @classmethod
    def of(cls, own: pd.Series, other: pd.Series) -> "Difference | None":
        """Takes the differences of the seeds that both have; None if there is no such seed.

        Two runs of a seed share their training images and their initial weights, so that the
        differences spread less than the runs do.
        """
        both = pd.concat([own, other], axis=1, join="inner").dropna().astype(float)
        apart = both.iloc[:, 0] - both.iloc[:, 1]
        seeds = sorted(apart.index)
        if not seeds:
            return None
        if apart.max() - apart.min() < _ROUNDING:  # of one seed, too: no spread, no interval
            return cls(float(apart.mean()), seeds)
        test = ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
        low, high = test.confidence_interval(CONFIDENCE)
        return cls(float(apart.mean()), seeds, (float(low), float(high)), float(test.pvalue))

    @property
    def ranks(self) -> bool:
        """Whether it may say which of two methods is ahead."""
        return self.interval is not None and len(self.seeds) >= LEAST_SEEDS

    def __str__(self) -> str:
        """Writes it as difference (low to high)."""
        around = "" if self.interval is None else " ({:+.2f} to {:+.2f})".format(*self.interval)
        return f"{self.mean:+.2f}{around}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects the p-values of several comparisons (Holm, 1979).

    The chance that any of the comparisons comes out below 5 % by chance alone is then 5 % at most,
    however they depend on each other.
    """
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.minimum(1, left * np.take(p_values, order)))
    return corrected.tolist()


def measured(results: pd.DataFrame, top1_name: str) -> pd.DataFrame:
    """Takes accuracy, likelihood and calibration of the results, under the columns' titles."""
    found = results[[name for name in _MEASURES if name in results]].dropna(axis=1, how="all")
    if "balanced" in found and not ((found["balanced"] - found["top1"]).abs() > _UNEQUAL).any():
        del found["balanced"]  # with classes of one size it is top-1
    return found.rename(columns=lambda name: _MEASURES[name][0].format(top1_name))


def accuracy_tables(setting: Setting) -> list[Table]:
    """Makes the tables of accuracy and time, of each class, and of the paired differences."""
    results, top1_name = setting.results(), setting.top1_name
    values = measured(results, top1_name)
    tables = [_accuracy_table(setting, results, values), *_class_tables(results)]
    if setting.learner is None:
        tables += comparison_tables(setting, "Accuracy", values, "in the columns' units")
    return tables


def _accuracy_table(setting: Setting, results: pd.DataFrame, values: pd.DataFrame) -> Table:
    values = values.copy()
    columns = {title.format(setting.top1_name): column for title, column in _MEASURES.values()}
    columns = {title: columns[title] for title in values}
    if setting.learner is not None:
        columns["best epoch"] = Column(digits=0)
        values["best epoch"] = results.get("best_epoch")
    columns["training loss"] = Column()
    values["training loss"] = results["train_loss"]
    seconds, unit, second_count = times(results)
    columns[f"training, {unit}"] = Column(digits=1)
    values[f"training, {unit}"] = seconds / second_count
    epochs = (setting.config or {}).get("measured_epochs", 10)
    title, figure = "Accuracy and time", "Each run's figure is that after its last epoch"
    if epochs > 1:
        figure = (
            f"Each run's figure is the median of its last {epochs} epochs (training loss: the last "
            "epoch)"
        )
    if setting.learner is not None:
        title, figure = "Validation classes and time", _validation(setting)
    note = (
        f"{figure}; mean ± sample standard deviation over seeds; training: by the clock, whatever "
        f"else the machine did{_geometry(setting)}."
    )
    table = table_of_means(title, note, values, columns, setting.runs())
    table.remarks.extend(_remarks(setting, results))
    return table


def times(results: pd.DataFrame) -> tuple[pd.Series, str, int]:
    """Returns the runs' seconds, and a unit for them with the seconds that it has."""
    seconds = results["train_seconds"].astype(float)
    longest = max(0, spread(seconds)["mean"].max())  # not a number, if there is none
    return seconds, *next((u, size) for least, size, u in _TIME_UNITS if longest >= least)


def _class_tables(results: pd.DataFrame) -> list[Table]:
    """Makes the table of each class's accuracy; none if it is not known, or classes are many."""
    if not {"classes", "class_accuracy"} <= {*results}:
        return []
    results = results.dropna(subset=["classes", "class_accuracy"])
    classes = [*results["classes"].iloc[0]] if len(results) else []
    if not 0 < len(classes) <= _MOST_CLASSES:
        return []
    values = pd.DataFrame([*results["class_accuracy"]], results.index)
    note = (
        "Percent of each class's validation images, after the last epoch; mean ± sample standard "
        "deviation over seeds."
    )
    columns = dict.fromkeys(values, Column("max", 1))
    by_method = table_of_means("Accuracy of each class", note, values, columns)
    rows = [
        [str(name), *(row[place] for row in by_method.rows)]
        for place, name in enumerate(classes, start=2)
    ]
    best = {(column - 2, row + 1) for row, column in by_method.best}
    header = ["class", *(row[0] for row in by_method.rows)]
    return [Table(by_method.title, header, rows, note, best=best)]


def comparison_tables(
    setting: Setting,
    title: str,
    values: pd.DataFrame,
    unit: str,
    references: Collection[str] = REFERENCES,
) -> list[Table]:
    """Makes a table of paired differences for each method that the others are compared with.

    ``values`` has a row a label and seed, and a column a measure. Of the tables' rows, each shares
    two seeds or more with the reference: one makes no difference.
    """
    note = (
        f"Difference seed by seed, {unit} (95 % interval of Student's t over the seeds, none where "
        "all are the same; of twenty such intervals, one leaves out zero by chance)."
    )
    rows_of = {label: values.loc[label] for label in setting.methods if label in values.index}
    several = sum(is_sage(setting.methods[label].name) for label in setting.runs(rows_of)) > 1
    tables = []
    for name in (*references, "sage") if several else references:
        reference = setting.find(name, rows_of)
        rows = []
        for label, own in rows_of.items() if reference in rows_of else ():
            pairs = [Difference.of(own[column], rows_of[reference][column]) for column in values]
            if label != reference and any(pair and len(pair.seeds) > 1 for pair in pairs):
                seeds = sorted({seed for pair in pairs if pair for seed in pair.seeds})
                texts = (str(p) if p and len(p.seeds) > 1 else NO_VALUE for p in pairs)
                rows.append([label, " ".join(map(str, seeds)), *texts])
        if rows:
            header = ["method", "seeds", *values]
            tables.append(Table(f"{title} less {reference}'s", header, rows, note))
    return tables


def _geometry(setting: Setting) -> str:
    """Says how images are shown, where the lines tell."""
    data = (setting.config or {}).get("data", {})
    if "crop_mode" not in data:
        return ""
    return (
        f"; images: {data['image_size']} pixels, crop_mode {data['crop_mode']}, crop_pct "
        f"{data['crop_pct']:g}, in training also train_crop_mode {data['train_crop_mode']}"
    )


def _validation(setting: Setting) -> str:
    """Says by what few-shot training chose its epoch."""
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


def _remarks(setting: Setting, results: pd.DataFrame) -> list[str]:
    """Lists what was odd about the runs, and which failed or diverged."""
    notes = results["notes"].dropna()
    remarks = [*dict.fromkeys(f"{note}" for of_run in notes for note in of_run)]
    broken = results["broken_images"].astype(float).max()
    if broken > 0:
        remarks.append(f"{broken:.0f} training images could not be read; others stood in for them")
    for label in setting.methods:
        for word, found in (("failed", setting.failed), ("diverged", setting.diverged)):
            of_label = sorted((seed, why) for (name, seed), why in found.items() if name == label)
            remarks += [f"{label}, seed {seed}, {word}: {why}" for seed, why in of_label]
    return remarks
