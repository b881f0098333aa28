"""What a training step costs with each method: runs the benchmarks, and shows their ratios."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from tqdm import tqdm

from harness.config import OverheadConfig, make_directory
from harness.device import device_name
from harness.figures import markdown_table
from harness.measures.training_step import SaliencyClock, TrainingStep, make_clock
from harness.methods.sage import is_sage

_BENCHMARKS = Path(__file__).with_name("overhead_benchmarks.py")
_COLUMNS = ("part", "network", "batch", "method", "ms", "ratio to none", "memory ratio")


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
        written = unfinished.exists() and bool(_benchmarks(unfinished))
        if written:
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Outcome(code == pytest.ExitCode.OK, written)


def table(path: Path) -> str:
    """Makes one Markdown table of an ``overhead.json``: the milliseconds and the ratios."""
    return markdown_table(_COLUMNS, [_row(line["extra_info"]) for line in _benchmarks(path)])


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


def _benchmarks(path: Path) -> list[dict[str, Any]]:
    benchmarks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return benchmarks


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    size = facts["image_size"]
    return (
        facts["part"],
        facts["model"],
        f"{facts['batch_size']}x3x{size}x{size}",
        facts["method"],
        f"{facts['milliseconds']:.2f}",
        *(
            "-" if facts[name] is None else f"{facts[name]:.2f}"
            for name in ("ratio", "peak_memory_ratio")
        ),
    )
