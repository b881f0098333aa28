r"""Measures on a GPU, within a given time, what the docs show of one.

Usage:

  python tools/gpu.py OUT --minutes 30 --data-dir DATA

Makes the steps below, the most important first, and goes on where it was when it is started again:
what is finished is skipped, and a training goes on from its last epoch. DATA holds cifar10/ and
imagenette/, folders of images SPLIT/CLASS/; what is not there is not trained on. Trainings share
the GPU, so the times in their lines are no costs: those are in OUT/steps-*.

  tests     tests/sage_timm with the CUDA tests: OUT/tests.xml
  mixing    the mixing alone, as it is, compiled and as a CUDA graph, with the number of kernels and
            of waits: OUT/mixing.jsonl
  steps     a training step with each method beside one without: OUT/steps-NAME/overhead.json
  cifar10   accuracy on CIFAR-10, several processes at once: OUT/cifar10/results.jsonl
  paper     SAGE's recipe on CIFAR-10: OUT/paper/results.jsonl
  imagenette  ResNet-50 at 64 pixels: OUT/imagenette/results.jsonl

`python -m harness report OUT/steps-* OUT/cifar10` shows them. OUT/steps.jsonl holds what each step
took.
"""

import argparse
import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from harness.config import (  # noqa: E402
    COMPARED,
    DataConfig,
    MethodConfig,
    OverheadConfig,
    ScheduleConfig,
)
from harness.device import made_with  # noqa: E402
from harness.measures.overhead import measure_overhead  # noqa: E402
from harness.run_config import RunConfig  # noqa: E402
from harness.runs import note_runs, run_all  # noqa: E402
from harness.store import append_result, read_lines  # noqa: E402
from harness.train import train  # noqa: E402
from sage_timm import best_translation, blend, saliency_from_gradient  # noqa: E402

LEAST_SECONDS = 15  # with less left, nothing is begun
CHEAPER = {
    "half": MethodConfig(saliency_fraction=0.5),
    "half-16": MethodConfig(saliency_fraction=0.5, saliency_size=16),
    "rho-0.7": MethodConfig(update_ratio=0.7),
}


class Size(NamedTuple):
    """How large the kit's work is."""

    device: str
    mixed: tuple[tuple[int, int], ...]
    """Batches and sides whose mixing is timed."""
    networks: tuple[tuple[str, int, int], ...]
    """Networks, batches and sides whose steps are timed."""
    rounds: int
    network: str
    """Trained on CIFAR-10."""
    batch_size: int
    epochs: int
    train_size: int | None
    processes: int
    tests: tuple[str, ...]


FULL = Size(
    device="cuda",
    mixed=((128, 32), (128, 224)),
    networks=(
        ("preactresnet18_cifar", 128, 32),
        ("preactresnet18_cifar", 512, 32),
        ("resnet50", 128, 224),
        ("vit_small_patch16_224", 128, 224),
    ),
    rounds=30,
    network="preactresnet18_cifar",
    batch_size=512,
    epochs=30,
    train_size=None,
    processes=4,
    tests=("tests/sage_timm", "-n", "8"),
)
SMALL = Size(
    device="cpu",
    mixed=((4, 16),),
    networks=(("preactresnet8_cifar", 4, 16),),
    rounds=3,
    network="preactresnet8_cifar",
    batch_size=20,
    epochs=2,
    train_size=100,
    processes=2,
    tests=("tests/sage_timm/test_search.py", "-k", "memory or shapes"),
)


class Step(NamedTuple):
    """A step of the kit, made in a process of its own."""

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    processes: int = 1
    most: float = math.inf
    """Seconds after which it is stopped, to leave time for the others."""


