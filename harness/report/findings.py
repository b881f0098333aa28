"""The answer in a sentence: SAGE against each peer, accuracy and cost."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.methods.sage import is_sage
from harness.report.episodes import (
    compared,
    draw_names,
    draws,
    evaluated,
    references,
    seed_by_seed,
)
from harness.report.overhead import Overhead, step_ratios
from harness.report.settings import MethodRuns, Setting
from harness.report.statistics import CONFIDENCE, LEAST_SEEDS, Difference, holm


class _Comparison(NamedTuple):
    """Two methods, and how far they are apart."""

    one: MethodRuns
    other: MethodRuns
    difference: Difference
    unit: str
    where: str = ""
    """What was measured, if not top-1."""


def findings(setting: Setting, costs: Sequence[Overhead]) -> list[str]:
    """Says of SAGE against each other method, and of its variants against it, who is ahead.

    It is ahead or behind only if the 95 % interval of the difference seed by seed leaves out zero,
    and still does so after Holm's correction for the number of comparisons. Of few-shot runs the
    accuracies are those of novel classes, with one classifier. The costs of a step are those of the
    benchmarks; where there is none of both methods with this network, there is no word of it.
    """
    found = [*(_top1(setting) if setting.learner is None else _novel_classes(setting))]
    ranked = [comparison.difference for comparison in found if comparison.difference.ranks]
    corrected = iter(holm([difference.p_value for difference in ranked]))
    sentences, told = [], set()
    for comparison in found:
        p_value = next(corrected) if comparison.difference.ranks else None
        sentence = f"{comparison.where}{_verdict(comparison, p_value, len(ranked))}"
        pair = (comparison.one.label, comparison.other.label)
        cost = "" if pair in told else _cost(setting, comparison, costs)
        told.add(pair)
        sentences.append(f"{sentence}{cost}.")
    if len(ranked) > 1:
        sentences.append(
            "Of several comparisons one may come out by chance: Holm's correction keeps the risk "
            f"of any such verdict among these {len(ranked)} below 5 %."
        )
    return sentences


def _top1(setting: Setting) -> Iterator[_Comparison]:
    sage = setting.find("sage")
    if sage is None:
        return
    others = [runs for runs in setting.trained() if runs is not sage]
    variants = [runs for runs in others if is_sage(runs.method)]
    pairs = [(sage, peer) for peer in others if peer not in variants]
    for one, other in (*pairs, *((variant, sage) for variant in variants)):
        difference = Difference.of(one.values("top1"), other.values("top1"))
        if difference:
            yield _Comparison(one, other, difference, "points of top-1")


def _novel_classes(setting: Setting) -> Iterator[_Comparison]:
    for draw, name in draw_names(draws(setting)).items():
        chosen, classifier = compared(setting, draw)
        used = f"{classifier.name}, {classifier.normalization}"
        for sage in (runs for runs in setting.methods if runs.method == "sage"):
            for peer in references(setting):
                for shots in chosen:
                    lines = (evaluated(runs, draw, shots, classifier) for runs in (sage, peer))
                    difference = seed_by_seed(*lines)
                    if difference:
                        where = f"{name}, {shots}-shot ({used}): "
                        yield _Comparison(sage, peer, difference, "points", where)


def _verdict(comparison: _Comparison, p_value: float | None, ranked: int) -> str:
    one, other, difference, unit, _ = comparison
    by = f"{difference.mean:+.2f} {unit}"
    if difference.interval is None or p_value is None:
        seeds = f"{difference.seeds} seed{'s' if difference.seeds > 1 else ''}"
        why = f"{seeds}; fewer than {LEAST_SEEDS} rank nothing"
        if difference.seeds >= LEAST_SEEDS:
            why = f"the same with each of {seeds}, which leaves no interval to rank by"
        return f"{one.label} less {other.label}: {by} ({why})"
    low, high = difference.interval
    alone, together = not low <= 0 <= high, p_value < 1 - CONFIDENCE
    verdict = f"{one.label} and {other.label} cannot be told apart"
    if alone and together:
        verdict = f"{one.label} is {'ahead of' if low > 0 else 'behind'} {other.label}"
    spread = f"95 % interval {low:+.2f} to {high:+.2f} over {difference.seeds} seeds"
    if alone and ranked > 1:
        word = "still so" if together else "it leaves out zero, but not"
        spread += f"; {word} after Holm's correction for {ranked} comparisons"
    return f"{verdict}: {by} ({spread})"


def _cost(setting: Setting, comparison: _Comparison, costs: Sequence[Overhead]) -> str:
    model = (setting.config or {}).get("model")
    ratios = step_ratios(costs, model, comparison.one, comparison.other)
    if not ratios:
        return ""
    words = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
    return f"; its step takes {' to '.join(words)} times as long"
