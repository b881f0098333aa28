"""The answer in a sentence: SAGE against each peer, accuracy and cost."""

from statistics import median

from harness.methods.sage import is_sage
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


def findings(setting: Setting) -> list[str]:
    """Says of SAGE against each other method, and of its variants against it, who is ahead.

    It is ahead or behind only if the 95 % interval of the difference seed by seed leaves out zero.
    Of few-shot runs the accuracies are those of novel classes, with one classifier.
    """
    if setting.learner is not None:
        return _novel_findings(setting)
    sage = setting.find("sage")
    if sage is None:
        return []
    others = [runs for runs in setting.trained() if runs is not sage]
    variants = [runs for runs in others if is_sage(runs.method)]
    compared = [(sage, peer) for peer in others if peer not in variants]
    compared += [(variant, sage) for variant in variants]
    sentences = []
    for one, other in compared:
        difference = Difference.of(one.values("top1"), other.values("top1"))
        if difference:
            verdict = _verdict(one, other, difference, "points of top-1")
            sentences.append(f"{verdict}{_cost(one, other)}.")
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


def _verdict(one: MethodRuns, other: MethodRuns, difference: Difference, unit: str) -> str:
    by = f"{difference.mean:+.2f} {unit}"
    if difference.interval is None:
        return f"{one.label} less {other.label}: {by} (one seed, which ranks nothing)"
    low, high = difference.interval
    verdict = f"{one.label} and {other.label} cannot be told apart"
    if low > 0:
        verdict = f"{one.label} is ahead of {other.label}"
    elif high < 0:
        verdict = f"{one.label} is behind {other.label}"
    spread = f"95 % interval {low:+.2f} to {high:+.2f} over {difference.pairs} seeds"
    return f"{verdict}: {by} ({spread})"


def _cost(one: MethodRuns, other: MethodRuns) -> str:
    steps = [[*runs.values("step_ms").values()] for runs in (one, other)]
    if not all(steps):
        return ""
    return f"; its step takes {median(steps[0]) / median(steps[1]):.2f} times as long"
