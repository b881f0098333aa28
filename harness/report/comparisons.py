"""Differences between methods seed by seed, a table for each that the others are compared with."""

from collections.abc import Callable, Sequence

from harness.figures import NO_VALUE
from harness.methods.sage import is_sage
from harness.report.cells import Cell, Table, make_table, seeds_text
from harness.report.settings import MethodRuns, Setting
from harness.report.statistics import Difference

REFERENCES = ("mixup", "cutmix")
"""The methods that the others are compared with; SAGE's variants also with SAGE."""

Measure = tuple[str, Callable[[MethodRuns], dict[int, float]]]
"""What a measure is called, and what takes a method's figures by seed."""

_NOTE = (
    "Difference seed by seed, {} (95 % interval of Student's t over the seeds, none where all are "
    "the same; of twenty such intervals, one leaves out zero by chance)."
)


def comparison_tables(
    setting: Setting, title: str, measures: Sequence[Measure], unit: str
) -> list[Table]:
    """Makes a table for each method that the others are compared with.

    Args:
        setting: The runs.
        title: What the measures are, in a word.
        measures: A column each.
        unit: What the differences are in.

    Returns:
        Tables with a row for each method that shares seeds with the one it is compared with: one
        seed makes no difference.
    """
    tables = []
    for reference in _references(setting):
        methods = [
            runs
            for runs in setting.trained()
            if runs is not reference
            and any(len(_shared(runs, reference, measure)) > 1 for measure in measures)
        ]
        if methods:
            columns = [
                _seeds(methods, reference, measures),
                *(_differences(methods, reference, measure) for measure in measures),
            ]
            tables.append(
                make_table(
                    f"{title} less {reference.label}'s", methods, columns, _NOTE.format(unit)
                )
            )
    return tables


def _seeds(
    methods: list[MethodRuns], reference: MethodRuns, measures: Sequence[Measure]
) -> tuple[str, list[Cell]]:
    shared = [
        set().union(*(_shared(runs, reference, measure) for measure in measures))
        for runs in methods
    ]
    return "seeds", [Cell(seeds_text(seeds)) for seeds in shared]


def _differences(
    methods: list[MethodRuns], reference: MethodRuns, measure: Measure
) -> tuple[str, list[Cell]]:
    name, of = measure
    differences = [Difference.of(of(runs), of(reference)) for runs in methods]
    return name, [Cell(d.text() if d and d.seeds > 1 else NO_VALUE) for d in differences]


def _shared(runs: MethodRuns, reference: MethodRuns, measure: Measure) -> set[int]:
    _, of = measure
    return of(runs).keys() & of(reference).keys()


def _references(setting: Setting) -> list[MethodRuns]:
    variants = [runs for runs in setting.trained() if is_sage(runs.method)]
    names = (*REFERENCES, "sage") if len(variants) > 1 else REFERENCES
    found = (setting.find(name) for name in names)
    return [runs for runs in found if runs is not None]
