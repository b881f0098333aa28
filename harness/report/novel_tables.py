"""The tables of novel classes: accuracies on episodes, and differences between methods."""

from collections.abc import Iterator

from harness.figures import NO_VALUE
from harness.report.cells import (
    Cell,
    Table,
    make_table,
    seeds_column,
    spread_column,
)
from harness.report.episodes import (
    Classifier,
    Draw,
    accuracy,
    compared,
    evaluated,
    references,
    seed_by_seed,
    shots_and_classifiers,
)
from harness.report.settings import Setting
from harness.store import Line

_MOST_COLUMNS = 8  # of accuracies; more make a table of their own


def novel_tables(setting: Setting, draw: Draw, name: str) -> list[Table]:
    """Accuracies on novel classes, in as many tables as keep each narrow.

    Args:
        setting: The runs.
        draw: The episodes.
        name: What tells the draw from others.
    """
    groups: dict[str, dict[str, list[tuple[int, Classifier]]]] = {}
    for shots, classifier in shots_and_classifiers(setting, draw):
        columns = groups.setdefault(str(classifier.normalization), {})
        columns.setdefault(f"{shots}-shot", []).append((shots, classifier))
    tables = []
    for normalization, by_shots in groups.items():
        words = ["Novel classes", name, *([normalization] if len(groups) > 1 else [])]
        if sum(map(len, by_shots.values())) > _MOST_COLUMNS:
            for shots, columns in by_shots.items():
                tables.append(_accuracies(setting, draw, columns, ", ".join([*words, shots])))
        else:
            columns = [column for group in by_shots.values() for column in group]
            tables.append(_accuracies(setting, draw, columns, ", ".join(words)))
    return tables


def difference_table(setting: Setting, draw: Draw, name: str) -> Table | None:
    """Differences between methods seed by seed; None if no two of them share two seeds."""
    chosen, classifier = compared(setting, draw)
    pairs = [
        (f"{shots}-shot less {other.label}'s, points", shots, other)
        for shots in chosen
        for other in references(setting)
        if evaluated(other, draw, shots, classifier)
    ]
    rows, several = [], False
    for runs in setting.methods:
        differences = [
            None
            if runs is other
            else seed_by_seed(*(evaluated(r, draw, shots, classifier) for r in (runs, other)))
            for _, shots, other in pairs
        ]
        several |= any(d is not None and d.seeds > 1 for d in differences)
        if any(differences):
            rows.append(
                [Cell(runs.label), *(Cell(d.text() if d else NO_VALUE) for d in differences)]
            )
    if not several:
        return None
    note = (
        f"Normalisation {classifier.normalization}, classifier {classifier.name}. Difference seed "
        "by seed (95 % interval of Student's t over seeds, none where all are the same)."
    )
    header = ["method", *(title for title, _, _ in pairs)]
    return Table(f"Methods compared on novel classes, {name}", header, rows, note)


def _accuracies(
    setting: Setting, draw: Draw, columns: list[tuple[int, Classifier]], title: str
) -> Table:
    methods = [runs for runs in setting.methods if runs.seeds() or runs.episodes]
    lines = [[evaluated(runs, draw, *column) for column in columns] for runs in methods]
    shown = [
        seeds_column(
            methods,
            [set.intersection(*map(set, row)) for row in lines],
            [set().union(*row) for row in lines],
        ),
        *(
            spread_column(
                f"{shots}-shot {classifier.name}", max, [accuracy(row[index]) for row in lines]
            )
            for index, (shots, classifier) in enumerate(columns)
        ),
    ]
    note = (
        f"Accuracy in percent of {draw.ways}-way episodes of the novel classes, which neither "
        f"training nor the choice of the epoch has seen: {draw.episodes:,} episodes, the same for "
        f"every network, with {draw.queries} queries a class; normalisation "
        f"{columns[0][1].normalization}; {'; '.join(_spreads(lines))}."
    )
    return make_table(title, methods, shown, note)


def _spreads(lines: list[list[dict[int, Line]]]) -> Iterator[str]:
    """Says what ± is: over seeds, or where there is but one, over episodes."""
    counts = {len(cell) for row in lines for cell in row}
    if max(counts) > 1:
        yield "mean ± sample standard deviation over seeds"
    if 1 in counts:
        yield f"{'of one seed, ' if max(counts) > 1 else ''}± 95 % interval over episodes"
