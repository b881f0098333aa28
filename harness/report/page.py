"""The report's contents in order, and its Markdown, HTML and files."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from harness.figures import CONFIDENCE, bullets, escaped
from harness.measures import measurements
from harness.measures.robustness import condition_name, pivot
from harness.methods.sage import is_sage
from harness.report import episodes, plots, tables
from harness.report.groups import Setting, labelled, method_of, settings
from harness.report.plots import Part, Styles
from harness.report.read import Lines
from harness.store import Line, replace_file

Costs = Sequence[Sequence[Line]]
"""Benchmarks by network, batch and device."""


@dataclass(frozen=True)
class Section:
    """What can be compared, under one heading."""

    title: str
    made_with: str
    """Devices and versions of the runs; empty if not known."""
    findings: list[str]
    parts: list[Part]


class _Comparison(NamedTuple):
    """Two methods' labels, and how far they are apart."""

    one: str
    other: str
    difference: tables.Difference
    where: str = ""
    """What was measured, if not top-1."""
    unit: str = "points"


def sections(lines: Lines) -> list[Section]:
    """Makes the report: a section a setting, the cost of a step, and the gallery.

    A method looks the same in all plots.
    """
    overhead = measurements()["overhead"]
    found = settings(lines.files)
    costs = overhead.groups(labelled(lines.files.get("overhead", [])))
    named = [label for setting in found for label in setting.methods]
    looks = plots.styles({*named, *(line["label"] for cost in costs for line in cost)})
    made = []
    for setting in found:
        parts, said = [*_parts(setting, looks)], _findings(setting, costs)
        made.append(Section(setting.title, _made_with(setting), said, parts))
    if costs:
        pictures = [plots.overhead_picture(cost, looks) for cost in costs]
        shown = zip(map(overhead.table, costs), pictures, strict=True)
        parts = [Part(table, [picture] if picture else []) for table, picture in shown]
        made.append(Section("Cost of a step", "", [], parts))
    if lines.galleries:
        part = Part(None, [*map(plots.gallery_picture, lines.galleries)])
        made.append(Section("Pairs and their mixes", "", [], [part]))
    if lines.skipped:
        made.append(Section("Lines that were skipped", "", lines.skipped, []))
    return _with_names_of_their_own(made)


def markdown(sections: Sequence[Section], pictures: bool) -> str:
    """Writes the report as Markdown, with links to its pictures or without."""
    blocks = ["# Is SAGE worth it?"]
    for section in sections:
        if not pictures and not section.findings and not any(p.table for p in section.parts):
            continue
        blocks.append(f"## {escaped(section.title)}")
        if section.made_with:
            blocks.append(f"Trained {escaped(section.made_with)}.")
        blocks.append(bullets(section.findings))
        for part in section.parts:
            blocks.append(part.table.text() if part.table else "")
            blocks += [f"![{escaped(p.alt)}]({p.name}.png)" for p in part.pictures if pictures]
    return "\n\n".join(filter(None, blocks))


