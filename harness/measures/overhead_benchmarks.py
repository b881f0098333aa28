"""The benchmarks of ``python -m harness overhead``, which :mod:`harness.measures.overhead` runs.

- **step**: a whole training step (mix, forward, loss, backward, optimiser). Before each timed round
  one step without mixing is timed by the same clock, on a network of its own, so that whatever else
  the machine does meets both alike; what is compared is each round with the step before it.
- **mixing**: the call that mixes, alone. For SAGE it is what the call takes less its saliency pass.
- **saliency**: SAGE's saliency pass, timed within the same kind of call: the gradient at the images
  (with the parameters' gradients if the update ratio is below 1) and the map made of it.
- **peak memory**: of a step, and its ratio to that of a step without mixing, each measured alone;
  see :func:`harness.measures.training_step.peak_memory`.

Every method trains on one batch of glyphs. The milliseconds and the ratio are means over what a
method draws, of the median of three rounds with the same draw: a median alone would hide that some
methods are cheap for most batches and dear for a few (Puzzle Mix's smallest blocks take ten times
as long as its largest), a mean alone would be at the mercy of whatever else the machine does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from statistics import mean, median
from typing import Any

from timm.utils import random_seed

from harness.measures.training_step import peak_memory, timed
from harness.methods.base import no_steps

_REPEATS = 3
_WARMUP_ROUNDS = 3


def test_step(benchmark, asked, method, model, batch_size, image_size):
    setting = (model, batch_size, image_size)
    reference = _time_steps(benchmark, asked, method, setting)
    seconds = benchmark.stats.stats.data
    peaks = [
        peak_memory(partial(asked.make, name, *setting), asked.device) for name in (method, "none")
    ]
    _note(
        benchmark,
        asked,
        ratio=typical([own / other for own, other in zip(seconds, reference, strict=True)]),
        none_milliseconds=1000 * typical(reference),
        peak_memory_bytes=peaks[0],
        peak_memory_ratio=None if None in peaks else peaks[0] / peaks[1],
    )


def test_mixing(benchmark, asked, method, model, batch_size, image_size):
    _time_calls(benchmark, asked, asked.make(method, model, batch_size, image_size))


def test_saliency(benchmark, asked, method, model, batch_size, image_size):
    _time_calls(benchmark, asked, asked.make(method, model, batch_size, image_size))


def typical(rounds: Sequence[float]) -> float:
    """The mean over the draws of the median of the rounds with the same draw."""
    draws = _draws(len(rounds))
    return mean(median(rounds[draw::draws]) for draw in range(draws))


def _time_steps(benchmark, asked, method: str, setting: tuple[str, int, int]) -> Sequence[float]:
    """Times steps, and returns the seconds of the step without mixing before each."""
    step, none = asked.make(method, *setting), asked.make("none", *setting)
    reference: list[float] = []

    def time_none() -> tuple[Any, dict[str, Any]]:
        reference.append(timed(asked.clock, none, *none.batch()))
        return step.batch(), {}

    _time(benchmark, asked, step, time_none)
    return reference[_WARMUP_ROUNDS:]


def _time_calls(benchmark, asked, step) -> None:
    """Times the call that mixes, or the part of it for which the benchmark's clock runs."""
    with asked.saliency_clock.watching(), no_steps():
        _time(benchmark, asked, step.mix, lambda: (step.batch(), {}))
    _note(benchmark, asked)


def _time(benchmark, asked, call: Callable[..., Any], prepare: Callable[[], Any]) -> None:
    rounds, number = asked.config.rounds, count()

    def prepare_and_seed() -> Any:
        arguments = prepare()
        random_seed(next(number) % _draws(rounds))
        return arguments

    benchmark.pedantic(call, setup=prepare_and_seed, rounds=rounds, warmup_rounds=_WARMUP_ROUNDS)


def _draws(rounds: int) -> int:
    return -(-rounds // _REPEATS)


def _note(benchmark, asked, **figures: Any) -> None:
    """Writes the settings and the figures where pytest-benchmark takes them from."""
    names = ("ratio", "none_milliseconds", "peak_memory_bytes", "peak_memory_ratio")
    benchmark.extra_info.update(
        part=benchmark.name.partition("[")[0].removeprefix("test_"),
        **benchmark.params,
        milliseconds=1000 * typical(benchmark.stats.stats.data),
        **{name: figures.get(name) for name in names},
        **asked.facts(),
    )
