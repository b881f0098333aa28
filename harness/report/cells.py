"""What tables are made of: cells, columns of means and spreads, and the column of the seeds."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from harness.figures import NO_VALUE
from harness.report.settings import MethodRuns
from harness.report.statistics import Spread

Best = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Cell:
    """One cell's text; the best of its column is shown in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a header; the first cell of each row names the row."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str
    """What the figures are."""
    remarks: list[str] = field(default_factory=list)
    """A line each: what went wrong."""


def make_table(
    title: str,
    methods: list[MethodRuns],
    columns: list[tuple[str, list[Cell]]],
    note: str,
    remarks: list[str] | None = None,
) -> Table:
    """Makes a table with a row a method of columns that hold a cell a method."""
    rows = [
        [Cell(runs.label), *(cells[row] for _, cells in columns)]
        for row, runs in enumerate(methods)
    ]
    return Table(title, ["method", *(name for name, _ in columns)], rows, note, remarks or [])


def seeds_column(
    methods: list[MethodRuns], done: list[set[int]], begun: list[set[int]] | None = None
) -> tuple[str, list[Cell]]:
    """Makes the column of the seeds: a seed of one method should be there for every method."""
    begun = begun or done
    expected = set().union(*begun, *(runs.seeds() for runs in methods))
    cells = []
    for runs, whole, some in zip(methods, done, begun, strict=True):
        failed, diverged = set(runs.failures) - some, set(runs.diverged)
        missing = expected - some - failed - diverged
        cells.append(Cell(seeds_text(whole, some - whole, diverged, failed, missing)))
    return "seeds", cells


def seeds_text(
    done: Collection[int],
    in_part: Collection[int] = (),
    diverged: Collection[int] = (),
    failed: Collection[int] = (),
    missing: Collection[int] = (),
) -> str:
    """Lists seeds by what became of them."""
    parts = (
        ("", done),
        ("in part ", in_part),
        ("diverged ", diverged),
        ("failed ", failed),
        ("missing ", missing),
    )
    return ", ".join(
        word + " ".join(str(seed) for seed in sorted(seeds)) for word, seeds in parts if seeds
    )


def column(
    title: str, best: Best | None, values: list[list[float]], digits: int = 2
) -> tuple[str, list[Cell]]:
    """Makes a column of means and spreads; ``best`` picks the mean that is shown in bold."""
    return spread_column(title, best, [Spread.of(of_one) for of_one in values], digits)


def spread_column(
    title: str, best: Best | None, spreads: list[Spread | None], digits: int = 2
) -> tuple[str, list[Cell]]:
    """Makes a column of spreads, as :func:`column` does."""
    means = [round(s.mean, digits) for s in spreads if s and math.isfinite(s.mean)]
    top = best(means) if best and len(means) > 1 else None
    return title, [
        Cell(s.text(digits), round(s.mean, digits) == top) if s else Cell(NO_VALUE) for s in spreads
    ]