def write(sections: Sequence[Section], out: Path) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and a PNG file a picture, and returns their paths.

    Each file replaces an older one at once, never half written.
    """
    pictures = [p for section in sections for part in section.parts for p in part.pictures]
    drawn = {p.name: p.png() for p in tqdm(pictures, desc="pictures", disable=None)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    uris = {name: f"data:image/png;base64,{b64encode(x).decode()}" for name, x in drawn.items()}
    page = environment.get_template("page.html.jinja").render(sections=sections, pictures=uris)
    files = {
        "report.html": page.encode(),
        "report.md": (markdown(sections, pictures=True) + "\n").encode(),
        **{f"{name}.png": content for name, content in drawn.items()},
    }
    for name, content in files.items():
        replace_file(out / name, content)
    return [out / name for name in files]


def _parts(setting: Setting, looks: Styles) -> Iterator[Part]:
    """Makes a setting's tables and pictures in the report's order."""
    yield from episodes.parts(setting, looks)
    if setting.trained:
        accuracy, *others = tables.accuracy_tables(setting)
        yield Part(accuracy, plots.accuracy_pictures(setting, looks))
        yield from map(Part, others)
    for name, measurement in measurements().items():
        lines = setting.lines.get(name, [])
        for group in measurement.groups(lines):
            first, options = group[0], {}
            if measurement.of == "runs":
                options["runs"] = setting.runs([line["label"] for line in group])
            table = measurement.table(group, **options)
            diverged = (first["label"], first["seed"]) in setting.diverged
            if measurement.of == "networks" and diverged:
                table.remarks.append("The network has diverged: its figures say nothing")
            robust = name == "robustness"
            yield Part(table, plots.robustness_pictures(lines, looks) if robust else [])
            if robust:
                values = pivot(lines)
                values.columns = [condition_name(*condition) for condition in values]
                unit = "points of top-1"
                yield from map(Part, tables.comparison_tables(setting, "Robustness", values, unit))


def _findings(setting: Setting, costs: Costs) -> list[str]:
    """Says of SAGE against each other method, and of its variants against it, who is ahead.

    It is ahead or behind only if the 95 % interval of the difference seed by seed leaves out zero,
    and still does so after Holm's correction for the number of comparisons. Of few-shot runs the
    accuracies are those of novel classes, with one classifier. The costs of a step are those of the
    benchmarks; where there is none of both methods with this network, there is no word of it.
    """
    found = [*_comparisons(setting)]
    ranked = [comparison.difference for comparison in found if comparison.difference.ranks]
    corrected = iter(tables.holm([difference.p_value for difference in ranked]))
    sentences, told = [], set()
    standings: dict[str, list[str]] = {}
    for comparison in found:
        p_value = next(corrected) if comparison.difference.ranks else None
        if comparison.one == "sage" and p_value is not None and not comparison.where:
            standings.setdefault(_standing(comparison, p_value), []).append(comparison.other)
        cost = "" if comparison[:2] in told else _cost(setting, comparison, costs)
        told.add(comparison[:2])
        sentences.append(f"{comparison.where}{_verdict(comparison, p_value, len(ranked))}{cost}.")
    if sum(map(len, standings.values())) > 1:
        sentences.insert(0, _answer(standings))
    if len(ranked) > 1:
        sentences.append(
            "Of several comparisons one may come out by chance: Holm's correction keeps the risk "
            f"of any such verdict among these {len(ranked)} below 5 %."
        )
    return sentences


def _comparisons(setting: Setting) -> Iterator[_Comparison]:
    """Compares SAGE with its peers and its variants with it; few-shot runs on novel classes."""
    if setting.learner is not None:
        yield from (_Comparison(*compared) for compared in episodes.comparisons(setting))
        return
    results = setting.results()
    known = {x: results.loc[x]["top1"] for x in setting.methods if x in results.index}
    sage = setting.find("sage", known)
    variants = [x for x in known if x != sage and is_sage(setting.methods[x].name)]
    pairs = [(sage, other) for other in known if other != sage and other not in variants]
    pairs += [(variant, sage) for variant in variants]
    for one, other in pairs if sage in known else ():
        difference = tables.Difference.of(known[one], known[other])
        if difference:
            yield _Comparison(one, other, difference, unit="points of top-1")


def _standing(comparison: _Comparison, p_value: float) -> str:
    """Says where the first method stands, by the interval and the corrected p-value."""
    low, high = comparison.difference.interval or (0.0, 0.0)
    if low <= 0 <= high or p_value >= 1 - CONFIDENCE:
        return "level with"
    return "ahead of" if low > 0 else "behind"


def _answer(standings: dict[str, list[str]]) -> str:
    """Answers the report's title in one sentence."""
    count = sum(map(len, standings.values()))
    told = [
        f"{standing} {len(standings[standing])} ({', '.join(standings[standing])})"
        for standing in ("ahead of", "behind", "level with")
        if standing in standings
    ]
    return f"Of {count} methods, sage is {', '.join(told)}."


def _verdict(comparison: _Comparison, p_value: float | None, ranked: int) -> str:
    one, other, difference, _, unit = comparison
    by, count = f"{difference.mean:+.2f} {unit}", len(difference.seeds)
    if difference.interval is None or p_value is None:
        seeds = f"{count} seed{'s' if count > 1 else ''}"
        why = f"{seeds}; fewer than {tables.LEAST_SEEDS} rank nothing"
        if count >= tables.LEAST_SEEDS:
            why = f"the same with each of {seeds}, which leaves no interval to rank by"
        return f"{one} less {other}: {by} ({why})"
    low, high = difference.interval
    alone, together = not low <= 0 <= high, p_value < 1 - CONFIDENCE
    standing = _standing(comparison, p_value)
    verdict = f"{one} is {standing} {other}"
    if standing == "level with":
        verdict = f"{one} and {other} cannot be told apart"
    around = f"95 % interval {low:+.2f} to {high:+.2f} over {count} seeds"
    if alone and ranked > 1:
        word = "still so" if together else "it leaves out zero, but not"
        around += f"; {word} after Holm's correction for {ranked} comparisons"
    return f"{verdict}: {by} ({around})"


def _cost(setting: Setting, comparison: _Comparison, costs: Costs) -> str:
    """Says how many times as long a step takes with one method as with the other.

    Alpha may be another one: it changes what is drawn, not what is computed.
    """
    ratios = []
    for cost in costs:
        steps: dict[Any, float] = {("none", ()): 1.0}
        for line in cost:
            if line["part"] == "step" and line.get("ratio") is not None:
                name, own = method_of(line)
                steps[name, own[1:]] = line["ratio"]
        methods = (setting.methods[label] for label in (comparison.one, comparison.other))
        one, other = (steps.get((name, own[1:])) for name, own in methods)
        if one and other and cost[0].get("model") == (setting.config or {}).get("model"):
            ratios.append(one / other)
    if not ratios:
        return ""
    words = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
    return f"; its step takes {' to '.join(words)} times as long"


def _made_with(setting: Setting) -> str:
    """Names the devices and versions of the runs."""
    words = []
    for word, name in (("on", "device"), ("torch", "torch"), ("timm", "timm")):
        runs = setting.lines.get("results", [])
        values = sorted({str(run[name]) for run in runs if name in run})
        words += [f"{word} {' and '.join(values)}"] if values else []
    return ", ".join(words)


def _with_names_of_their_own(made: list[Section]) -> list[Section]:
    """Numbers the pictures whose name occurs more than once."""
    pictures = [part.pictures for section in made for part in section.parts]
    counts = Counter(picture.name for of_part in pictures for picture in of_part)
    numbers = {name: count(1) for name in counts}
    for of_part in pictures:
        of_part[:] = [
            replace(p, name=f"{p.name}-{next(numbers[p.name])}") if counts[p.name] > 1 else p
            for p in of_part
        ]
    return made
