"""The cost of a training step with each method: time, and memory, as ratios to plain training."""

import gc
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from harness.config import (
    LEAST_GLYPH,
    OverheadConfig,
    ScheduleConfig,
    check_at_least,
    make_directory,
)
from harness.device import autocast, made_with, open_device
from harness.figures import NO_VALUE, Table
from harness.glyphs import Glyphs
from harness.measures import Measurement
from harness.methods import METHODS, Training, kind_of, loss_of, module_of
from harness.methods.base import normalised
from harness.methods.sage import is_sage
from harness.models import create_network
from harness.store import Line
from harness.train import make_optimizer, training_step
from sage_timm.sage import Sage

Clock = Callable[[], float]
"""Returns seconds since some moment."""

_BENCHMARKS = Path(__file__).with_name("overhead_benchmarks.py")
_glyphs = cache(Glyphs)


class Outcome(NamedTuple):
    """Whether every benchmark passed, and whether any did, so that there is a new file."""

    all_passed: bool
    written: bool


def measure_overhead(config: OverheadConfig, out: Path) -> Outcome:
    """Runs the benchmarks in this process, and writes ``overhead.json``, pytest-benchmark's format.

    ``harness.measures.overhead_benchmarks`` says what is measured, and how. A failing benchmark
    leaves the others alone; an earlier file is replaced, unless every benchmark fails.
    """
    _check(config)
    make_directory(out)
    path = out / "overhead.json"
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    asked = _Asked(config)
    options = [
        *("-c", os.devnull, f"--rootdir={_BENCHMARKS.parent}", "-p", "no:cacheprovider"),
        *("-q", "--tb=short", "--assert=plain", "-o", "console_output_style=classic"),
        *("--benchmark-only", "--benchmark-enable", "--benchmark-disable-gc"),
        *("--benchmark-sort=name", "--benchmark-columns=median,mean,iqr,rounds"),
        f"--benchmark-json={unfinished}",
    ]
    try:
        with asked.bar:
            code = pytest.main([str(_BENCHMARKS), *options], plugins=[asked])
        if code == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with exit code {int(code)}")
        written = unfinished.exists() and bool(benchmarks(unfinished))
        if written:
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Outcome(code == pytest.ExitCode.OK, written)


def _check(config: OverheadConfig) -> None:
    """Raises a ValueError if a setting is unknown or out of its range."""
    for name in ("methods", "models", "batch_sizes", "image_sizes"):
        if not getattr(config, name):
            raise ValueError(f"{name} must name at least one, got none")
    for method in config.methods:
        if method not in METHODS:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {method!r}")
        if config.compile and kind_of(method) == "hidden":
            raise ValueError(f"{method} reaches into hidden layers, which compile=True would fix")
    for model in config.models:
        if not timm.is_model(model):
            raise ValueError(f"models must be of timm.list_models(), got {model!r}")
    for size in config.batch_sizes:
        if size < 2 or size % 2:
            raise ValueError(
                f"batch_sizes must be even, since timm's Mixup mixes pairs, got {size}"
            )
    check_at_least(LEAST_GLYPH, image_sizes=min(config.image_sizes))
    check_at_least(2, classes=config.classes)
    check_at_least(1, rounds=config.rounds)
    config.mixing.check()
    open_device(config.device)


class TrainingStep:
    """A network in training on one batch of glyphs; a call is the training loop's step."""

    def __init__(
        self, config: OverheadConfig, method: str, model: str, batch_size: int, image_size: int
    ) -> None:
        random_seed(0)
        device = torch.device(config.device)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        network = create_network(model, config.classes, image_size)
        self.model = network.to(device, memory_format=layout).train()
        data_config = resolve_data_config({}, model=network)
        glyphs = _glyphs("train", batch_size, image_size)
        pixels = torch.from_numpy(glyphs.images).permute(0, 3, 1, 2)
        images = normalised(pixels, data_config["mean"], data_config["std"])
        self.images = images.to(device).contiguous(memory_format=layout)
        self.targets = torch.tensor(glyphs.targets, device=device) % config.classes
        self.loss_fn = SoftTargetCrossEntropy()
        training = Training(config.mixing, self.model, self.loss_fn, config.classes)
        if config.compile:
            self.model.forward = torch.compile(self.model.forward)
        self.mix = METHODS[method](training)
        self.autocast = partial(autocast, config.amp, device)
        self.optimizer = make_optimizer(self.model, ScheduleConfig(), module_of(self.mix))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Returns the batch, as a copy: some methods mix in place."""
        return self.images.clone(), self.targets

    def mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch as a step does."""
        with self.autocast():
            return self.mix(images, targets)

    def __call__(self, images: Tensor, targets: Tensor) -> None:
        with self.autocast():
            mixed, soft_targets = self.mix(images, targets)
            loss = loss_of(self.mix, self.loss_fn)(self.model(mixed), soft_targets)
        training_step(loss, self.optimizer)


def make_clock(device: torch.device) -> Clock:
    """Makes the clock of a device: it waits for what the device still has to do."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


class SaliencyClock:
    """Splits the time of SAGE's calls in two: the saliency pass, and all the rest."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spent = 0.0

    def saliency(self) -> float:
        """Returns the seconds spent in watched saliency passes so far."""
        return self._spent

    def rest(self) -> float:
        """Returns the clock's seconds less those."""
        return self.clock() - self._spent

    def watch(self, sage: Sage) -> None:
        """Times the saliency passes of a SAGE from now on."""
        saliency = sage.saliency

        def watched(images: Tensor, targets: Tensor) -> Tensor:
            started = self.clock()
            maps = saliency(images, targets)
            self._spent += self.clock() - started
            return maps

        sage.saliency = watched  # type: ignore[method-assign]


