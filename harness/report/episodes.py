"""Few-shot's lines: accuracies on episodes of novel classes, and the comparisons between them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from harness.figures import Column, Table, spread, table_of_means
from harness.report.groups import Setting
from harness.report.plots import Part, Styles, novel_picture
from harness.report.tables import REFERENCES, Difference, comparison_tables
from harness.store import RUN

_NUMBER = (int, float)
HOLDS = {
    **RUN,
    **dict.fromkeys(("ways", "shots", "queries", "episodes", "episode_seed"), int),
    **dict.fromkeys(("normalization", "classifier", "data"), str),
    **dict.fromkeys(("accuracy", "interval"), _NUMBER),
}
"""What each line holds."""
_REFERENCES = ("none", *REFERENCES)  # none, too: does mixing carry over at all?
_DRAW = {
    "ways": "{}-way",
    "queries": "{} queries",
    "episodes": "{:,} episodes",
    "episode_seed": "episode seed {}",
    "data": "images {}",
}
"""What makes episodes the same ones, for each number of shots, in words."""
_MOST_COLUMNS = 8  # of accuracies; more make a table of their own


@dataclass(frozen=True)
class Draw:
    """Evaluations on the same episodes."""

    name: str
    note: str
    accuracy: pd.DataFrame
    """By label and seed down; by normalisation, shots and classifier across."""
    interval: pd.DataFrame
    """Half of each accuracy's 95 % interval over the episodes."""

    def compared(self) -> tuple[str, pd.DataFrame, pd.DataFrame]:
        """Returns the classifier that methods are compared by; its accuracies, intervals by shots.

        It is a centroid's after CL2N, settled before anyone has seen a figure; where networks were
        not evaluated so, a centroid after another normalisation, else the first classifier.
        """
        used = max(
            ((normalization, name) for normalization, _, name in self.accuracy),
            key=lambda pair: (pair[1] == "centroid", pair[0] == "cl2n"),
        )
        columns = [column for column in self.accuracy if column[::2] == used]
        names = [f"{shots}-shot" for _, shots, _ in columns]
        chosen = (x[columns].set_axis(names, axis=1) for x in (self.accuracy, self.interval))
        return f"{used[1]}, {used[0]}", *(x.dropna(how="all") for x in chosen)


def draws(setting: Setting) -> list[Draw]:
    """Sorts a setting's evaluations by their episodes; the later of two lines counts."""
    lines = setting.lines.get("episodes")
    if not lines:
        return []
    frame, found = pd.DataFrame(lines), []
    told = [name for name in _DRAW if name == "ways" or frame[name].nunique() > 1]
    with_what, run = ["normalization", "shots", "classifier"], ["label", "seed"]
    for draw, of_draw in frame.groupby([*_DRAW]):
        values = dict(zip(_DRAW, draw, strict=True))
        last = of_draw.drop_duplicates([*run, *with_what], keep="last")
        columns = of_draw[with_what].drop_duplicates().sort_values("shots", kind="stable")
        accuracy, interval = (
            last.pivot(index=run, columns=with_what, values=name)[
                [*columns.itertuples(index=False, name=None)]
            ]
            for name in ("accuracy", "interval")
        )
        name = ", ".join(_DRAW[word].format(values[word]) for word in told)
        note = (
            f"Accuracy in percent of {values['ways']}-way episodes of the novel classes, which "
            "neither training nor the choice of the epoch has seen: "
            f"{values['episodes']:,} episodes, the same for every network, with "
            f"{values['queries']} queries a class"
        )
        found.append(Draw(name, note, accuracy, interval))
    return found


def parts(setting: Setting, looks: Styles) -> Iterator[Part]:
    """Makes the tables of novel classes with their picture, and the comparisons."""
    for draw in draws(setting):
        first, *others = _tables(setting, draw)
        used, chosen, alone = draw.compared()
        unit = f"in points, with the classifier {used.replace(', ', ' after ')}"
        title = f"Novel classes, {draw.name},"
        others += comparison_tables(setting, title, chosen, unit, _REFERENCES)
        order = [label for label in setting.methods if label in chosen.index]
        panels = {shots: spread(chosen[shots], alone[shots]).reindex(order) for shots in chosen}
        panels = {shots: rows.dropna(subset="mean") for shots, rows in panels.items()}
        title = f"Novel classes, {draw.name} ({used}); bars: ± of the table"
        yield Part(first, [novel_picture(title, panels, looks)])
        yield from map(Part, others)


def comparisons(setting: Setting) -> Iterator[tuple[str, str, Difference, str]]:
    """Compares each of SAGE's variants with the references: labels, difference, and where."""
    for draw in draws(setting):
        used, chosen, _ = draw.compared()
        known = {label: chosen.loc[label] for label in setting.methods if label in chosen.index}
        others = [x for x in (setting.find(name, known) for name in _REFERENCES) if x in known]
        for sage in (label for label in known if setting.methods[label].name == "sage"):
            for other in others:
                for shots in chosen:
                    difference = Difference.of(known[sage][shots], known[other][shots])
                    if difference:
                        yield sage, other, difference, f"{draw.name}, {shots} ({used}): "


def _tables(setting: Setting, draw: Draw) -> Iterator[Table]:
    """Makes as many tables as keep each narrow: of a normalisation, or of one and of its shots."""
    normalizations = [*dict.fromkeys(column[0] for column in draw.accuracy)]
    runs = setting.runs(draw.accuracy.index.unique("label"))
    for normalization in normalizations:
        columns = [column for column in draw.accuracy if column[0] == normalization]
        words = ["Novel classes", draw.name, *([normalization] if len(normalizations) > 1 else [])]
        tables = {"": columns}
        if len(columns) > _MOST_COLUMNS:
            tables = {}
            for column in columns:
                tables.setdefault(f"{column[1]}-shot", []).append(column)
        for shots, shown in tables.items():
            names = [f"{column[1]}-shot {column[2]}" for column in shown]
            values, alone = (
                x[shown].set_axis(names, axis=1) for x in (draw.accuracy, draw.interval)
            )
            values = values.dropna(how="all")
            note = f"{draw.note}; normalisation {normalization}; {_spreads(values)}."
            title = ", ".join(filter(None, [*words, shots]))
            columns_shown = dict.fromkeys(names, Column("max"))
            yield table_of_means(title, note, values, columns_shown, runs, alone)


def _spreads(values: pd.DataFrame) -> str:
    """Says what ± is: over seeds, or where there is but one, over episodes."""
    counts = values.groupby(level="label").count()
    several, single = (counts > 1).any(axis=None), (counts == 1).any(axis=None)
    words = ["mean ± sample standard deviation over seeds"] if several else []
    words += (
        [f"{'of one seed, ' if several else ''}± 95 % interval over episodes"] if single else []
    )
    return "; ".join(words)
