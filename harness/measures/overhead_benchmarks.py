"""The benchmarks of ``python -m harness overhead``, which ``harness.measures.overhead`` runs.

- **step**: a whole training step (mix, forward, loss, backward, optimiser). Before each timed round
  one step without mixing is timed by the same clock, on a network of its own, so that whatever else
  the machine does meets both alike; what is compared is each round with the step before it.
- **mixing**: the call that mixes, alone. For SAGE it is what the call takes less its saliency pass.
- **saliency**: SAGE's saliency pass, timed within the same kind of call: the gradient at the images
  (with the parameters' gradients if the update ratio is below 1) and the map made of it.
- **peak memory**: of a step, and its ratio to that of a step without mixing, each measured alone.

The milliseconds and the ratio are means over what a method draws, of the median of three rounds
with the same draw: a median alone would hide that some methods are cheap for most batches and dear
for a few (Puzzle Mix's smallest blocks take ten times as long as its largest), a mean alone would
be at the mercy of whatever else the machine does.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from statistics import mean, median
from typing import Any

from timm.utils import random_seed

from harness.measures.overhead import TrainingStep, peak_memory
from harness.methods.base import no_steps
from harness.methods.sage import is_sage

_REPEATS = 3
_WARMUP_ROUNDS = 3


def test_step(benchmark, asked, method, model, batch_size, image_size):
    def make(name: str) -> TrainingStep:
        return TrainingStep(asked.config, name, model, batch_size, image_size)

    step, none = make(method), make("none")
    reference: list[float] = []

    def time_none() -> Any:
        arguments = none.batch()
        gc.disable()
        try:
            started = asked.clock()
            none(*arguments)
            reference.append(asked.clock() - started)
        finally:
            gc.enable()
        return step.batch()

    _time(benchmark, asked, step, time_none)
    pairs = zip(benchmark.stats.stats.data, reference[_WARMUP_ROUNDS:], strict=True)
    peaks = [peak_memory(partial(make, name), asked.device) for name in (method, "none")]
    _note(
        benchmark,
        asked,
        ratio=typical([own / other for own, other in pairs]),
        none_milliseconds=1000 * typical(reference[_WARMUP_ROUNDS:]),
        peak_memory_bytes=peaks[0],
        peak_memory_ratio=None if None in peaks else peaks[0] / peaks[1],
    )


def test_mixing(benchmark, asked, method, model, batch_size, image_size):
    """Times the call that mixes, or the part of it for which the benchmark's clock runs."""
    step = TrainingStep(asked.config, method, model, batch_size, image_size)
    if is_sage(method):
        asked.saliency_clock.watch(step.mix.sage)
    with no_steps():
        _time(benchmark, asked, step.mixed, step.batch)
    _note(benchmark, asked)


test_saliency = test_mixing


def typical(rounds: Sequence[float]) -> float:
    """Returns the mean over the draws of the median of the rounds with the same draw."""
    draws = _draws(len(rounds))
    return mean(median(rounds[draw::draws]) for draw in range(draws))


def _draws(rounds: int) -> int:
    return -(-rounds // _REPEATS)


def _time(benchmark, asked, call: Callable[..., Any], prepare: Callable[[], Any]) -> None:
    """Times a call with the arguments that ``prepare`` makes before each round."""
    rounds, number = asked.config.rounds, count()

    def prepare_and_seed() -> Any:
        arguments = prepare()
        random_seed(next(number) % _draws(rounds))
        return arguments, {}

    benchmark.pedantic(call, setup=prepare_and_seed, rounds=rounds, warmup_rounds=_WARMUP_ROUNDS)


def _note(benchmark, asked, **figures: Any) -> None:
    """Writes the settings and the figures where pytest-benchmark takes them from."""
    names = ("ratio", "none_milliseconds", "peak_memory_bytes", "peak_memory_ratio")
    benchmark.extra_info |= benchmark.params | dict.fromkeys(names) | figures | asked.facts
    benchmark.extra_info |= {
        "part": benchmark.name.partition("[")[0].removeprefix("test_"),
        "milliseconds": 1000 * typical(benchmark.stats.stats.data),
    }