def steps(size: Size, out: Path, data_dir: Path | None) -> Iterator[Step]:
    """Gives the steps, the most important first."""
    yield Step("tests", run_tests, (size, out), most=240)
    for batch, side in size.mixed:
        yield Step(f"mixing-{batch}x{side}", time_mixing, (size, out, batch, side))
    whole = OverheadConfig(
        methods=(*COMPARED[1:], "sage-noise-maps"),
        rounds=size.rounds,
        channels_last=True,
        amp="bfloat16",
        device=size.device,
    )
    cheaper = {
        name: replace(whole, methods=("sage",), mixing=mixing) for name, mixing in CHEAPER.items()
    }
    yield from _steps_of({"": whole} | cheaper, size, out)
    runs = trainings(size, data_dir)
    for name, each in runs.items():
        yield Step(name, train_runs, (size.device, each, out / name), size.processes)
        if name == "cifar10" and size.device == "cuda":
            yield from _steps_of({"compiled": replace(whole, compile=True)}, size, out)


def _steps_of(variants: dict[str, OverheadConfig], size: Size, out: Path) -> Iterator[Step]:
    for (network, batch, side), (name, config) in itertools.product(
        size.networks, variants.items()
    ):
        asked = replace(config, models=(network,), batch_sizes=(batch,), image_sizes=(side,))
        title = "-".join(filter(None, ("steps", network, f"{batch}x{side}", name)))
        yield Step(title, time_steps, (asked, out / title))


def trainings(size: Size, data_dir: Path | None) -> dict[str, list[RunConfig]]:
    """Makes the runs of each comparison whose images are there."""
    if data_dir is None:
        return {}
    cifar10 = DataConfig(
        "folder",
        str(data_dir / "cifar10"),
        train_size=size.train_size,
        batch_size=size.batch_size,
        on_device=True,
    )
    first = RunConfig(
        "none",
        0,
        model=size.network,
        data=cifar10,
        schedule=ScheduleConfig(epochs=size.epochs, lr=0.2),
        channels_last=True,
        amp="none" if size.device == "cpu" else "bfloat16",
    )
    paper = replace(
        first,
        data=replace(cifar10, batch_size=min(100, size.batch_size)),
        schedule=ScheduleConfig(
            epochs=2 * size.epochs, lr=0.2, weight_decay=1e-4, sched="multistep"
        ),
        mixing=MethodConfig(lambda_max=0.6, update_ratio=0.7, search="random"),
    )
    pictures = replace(
        cifar10,
        data_dir=str(data_dir / "imagenette"),
        image_size=64,
        batch_size=min(128, size.batch_size),
    )
    large = replace(first, data=pictures, model=size.network if size is SMALL else "resnet50")
    methods = ("sage", "mixup", "none", "mixup-cutmix", "sage-noise-maps", "cutmix")
    cheaper = [replace(first, method="sage", mixing=CHEAPER[name]) for name in ("half", "half-16")]
    made = {
        "cifar10": [replace(first, method=method) for method in methods] + cheaper,
        "paper": [replace(paper, method=method) for method in ("none", "mixup", "sage")],
        "imagenette": [replace(large, method=method) for method in methods[:4]],
    }
    return {name: runs for name, runs in made.items() if Path(str(runs[0].data.data_dir)).is_dir()}


def run_tests(size: Size, out: Path) -> None:
    """Runs the tests; their failures are in the file."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *size.tests]
    command += [f"--junitxml={out.resolve()}/tests.xml"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code not in (0, 1):  # 1: some failed, and the file says which
        raise SystemExit(code)


def time_mixing(size: Size, out: Path, batch: int, side: int) -> None:
    """Times the mixing of a batch whose gradient is given, in three ways."""
    device = torch.device(size.device)
    torch.manual_seed(0)
    images, gradient = torch.randn(2, batch, 3, side, side, device=device)
    gradient = gradient**3  # heavy tails, as a network's has

    def mix() -> Tensor:
        maps = saliency_from_gradient(gradient)
        own, other = 0.4 * maps, 0.6 * maps.flip(0)
        return blend(images, images.flip(0), own, other, best_translation(own, other))[0]

    expected = mix()
    compiler = "inductor" if device.type == "cuda" else "aot_eager"
    made: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "eager": lambda: mix,
        "compiled": lambda: torch.compile(mix, backend=compiler, fullgraph=True),
        "CUDA graph": lambda: captured(mix),
    }
    path, place = out / "mixing.jsonl", {"batch": batch, "side": side}
    done = {line["way"] for line in read_lines(path)[0] if place.items() <= line.items()}
    for way, make in made.items():
        if way in done:
            continue
        line: dict[str, Any] = {"way": way, **place, **made_with(device)}
        try:
            call = make()
            call()
            line["difference"] = (call() - expected).abs().max().item()
            line["milliseconds"] = milliseconds(call, device)
            line |= launches(call, device)
        except Exception as error:  # one way that fails must not keep the others
            line["error"] = str(error).partition("\n")[0]
        append_result(path, line)


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Captures a call as a CUDA graph, and gives what replays it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def milliseconds(call: Callable[[], Any], device: torch.device, rounds: int = 30) -> float:
    """Times a call: the median, by CUDA's events where there are any."""
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            started = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - started))
    return median(times)


