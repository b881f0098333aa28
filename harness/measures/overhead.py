"""What a training step costs with each method: runs the benchmarks, and shows their ratios."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from tqdm import tqdm

from harness.config import OverheadConfig, make_directory
from harness.device import device_name
from harness.figures import NO_VALUE, Table
from harness.measures import Measurement
from harness.measures.training_step import SaliencyClock, TrainingStep, make_clock
from harness.methods.sage import is_sage
from harness.store import Line

_BENCHMARKS = Path(__file__).with_name("overhead_benchmarks.py")


class Outcome(NamedTuple):
    """Whether every benchmark passed, and whether any did, so that there is a new file."""

    all_passed: bool
    written: bool


def measure_overhead(config: OverheadConfig, out: Path) -> Outcome:
    """Runs the benchmarks in this process, and writes ``overhead.json``, pytest-benchmark's format.

    :mod:`harness.measures.overhead_benchmarks` says what is measured, and how. A failing benchmark
    leaves the others alone.

    Args:
        config: What to measure.
        out: Folder of ``overhead.json``, which is replaced, unless every benchmark fails.

    Raises:
        ValueError: If a setting does not fit.
        RuntimeError: If pytest itself fails.
    """
    config.check()
    make_directory(out)
    path = out / "overhead.json"
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        code = pytest.main(
            [
                str(_BENCHMARKS),
                *("-c", os.devnull, f"--rootdir={_BENCHMARKS.parent}", "-p", "no:cacheprovider"),
                *("-q", "--tb=short", "--assert=plain", "-o", "console_output_style=classic"),
                *("--benchmark-only", "--benchmark-enable", "--benchmark-disable-gc"),
                *("--benchmark-sort=name", "--benchmark-columns=median,mean,iqr,rounds"),
                f"--benchmark-json={unfinished}",
            ],
            plugins=[_Asked(config)],
        )
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


class _Asked:
    """The pytest plugin that gives the benchmarks their settings, and shows how far they are."""

    def __init__(self, config: OverheadConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.clock = make_clock(self.device)
        self.saliency_clock = SaliencyClock(self.clock)

    @pytest.fixture
    def asked(self) -> "_Asked":
        return self

    def make(self, method: str, model: str, batch_size: int, image_size: int) -> TrainingStep:
        config = self.config
        return TrainingStep(
            method,
            model,
            batch_size,
            image_size,
            classes=config.classes,
            mixing=config.mixing,
            channels_last=config.channels_last,
            device=self.device,
        )

    def facts(self) -> dict[str, Any]:
        """What all benchmarks of one command have in common."""
        return {
            "channels_last": self.config.channels_last,
            "classes": self.config.classes,
            "device": device_name(self.device),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "mixing": asdict(self.config.mixing),
        }

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        config, part = self.config, metafunc.function.__name__.removeprefix("test_")
        settings = [
            pytest.param(
                *(method, model, batch_size, image_size),
                id=f"{method}-{model}-{batch_size}x{image_size}",
                marks=pytest.mark.benchmark(
                    group=f"{part}, {model}, {batch_size}x3x{image_size}x{image_size}",
                    timer=self._timer(part, method),
                ),
            )
            for model in config.models
            for batch_size in config.batch_sizes
            for image_size in config.image_sizes
            for method in config.methods
            if part != "saliency" or is_sage(method)
        ]
        metafunc.parametrize(("method", "model", "batch_size", "image_size"), settings)

    def _timer(self, part: str, method: str) -> Any:
        if part == "saliency":
            return self.saliency_clock.saliency
        return self.saliency_clock.rest if part == "mixing" and is_sage(method) else self.clock

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drops what pytest would show as skipped: the saliency, where no method is SAGE."""
        items[:] = [item for item in items if item.get_closest_marker("skip") is None]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.bar = tqdm(total=len(session.items), desc="benchmarks", disable=None)

    def pytest_runtest_logstart(self, location: tuple[str, int | None, str]) -> None:
        self.bar.set_postfix_str(location[2].removeprefix("test_"))

    def pytest_runtest_logfinish(self) -> None:
        self.bar.update()

    def pytest_sessionfinish(self) -> None:
        self.bar.close()

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
    by=("model", "batch_size", "image_size", "channels_last", "device"),
    place=5,
    parsed=benchmarks,
)