def peak_memory(make: Callable[[], TrainingStep], device: torch.device) -> int | None:
    """Measures the most bytes that are allocated at once in a network's first training steps.

    Weights, gradients, optimiser state, images and activations together, as PyTorch's allocators
    count them: on CUDA with ``torch.cuda.max_memory_allocated``, on a CPU with the allocations that
    ``torch.profiler`` records; None on others. What is held when the call starts is not counted.
    """

    def train() -> None:
        step = make()
        for _ in range(3):  # the optimiser's state is there from the second step on
            step(*step.batch())

    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        train()
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
        gc.collect()  # what is freed later, the profiler would not see
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes = [event["args"] for event in sorted(changes, key=itemgetter("ts"))]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return int(max(change["Total Allocated"] for change in changes) - before)


class _Asked:
    """The pytest plugin that gives the benchmarks their settings, and shows how far they are."""

    def __init__(self, config: OverheadConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.clock = make_clock(self.device)
        self.saliency_clock = SaliencyClock(self.clock)
        self.bar = tqdm(desc="benchmarks", disable=None)
        self.facts = {
            "channels_last": config.channels_last,
            "classes": config.classes,
            **made_with(self.device),
            **({} if config.amp == "none" else {"amp": config.amp}),
            **({"compile": True} if config.compile else {}),
            "mixing": asdict(config.mixing),
        }

    @pytest.fixture
    def asked(self, request: pytest.FixtureRequest) -> Iterator["_Asked"]:
        self.bar.set_postfix_str(request.node.name.removeprefix("test_"))
        yield self
        self.bar.update()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        config, part = self.config, metafunc.definition.originalname.removeprefix("test_")
        settings = []
        for model, batch_size, image_size, method in itertools.product(
            config.models, config.batch_sizes, config.image_sizes, config.methods
        ):
            clock = self.clock
            if part != "step" and is_sage(method):
                clock = getattr(self.saliency_clock, "saliency" if part == "saliency" else "rest")
            elif part == "saliency":
                continue
            group = f"{part}, {model}, {batch_size}x3x{image_size}x{image_size}"
            name = f"{method}-{model}-{batch_size}x{image_size}"
            mark = pytest.mark.benchmark(group=group, timer=clock)
            settings.append(
                pytest.param(method, model, batch_size, image_size, id=name, marks=mark)
            )
        metafunc.parametrize(("method", "model", "batch_size", "image_size"), settings)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drops what pytest would show as skipped: the saliency, where no method is SAGE."""
        items[:] = [item for item in items if item.get_closest_marker("skip") is None]
        self.bar.reset(len(items))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Leaves pytest's dots out, which would stand in the middle of the bar."""
        return ("passed", "", "") if report.passed and report.when == "call" else None


def benchmarks(path: Path) -> list[Line]:
    """Reads the figures of each benchmark of a step, or of a part of one.

    Raises:
        ValueError: If it is no file of pytest-benchmark's.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        infos = [benchmark["extra_info"] for benchmark in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of pytest-benchmark's: {error!r}") from error
    return [info for info in infos if {"method", "part"} <= info.keys()]


def table(lines: Sequence[Line]) -> Table:
    """Makes a table of one network's steps on one device: a row a method, with its parts."""
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        found.setdefault(line.get("label", line["method"]), {})[line["part"]] = line
    columns = {
        "step / none's": ("step", "ratio", "{:.2f}".format),
        "step, ms": ("step", "milliseconds", _milliseconds),
        "saliency, ms": ("saliency", "milliseconds", _milliseconds),
        "mixing, ms": ("mixing", "milliseconds", _milliseconds),
        "peak memory / none's": ("step", "peak_memory_ratio", "{:.2f}".format),
    }
    rows = [[label] for label in found]
    for row, parts in zip(rows, found.values(), strict=True):
        for part, name, text in columns.values():
            value = parts.get(part, {}).get(name)
            row.append(NO_VALUE if value is None else text(value))
    words = {"model": "{}", "batch_size": "batch of {}", "image_size": "{0} × {0} pixels"}
    title = [text.format(lines[0][name]) for name, text in words.items() if name in lines[0]]
    title += ["channels last"] if lines[0].get("channels_last") else []
    title += [lines[0]["amp"]] if "amp" in lines[0] else []
    title += ["compiled"] if lines[0].get("compile") else []
    title += [str(lines[0]["device"])] if "device" in lines[0] else []
    note = (
        "Each ratio is that of a step to the one without mixing just before it; ratios and "
        "milliseconds are means over what a method draws of the median of three rounds; saliency "
        "and mixing are parts of the step, timed alone."
    )
    return Table(", ".join(title), ["method", *columns], rows, note)


def _milliseconds(value: float) -> str:
    """Writes a time with three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


MEASUREMENT = Measurement(
    "overhead.json",
    table,
    of="steps",
    key=("label", "method", "part"),
    by=("model", "batch_size", "image_size", "channels_last", "amp", "compile", "device"),
    place=5,
    parsed=benchmarks,
)