def launches(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Counts a call's kernels, and how often the host waits for the device in it."""
    if device.type != "cuda":
        return {}
    _profiled(call)  # the first one starts the profiler's own machinery
    kernels, waits = _profiled(call)
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    return {"kernels": kernels, "waits": waits - _profiled(lambda: None)[1]}


def _profiled(call: Callable[[], Any]) -> tuple[int, int]:
    """Counts the kernels on the device, and the host's waits, the profiler's own among them."""
    with torch.profiler.profile() as profiler:
        call()
    events = profiler.events()
    kernels = sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in events
    )
    return kernels, sum(event.name.endswith("Synchronize") for event in events)


def time_steps(config: OverheadConfig, out: Path) -> None:
    """Times training steps, if that was not done."""
    if not (out / "overhead.json").exists() and not measure_overhead(config, out).written:
        raise SystemExit(1)


def train_runs(device: str, runs: list[RunConfig], out: Path) -> None:
    """Trains what no other process is at."""
    place = torch.device(device)
    run_all(runs, lambda run, progress: train(run, out, place, progress=progress) and None, out)


def make(step: Step, seconds: float) -> bool:
    """Makes a step within so many seconds; tells whether it ended by itself, without an error."""
    context = get_context("spawn")
    workers = [
        context.Process(target=_in_a_group, args=(step.call, step.arguments))
        for _ in range(step.processes)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + min(seconds, step.most)
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            if worker.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, sent)
                worker.join(10)
    return all(worker.exitcode == 0 for worker in workers)


def _in_a_group(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Calls a function in a process group of its own, which ends with all that it has started."""
    os.setsid()
    call(*arguments)


def main() -> None:
    """Makes the steps that are not done, as long as there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for all results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time to take at most")
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar10 and imagenette")
    parser.add_argument("--only", nargs="*", help="steps whose names begin so")
    parser.add_argument("--small", action="store_true", help="on the CPU, to see that it works")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    size = SMALL if options.small else FULL
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "steps.jsonl"
    done = {line["step"] for line in read_lines(log)[0] if line.get("ended")}
    asked = [
        step
        for step in steps(size, options.out, options.data_dir)
        if options.only is None or step.name.startswith(tuple(options.only))
    ]
    for name, runs in trainings(size, options.data_dir).items():
        if name in {step.name for step in asked}:
            (options.out / name).mkdir(exist_ok=True)
            note_runs(runs, options.out / name)
    with tqdm(asked, desc="steps") as bar:
        for step in bar:
            left = deadline - time.monotonic()
            if step.name in done or left < LEAST_SECONDS:
                continue
            bar.set_postfix_str(step.name)
            started = time.monotonic()
            ended = make(step, left)
            seconds = round(time.monotonic() - started, 1)
            append_result(log, {"step": step.name, "ended": ended, "seconds": seconds})
            tqdm.write(f"{step.name}: {'done' if ended else 'not done'} in {seconds} s")


if __name__ == "__main__":
    main()
