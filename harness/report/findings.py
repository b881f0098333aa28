"""The answer in a sentence: SAGE against each peer, accuracy and cost."""

from statistics import median

from harness.report.episodes import (
    compared,
    draw_names,
    draws,
    evaluated,
    references,
    seed_by_seed,
)
from harness.report.settings import MethodRuns, Setting
from harness.report.statistics import Difference
from harness.report.tables import REFERENCES


def findings(setting: Setting) -> list[str]:
    """Says of SAGE, for each peer, whether it is ahead, by how much, and what its step takes.

    It is ahead or behind only if the 95 % interval of the difference seed by seed leaves out zero.
    Of few-shot runs the accuracies are those of novel classes, with one classifier.
    """
    if setting.learner is not None:
        return _novel_findings(setting)
    peers = [runs for runs in (setting.find(name) for name in REFERENCES) if runs]
    sentences = []
    for sage in _sages(setting):
        for peer in peers:
            difference = Difference.of(sage.values("top1"), peer.values("top1"))
            if difference:
                verdict = _verdict(sage, peer, difference, "points of top-1")
                sentences.append(f"{verdict}{_cost(sage, peer)}.")
    return sentences


def _novel_findings(setting: Setting) -> list[str]:
    sentences = []
    for draw, name in draw_names(draws(setting)).items():
        chosen, classifier = compared(setting, draw)
        used = f"{classifier.name}, {classifier.normalization}"
        for sage in _sages(setting):
            for peer in references(setting):
                cost = _cost(sage, peer)
                for shots in chosen:
                    lines = (evaluated(runs, draw, shots, classifier) for runs in (sage, peer))
                    difference = seed_by_seed(*lines)
                    if difference:
                        verdict = _verdict(sage, peer, difference, "points")
                        sentences.append(f"{name}, {shots}-shot ({used}): {verdict}{cost}.")
                        cost = ""
    return sentences


def _sages(setting: Setting) -> list[MethodRuns]:
    return [runs for runs in setting.methods if runs.method == "sage"]


def _verdict(sage: MethodRuns, peer: MethodRuns, difference: Difference, unit: str) -> str:
    by = f"{difference.mean:+.2f} {unit}"
    if difference.interval is None:
        return f"{sage.label} less {peer.label}: {by} (one seed, which ranks nothing)"
    low, high = difference.interval
    verdict = f"{sage.label} and {peer.label} cannot be told apart"
    if low > 0:
        verdict = f"{sage.label} is ahead of {peer.label}"
    elif high < 0:
        verdict = f"{sage.label} is behind {peer.label}"
    spread = f"95 % interval {low:+.2f} to {high:+.2f} over {difference.pairs} seeds"
    return f"{verdict}: {by} ({spread})"


def _cost(sage: MethodRuns, peer: MethodRuns) -> str:
    steps = [[*runs.values("step_ms").values()] for runs in (sage, peer)]
    if not all(steps):
        return ""
    return f"; its step takes {median(steps[0]) / median(steps[1]):.2f} times as long"
