"""Accuracies on episodes of novel classes: which of them can be compared, and how."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.report.comparisons import REFERENCES
from harness.report.settings import Evaluation, MethodRuns, Setting
from harness.report.statistics import Difference, Spread
from harness.store import Line

EPISODE_REFERENCES = ("none", *REFERENCES)
"""Methods that accuracies of novel classes are compared with: does mixing carry over at all?"""
_DRAW_WORDS = {
    "queries": "{} queries",
    "episodes": "{:,} episodes",
    "episode_seed": "episode seed {}",
    "data": "images {}",
}


class Draw(NamedTuple):
    """What makes episodes the same ones, for each number of shots."""

    ways: int
    queries: int
    episodes: int
    episode_seed: int
    data: str
    """Fingerprint of the novel images."""


class Classifier(NamedTuple):
    """What sorts the queries of an episode, given the embeddings."""

    normalization: str
    name: str


# What is compared, where there is a choice, is settled before anyone has seen a figure.
_COMPARED = Classifier("cl2n", "centroid")


def draws(setting: Setting) -> list[Draw]:
    """All draws of episodes that a setting's runs were evaluated on."""
    found = dict.fromkeys(
        Draw(e.ways, e.queries, e.episodes, e.episode_seed, line["data"])
        for runs in setting.methods
        for e, lines in runs.episodes.items()
        for line in lines.values()
    )
    return sorted(found)


def draw_names(found: list[Draw]) -> dict[Draw, str]:
    """Names draws by their ways and by what else tells them apart."""
    words = [
        (name, text)
        for name, text in _DRAW_WORDS.items()
        if len({getattr(draw, name) for draw in found}) > 1
    ]
    return {
        draw: ", ".join(
            (f"{draw.ways}-way", *(text.format(getattr(draw, name)) for name, text in words))
        )
        for draw in found
    }


def evaluated(runs: MethodRuns, draw: Draw, shots: int, classifier: Classifier) -> dict[int, Line]:
    """The evaluations of a method's networks, by seed."""
    key = Evaluation(draw.ways, shots, draw.queries, draw.episodes, draw.episode_seed, *classifier)
    lines = runs.episodes.get(key, {})
    return {seed: line for seed, line in sorted(lines.items()) if line["data"] == draw.data}


def shots_and_classifiers(setting: Setting, draw: Draw) -> list[tuple[int, Classifier]]:
    """What the networks were evaluated with: few shots first, else in the lines' order."""
    found = dict.fromkeys(
        (e.shots, Classifier(e.normalization, e.classifier))
        for runs in setting.methods
        for e in runs.episodes
        if evaluated(runs, draw, e.shots, Classifier(e.normalization, e.classifier))
    )
    return sorted(found, key=lambda pair: pair[0])


def compared(setting: Setting, draw: Draw) -> tuple[list[int], Classifier]:
    """The shots and the one classifier that methods are compared by: a centroid's, after CL2N.

    Where networks were not evaluated so, a centroid after another normalisation, else the first
    classifier that they were evaluated with.
    """
    found = shots_and_classifiers(setting, draw)
    classifiers = dict.fromkeys(classifier for _, classifier in found)
    chosen = max(
        classifiers,
        key=lambda c: (c.name == _COMPARED.name, c.normalization == _COMPARED.normalization),
    )
    return [shots for shots, classifier in found if classifier == chosen], chosen


def accuracy(lines: Mapping[int, Line]) -> Spread | None:
    """Mean over seeds and their deviation; of one seed, half its interval over episodes."""
    if len(lines) == 1:
        (line,) = lines.values()
        return Spread(line["accuracy"], line["interval"])
    return Spread.of([line["accuracy"] for line in lines.values()])


def seed_by_seed(own: Mapping[int, Line], other: Mapping[int, Line]) -> Difference | None:
    """Points of accuracy between two methods, with an interval over seeds."""
    return Difference.of(*({s: line["accuracy"] for s, line in x.items()} for x in (own, other)))


def find(setting: Setting, method: str) -> MethodRuns | None:
    """The runs of a method that were evaluated, the first where it has several settings."""
    return next((r for r in setting.methods if r.method == method and r.episodes), None)


def references(setting: Setting) -> Iterable[MethodRuns]:
    """The methods that others are compared with, as far as they were evaluated."""
    return filter(None, (find(setting, name) for name in EPISODE_REFERENCES))
