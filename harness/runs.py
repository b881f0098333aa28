"""Runs in turn: checks before the first, a lock for each, notes of those that failed."""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from harness.config import make_directory
from harness.data import count_images, dataset_name
from harness.device import from_first
from harness.learner import make_loss, make_optimizer
from harness.methods import METHODS, Training
from harness.run_config import RunConfig
from harness.store import RUN, append_result, read_results
from harness.train import Progress

_LOOKED_AGAIN = 2.0  # seconds, at runs that other processes are at


class Turn(NamedTuple):
    """A run that no other process is at."""

    run: RunConfig
    progress: Progress


def check_runs(runs: Sequence[RunConfig], out: Path) -> None:
    """Checks what can be known before the first run is trained; makes the folder of results.

    The runs differ in method and seed alone. Raises a ValueError if the data set cannot be opened
    or has too few images, the network does not take them, a method does not fit the network, or
    nothing can be written.
    """
    run = runs[0]
    images, classes = count_images(run.data, run.seed)
    if images is not None and images < run.least_images:
        raise ValueError(
            f"batch_size={run.data.batch_size} is more than the {images} training images"
        )
    size, channels = run.data.image_size, run.data.in_chans
    try:
        network = run.make_network(classes)
        with torch.no_grad():
            network.eval()(torch.zeros(1, channels, size, size))
    except Exception as error:
        message = f"model={run.model!r} does not go with image_size={size}: {error}"
        raise ValueError(message) from error
    make_optimizer(network, run.schedule)
    done = [line["config"] for line in read_results(out / "results.jsonl", RUN)]
    if any(other.identity() not in done for other in runs):
        run.load_initial_weights(network)
    for method in dict.fromkeys(run.method for run in runs):
        try:
            METHODS[method](Training(run.mixing, network, make_loss(run.schedule), classes))
        except ValueError:
            raise
        except Exception:  # no matter of settings: the run will fail, and not keep the others
            continue
    make_directory(out)
    try:
        with _lock(out, "runs"):
            pass
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be locked: {error.strerror}") from error


def note_runs(runs: Sequence[RunConfig], out: Path) -> None:
    """Writes to OUT/runs.jsonl what is asked for, so that the report shows what is missing.

    What stands there is not written again, unless the data set has another name by now.
    """
    path = out / "runs.jsonl"
    with _lock(out, "runs"):
        noted = {json.dumps(line.get("config")): line for line in read_results(path)}
        for header in map(_header, runs):
            last = noted.get(json.dumps(header["config"]), {})
            if last.get("dataset_name") != header["dataset_name"]:
                append_result(path, header)


def in_turn(runs: Sequence[RunConfig], out: Path, rank: int = 0) -> Iterator[Turn]:
    """Gives each run while no other process is at it.

    A run that another process is at comes once that one has finished or died. So processes that are
    started with one command divide its runs, and none is trained twice. The processes of one run on
    several devices, of which this is number ``rank``, take their turns together.
    """
    bar = _EpochsBar(runs, shown=rank == 0)
    waiting = list(runs)
    with bar:
        while waiting:
            passed_over = []
            for run in waiting:
                with _at(run, out, rank) as free:
                    if not free:
                        passed_over.append(run)
                        continue
                    bar.begin(run)
                    yield Turn(run, bar.show)
                    bar.end(run)
            if len(passed_over) == len(waiting):
                time.sleep(_LOOKED_AGAIN)
            elif passed_over and rank == 0:
                names = ", ".join(f"{run.method} seed {run.seed}" for run in passed_over)
                tqdm.write(f"waiting for another process: {names}", file=sys.stderr)
            waiting = passed_over


def run_all(
    runs: Sequence[RunConfig],
    call: Callable[[RunConfig, Progress], None],
    out: Path,
    rank: int = 0,
) -> None:
    """Calls a function for each run; one that fails is written to OUT/failures.jsonl.

    Ends with exit code 1 if any failed. See ``in_turn`` for the rank.
    """
    failed = 0
    for run, progress in in_turn(runs, out, rank):
        try:
            call(run, progress)
        except Exception as error:
            if run.devices > 1:  # the other processes wait for this one
                raise
            failed += 1
            _note_failure(run, error, out)
    if failed:
        tqdm.write(f"{failed} of {len(runs)} runs failed: {out / 'failures.jsonl'}")
        raise SystemExit(1)


class _EpochsBar:
    """Shows all runs' epochs, and estimates the time left by those trained here."""

    def __init__(self, runs: Sequence[RunConfig], shown: bool) -> None:
        total = sum(run.schedule.epochs for run in runs)
        self.runs, self.ended = len(runs), 0
        self.bar = tqdm(
            total=total, desc="epochs", unit="epoch", smoothing=0, disable=None if shown else True
        )

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def begin(self, run: RunConfig) -> None:
        self.before = self.bar.n
        self.bar.set_description(f"run {self.ended + 1} of {self.runs}")

    def show(self, done: int) -> None:
        """Shows a run's epochs; those that another call has trained take no time here."""
        more = self.before + done - self.bar.n
        if more > 1 and not self.bar.disable:
            self.bar.initial += more
        self.bar.update(more)

    def end(self, run: RunConfig) -> None:
        self.bar.update(self.before + run.schedule.epochs - self.bar.n)
        self.ended += 1


@contextlib.contextmanager
def _at(run: RunConfig, out: Path, rank: int) -> Iterator[bool]:
    """Keeps other processes from a run, if none is at it; tells whether that is so."""
    lock = _lock(out, run.name(), timeout=0)
    free = True
    if rank == 0:
        try:
            lock.acquire()
        except Timeout:
            free = False
    try:
        yield from_first(free, run.devices)
    finally:
        lock.release()


def _lock(out: Path, name: str, timeout: float = -1) -> FileLock:
    folder = out / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", timeout=timeout)


def _note_failure(run: RunConfig, error: Exception, out: Path) -> None:
    message = f"{type(error).__name__}: {error}"
    tqdm.write(f"{run.method:>8}  seed {run.seed}  failed: {message}", file=sys.stderr)
    failure = {"error": message, "traceback": traceback.format_exc()}
    try:
        append_result(out / "failures.jsonl", _header(run) | failure)
    except OSError as problem:  # a full disk must not keep the other runs from being tried
        tqdm.write(f"cannot write the failure down: {problem}", file=sys.stderr)


def _header(run: RunConfig) -> dict[str, object]:
    named = {"method": run.method, "seed": run.seed, "dataset_name": dataset_name(run.data)}
    return {**named, "config": run.identity()}
