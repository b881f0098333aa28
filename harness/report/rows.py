"""The runs as rows of one flat table, for pandas, R or a spreadsheet."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.report.groups import Setting, completed, settings
from harness.report.read import Lines
from harness.store import replace_file

_FIRST = (
    *("setting", "label", "method", "seed", "dataset", "dataset_name", "model", "epochs"),
    *("train_size", "validation_size", "diverged", "top1", "balanced", "top5", "nll", "ece"),
    *("top1_last", "balanced_last", "top5_last", "nll_last", "ece_last", "top1_running"),
    *("best_epoch", "train_loss", "step_ms", "train_seconds", "broken_images", "finished"),
    *("device", "torch", "timm"),
)
"""The columns before the settings, as far as the lines have them."""


def write_rows(lines: Lines, out: Path) -> list[Path]:
    """Writes ``results.csv`` and returns its path; no file where there is no result."""
    table = rows(settings(lines.files))
    path = out / "results.csv"
    if table.empty:
        return []
    replace_file(path, table.to_csv(index=False).encode())
    return [path]


def rows(found: Sequence[Setting]) -> pd.DataFrame:
    """Makes a row a run in the tables' order: figures, versions, and settings by ``config.``.

    "setting" is the heading and "label" the row's name in the report's tables. "diverged" says why
    a run's figures count for nothing, and is empty for all others.
    """
    runs = []
    for setting in found:
        order = [*setting.methods]
        lines = sorted(setting.finished, key=lambda x: (order.index(x["label"]), x["seed"]))
        for line in lines:
            why = setting.diverged.get((line["label"], line["seed"]))
            flat = {name: line[name] for name in _FIRST if name in line}
            told = {"setting": setting.title, "diverged": why}
            runs.append({**flat, **told, "config": completed(line["config"])})
    table = pd.json_normalize(runs)
    first = [name for name in _FIRST if name in table]
    return table[[*first, *(name for name in table if name.startswith("config."))]]
