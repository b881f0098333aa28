"""One training step of one method, and what it takes: the clocks that time it, and its memory."""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from timm.data import resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness.config import ScheduleConfig
from harness.glyphs import Glyphs
from harness.methods import METHODS
from harness.methods.base import MethodConfig, normalised
from harness.models import create_network
from harness.train import make_optimizer, training_step
from sage_timm import sage

Clock = Callable[[], float]
"""Returns seconds since some moment."""

_STEPS = 3  # the optimiser's state is there from the second step on


class TrainingStep:
    """A network in training on one batch of glyphs, with the loop's step of :mod:`harness.train`.

    Args:
        method: The mixing method.
        model: The network's name in timm.
        batch_size: Images in the batch.
        image_size: Their height and width in pixels.
        classes: The number of classes.
        mixing: The method's settings.
        channels_last: Whether images and weights are laid out with channels last.
        device: Where.

    Raises:
        ImportError: If the method needs a module that is not installed.
        ValueError: If a setting does not fit.
    """

    def __init__(
        self,
        method: str,
        model: str,
        batch_size: int,
        image_size: int,
        *,
        classes: int,
        mixing: MethodConfig,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        random_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = create_network(model, classes, image_size).to(device, memory_format=layout)
        self.model.train()
        data_config = resolve_data_config({}, model=self.model)
        glyphs = _glyphs(batch_size, image_size)
        pixels = torch.from_numpy(glyphs.images).permute(0, 3, 1, 2)
        images = normalised(pixels, data_config["mean"], data_config["std"])
        self.images = images.to(device).contiguous(memory_format=layout)
        self.targets = torch.tensor(glyphs.targets, device=device) % classes
        self.optimizer = make_optimizer(self.model, ScheduleConfig())
        self.loss_fn = SoftTargetCrossEntropy()
        self.mix = METHODS[method](mixing, self.model, self.loss_fn, classes)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Returns the batch, as a copy: some methods mix in place."""
        return self.images.clone(), self.targets

    def __call__(self, images: Tensor, targets: Tensor) -> None:
        """Mixes, and trains the network for one step."""
        mixed, soft_targets = self.mix(images, targets)
        training_step(self.loss_fn(self.model(mixed), soft_targets), self.optimizer)


def make_clock(device: torch.device) -> Clock:
    """Makes the clock of a device: it waits for what the device still has to do."""
    return _CudaClock(device).read if device.type == "cuda" else time.perf_counter


def timed(clock: Clock, call: Callable[..., Any], *args: Any) -> float:
    """Returns the seconds of a call, with no garbage collection during it."""
    gc.disable()
    try:
        started = clock()
        call(*args)
        return clock() - started
    finally:
        gc.enable()


class SaliencyClock:
    """Splits the time of SAGE's calls in two: the saliency pass, and all the rest.

    Within :meth:`watching`, SAGE's saliency pass (:func:`sage_timm.saliency.saliency_pass`) is
    timed wherever :mod:`sage_timm.sage` calls it, so that both parts are of one and the same call,
    and add up to it.

    Args:
        clock: The clock to read.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spent = 0.0

    def saliency(self) -> float:
        """The seconds spent in saliency passes; stands still outside of them."""
        return self._spent

    def rest(self) -> float:
        """The clock's seconds, standing still during saliency passes."""
        return self.clock() - self._spent

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times the saliency passes of all calls in the block."""
        with patch.object(sage, "saliency_pass", self._watched(sage.saliency_pass)):
            yield

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            started = self.clock()
            result = function(*args, **kwargs)
            self._spent += self.clock() - started
            return result

        return watched


def peak_memory(make: Callable[[], TrainingStep], device: torch.device) -> int | None:
    """Measures the most bytes that are allocated at once in a network's first training steps.

    Weights, gradients, optimiser state, images and activations together, as PyTorch's allocators
    count them: on CUDA with ``torch.cuda.max_memory_allocated``, on a CPU with the allocations that
    ``torch.profiler`` records. What other libraries allocate for themselves is not in it.

    Args:
        make: Makes the network with its batch; what it holds when the call starts is not counted.
        device: The network's.

    Returns:
        The bytes; None where neither can be had.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _train(make)
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(make)
        gc.collect()  # what is freed later, the profiler would not see
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes = [event["args"] for event in sorted(changes, key=itemgetter("ts"))]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return int(max(change["Total Allocated"] for change in changes) - before)


def _train(make: Callable[[], TrainingStep]) -> None:
    step = make()
    for _ in range(_STEPS):
        step(*step.batch())


@cache
def _glyphs(batch_size: int, image_size: int) -> Glyphs:
    return Glyphs("train", batch_size, image_size)


class _CudaClock:
    """Adds up the time between events: one event long ago would be too coarse in float32."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._last = self._now()

    def read(self) -> float:
        now = self._now()
        self._seconds += self._last.elapsed_time(now) / 1000
        self._last = now
        return self._seconds

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        event.synchronize()
        return event
