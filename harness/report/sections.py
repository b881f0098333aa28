"""The report's contents: a section for each setting, then the cost of a step and the gallery."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.report.cells import Table
from harness.report.drawing import Styles
from harness.report.episodes import draw_names, draws
from harness.report.findings import findings
from harness.report.novel_tables import difference_table, novel_tables
from harness.report.overhead import Overhead, overhead_table, overheads
from harness.report.plots import (
    Picture,
    accuracy_pictures,
    gallery_picture,
    novel_picture,
    overhead_picture,
    robustness_pictures,
)
from harness.report.read import Lines
from harness.report.saliency_tables import agreement_tables, dynamics_tables
from harness.report.settings import Setting, settings
from harness.report.style import styles
from harness.report.tables import (
    accuracy_comparisons,
    accuracy_table,
    class_table,
    foreground_table,
    robustness_comparisons,
    robustness_table,
)


@dataclass(frozen=True)
class Part:
    """A table and the pictures that belong to it, or one of the two."""

    table: Table | None
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """What can be compared, under one heading."""

    title: str
    made_with: str
    """Devices and versions of the runs; empty if not known."""
    findings: list[str]
    parts: list[Part]


def sections(lines: Lines) -> list[Section]:
    """Makes the whole report; a method looks the same in all of its plots."""
    found, costs = settings(lines), overheads(lines.overhead)
    labels = {runs.label for setting in found for runs in setting.methods}
    looks = styles(labels.union(*(cost.methods for cost in costs)))
    made = [_section(setting, looks, costs) for setting in found]
    if costs:
        parts = []
        for cost in costs:
            picture = overhead_picture(cost, looks)
            parts.append(Part(overhead_table(cost), [picture] if picture else []))
        made.append(Section("Cost of a step", "", [], parts))
    if lines.galleries:
        pictures = [gallery_picture(content) for content in lines.galleries]
        made.append(Section("Pairs and their mixes", "", [], [Part(None, pictures)]))
    if lines.skipped:
        made.append(Section("Lines that were skipped", "", lines.skipped, []))
    return _with_names_of_their_own(made)


def _section(setting: Setting, looks: Styles, costs: Sequence[Overhead]) -> Section:
    parts = _novel_parts(setting, looks)
    if setting.trained():
        parts.append(Part(accuracy_table(setting), accuracy_pictures(setting, looks)))
    classes = class_table(setting)
    if classes:
        parts.append(Part(classes))
    if setting.learner is None:
        parts += map(Part, accuracy_comparisons(setting))
    robustness = robustness_table(setting)
    if robustness:
        parts.append(Part(robustness, robustness_pictures(setting, looks)))
        parts += map(Part, robustness_comparisons(setting))
    foreground = foreground_table(setting)
    if foreground:
        parts.append(Part(foreground))
    parts += map(Part, [*dynamics_tables(setting), *agreement_tables(setting)])
    return Section(setting.title, _made_with(setting), findings(setting, costs), parts)


def _novel_parts(setting: Setting, looks: Styles) -> list[Part]:
    parts = []
    for draw, name in draw_names(draws(setting)).items():
        first, *others = novel_tables(setting, draw, name)
        parts.append(Part(first, [novel_picture(setting, draw, name, looks)]))
        parts += map(Part, filter(None, [*others, difference_table(setting, draw, name)]))
    return parts


def _made_with(setting: Setting) -> str:
    runs = [run for methods in setting.methods for run in methods.results.values()]
    words = []
    for word, name in (("on", "device"), ("torch", "torch"), ("timm", "timm")):
        values = sorted({str(run[name]) for run in runs if name in run})
        if values:
            words.append(f"{word} {' and '.join(values)}")
    return ", ".join(words)


def _with_names_of_their_own(made: list[Section]) -> list[Section]:
    """Numbers the pictures whose name occurs more than once."""
    names = [
        picture.name for section in made for part in section.parts for picture in part.pictures
    ]
    counts = dict.fromkeys(names, 0)

    def named(picture: Picture) -> Picture:
        if names.count(picture.name) == 1:
            return picture
        counts[picture.name] += 1
        return replace(picture, name=f"{picture.name}-{counts[picture.name]}")

    return [
        replace(
            section,
            parts=[replace(part, pictures=[*map(named, part.pictures)]) for part in section.parts],
        )
        for section in made
    ]
