"""A table of accuracies on episodes, for the terminal."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from harness.figures import markdown_table


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table of lines of ``episodes.jsonl``: methods down, classifiers across.

    With several seeds a cell is their mean and standard deviation, with one the accuracy and its
    95 % interval over episodes.
    """
    columns, rows = {}, {}
    for line in lines:
        column = (line["shots"], line["normalization"], line["classifier"])
        columns[column] = f"{line['shots']}-shot {line['classifier']} {line['normalization']}"
        rows.setdefault(line["method"], {}).setdefault(column, []).append(line)
    cells = [
        [method, *(_cell(found.get(column, [])) for column in columns)]
        for method, found in rows.items()
    ]
    return markdown_table(["method", *columns.values()], cells)


def _cell(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return ""
    accuracies = [line["accuracy"] for line in lines]
    spread = stdev(accuracies) if len(lines) > 1 else lines[0]["interval"]
    return f"{fmean(accuracies):.2f} ± {spread:.2f}"
