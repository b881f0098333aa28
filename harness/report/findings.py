"""The answer in a sentence: SAGE against each peer, accuracy and cost."""

from statistics import median

from harness.report.settings import MethodRuns, Setting
from harness.report.statistics import Difference
from harness.report.tables import REFERENCES


def findings(setting: Setting) -> list[str]:
    """Says of SAGE, for each peer, whether it is ahead, by how much, and what its step takes.

    It is ahead or behind only if the 95 % interval of the difference seed by seed leaves out zero.
    """
    peers = [runs for runs in (setting.find(name) for name in REFERENCES) if runs]
    sages = [runs for runs in setting.methods if runs.method == "sage"]
    sentences = (_sentence(sage, peer) for sage in sages for peer in peers)
    return [sentence for sentence in sentences if sentence]


def _sentence(sage: MethodRuns, peer: MethodRuns) -> str | None:
    difference = Difference.of(sage.values("top1"), peer.values("top1"))
    if difference is None:
        return None
    verdict, spread = f"{sage.label} and {peer.label} cannot be told apart", "one seed"
    if difference.interval is not None:
        low, high = difference.interval
        spread = f"95 % interval {low:+.2f} to {high:+.2f} over {difference.seeds} seeds"
        if low > 0:
            verdict = f"{sage.label} is ahead of {peer.label}"
        elif high < 0:
            verdict = f"{sage.label} is behind {peer.label}"
    sentence = f"{verdict}: {difference.mean:+.2f} points of top-1 ({spread})"
    steps = [[*runs.values("step_ms").values()] for runs in (sage, peer)]
    if all(steps):
        sentence += f"; its step takes {median(steps[0]) / median(steps[1]):.2f} times as long"
    return f"{sentence}."
