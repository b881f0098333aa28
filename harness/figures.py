"""Figures as text: numbers, intervals, and tables in Markdown."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

NO_VALUE = "-"
CONFIDENCE = 0.95
Runs = Mapping[str, Mapping[int, str]]
"""What became of each run, by its row's name and its seed: "failed", "diverged", else ""."""

_SPECIAL = re.compile(r"[\\`*~|\[\]]|(?<!\w)_|_(?!\w)")  # within a word, _ stands for itself


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of each row names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    """Says what the figures are."""
    remarks: list[str] = field(default_factory=list)
    """Say what went wrong, a line each."""
    best: set[tuple[int, int]] = field(default_factory=set)
    """Rows and columns of the cells in bold."""

    def __str__(self) -> str:
        """Writes the cells, the note and the remarks as Markdown."""
        cells = [[*map(escaped, row)] for row in self.rows]
        for row, column in self.best:
            cells[row][column] = f"**{cells[row][column]}**"
        table = markdown_table([*map(escaped, self.header)], cells)
        return "\n\n".join(filter(None, [table, escaped(self.note), bullets(self.remarks)]))

    def text(self) -> str:
        """Writes the table as Markdown, below its title."""
        return f"### {escaped(self.title)}\n\n{self}"


class Column(NamedTuple):
    """A column of means: its digits, and whether "max" or "min" is in bold."""

    best: str | None = None
    digits: int = 2


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a table of cells that are Markdown already, a line a row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """Writes a Markdown list of texts."""
    return "\n".join(f"- {escaped(line)}" for line in lines)


def escaped(text: str) -> str:
    """Takes from a text what Markdown or HTML would read as markup, and its line breaks."""
    text = html.escape(" ".join(text.split()), quote=False)
    return _SPECIAL.sub(r"\\\g<0>", text)


def is_number(value: Any) -> bool:
    """Tells a finite number from one that is not finite, or null in a file of results."""
    return isinstance(value, int | float) and math.isfinite(value)


def figure(value: Any, digits: int) -> str:
    """Writes a number; a dash stands for one that is missing or not finite."""
    return f"{value:.{digits}f}" if is_number(value) else NO_VALUE


def plus_minus(mean: Any, deviation: Any, digits: int = 2) -> str:
    """Writes a mean with its deviation, if it has one."""
    around = f" ± {deviation:.{digits}f}" if is_number(deviation) else ""
    return f"{figure(mean, digits)}{around}"


def half_width(standard_error: float, count: int) -> float:
    """Returns half of the width of Student's 95 % interval of a mean over ``count`` values."""
    from scipy.stats import t as student  # slow to import, and --help must not wait for it

    return float(student.ppf((1 + CONFIDENCE) / 2, count - 1) * standard_error)


def spread(values: "pd.Series", alone: "pd.Series | None" = None) -> "pd.DataFrame":
    """Takes mean and sample standard deviation over the seeds.

    ``values`` has an index with a level "seed"; where there is one seed, ``alone`` stands for the
    deviation.
    """
    levels = [name for name in values.index.names if name != "seed"]
    grouped = values.dropna().astype(float).groupby(level=levels, sort=False)
    found = grouped.agg(mean="mean", deviation="std")
    if alone is not None:
        found["deviation"] = found["deviation"].fillna(alone.groupby(level=levels).first())
    return found


def table_of_means(
    title: str,
    note: str,
    values: "pd.DataFrame",
    columns: Mapping[Any, Column],
    runs: Runs | None = None,
    alone: "pd.DataFrame | None" = None,
) -> Table:
    """Makes a table with a row a label: its seeds, then means and spreads over them.

    ``values`` has an index of labels and seeds; a seed without all values is there in part.
    ``columns`` are shown, ``runs`` have a row each, and ``alone`` is ``spread``'s.
    """
    runs = runs or {}
    labels = dict.fromkeys([*runs, *values.index.get_level_values("label")])
    rows = [[label, _seeds(label, values, runs)] for label in labels]
    best = set()
    for place, (name, column) in enumerate(columns.items(), start=2):
        spreads = spread(values[name], None if alone is None else alone[name])
        means = spreads["mean"].map(lambda mean, column=column: round(mean, column.digits))
        top = means.agg(column.best) if column.best and len(means) > 1 else None
        for number, row in enumerate(rows):
            known = row[0] in spreads.index
            row.append(plus_minus(*spreads.loc[row[0]], column.digits) if known else NO_VALUE)
            if known and means[row[0]] == top:
                best.add((number, place))
    return Table(title, ["method", "seeds", *map(str, columns)], rows, note, best=best)


def _seeds(label: str, values: "pd.DataFrame", runs: Runs) -> str:
    """Lists a row's seeds by what became of them; those of other rows should be there, too."""
    whole = values.notna().all(axis=1)
    expected = {*values.index.get_level_values("seed")}.union(*runs.values())
    words = ("", "in part", "diverged", "failed", "missing")
    found: dict[str, list[int]] = {word: [] for word in words}
    for seed in sorted(expected):
        if (label, seed) in whole.index:
            found["" if whole[label, seed] else "in part"].append(seed)
        else:
            found[runs.get(label, {}).get(seed) or "missing"].append(seed)
    parts = (" ".join([word, *map(str, seeds)]).strip() for word, seeds in found.items() if seeds)
    return ", ".join(parts)
