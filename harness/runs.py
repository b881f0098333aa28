"""Runs one after the other: what was asked for and what failed is written down."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from harness.config import RunConfig
from harness.results import RUN, append_result, read_results


def note_runs(runs: Sequence[RunConfig], out: Path) -> None:
    """Writes to OUT/runs.jsonl which runs are asked for, so that the report shows what is missing.

    Raises:
        ValueError: If a run's data set cannot be opened.
    """
    path = out / "runs.jsonl"
    known = [line["config"] for line in read_results(path, RUN)]
    for run in runs:
        if run.identity() not in known:
            append_result(path, _header(run))


def run_all(
    runs: Sequence[RunConfig],
    call: Callable[[RunConfig], None],
    out: Path,
    *,
    distributed: bool = False,
    shown: bool = True,
) -> None:
    """Calls a function for each run; one that fails is written to OUT/failures.jsonl.

    Args:
        runs: The runs.
        call: Trains one, or does what else is to be done.
        out: The folder of results.
        distributed: Whether other processes wait for this one, so that an error ends all.
        shown: Whether to show a progress bar.

    Raises:
        SystemExit: With exit code 1 at the end, if any failed.
    """
    failed = 0
    for run in tqdm(runs, desc="runs", disable=None if shown else True):
        try:
            call(run)
        except Exception as error:
            if distributed:
                raise
            failed += 1
            _note_failure(run, error, out)
    if failed:
        tqdm.write(f"{failed} of {len(runs)} runs failed: {out / 'failures.jsonl'}")
        raise SystemExit(1)


def _note_failure(run: RunConfig, error: Exception, out: Path) -> None:
    message = f"{type(error).__name__}: {error}"
    tqdm.write(f"{run.method:>8}  seed {run.seed}  failed: {message}", file=sys.stderr)
    failure = {"error": message, "traceback": traceback.format_exc()}
    try:
        append_result(out / "failures.jsonl", _header(run) | failure)
    except OSError as problem:  # a full disk must not keep the other runs from being tried
        tqdm.write(f"cannot write the failure down: {problem}", file=sys.stderr)


def _header(run: RunConfig) -> dict[str, object]:
    return {"method": run.method, "seed": run.seed, "config": run.identity()}
