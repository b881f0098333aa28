"""Hands each run to a cluster as a job of its own, through submitit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from harness.methods import needs
from harness.run_config import RunConfig
from harness.runs import run_all
from harness.store import RUN, read_results
from harness.train import Progress, train

_WEEK = 7 * 24 * 60  # minutes
_TIMEOUTS = 1000  # a job whose time is up is queued again so often

Cluster = Literal["slurm", "local", "debug"]


@dataclass
class Job:
    """Trains one run; a job that is cut off goes on from its last epoch."""

    run: RunConfig
    out: Path
    device: str
    modules: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Trains the run, if no other process is at it."""
        for name in self.modules:
            import_module(name)
        device = torch.device(self.device)

        def call(run: RunConfig, progress: Progress) -> None:
            train(run, self.out, device, progress=progress)

        try:
            run_all([self.run], call, self.out)
        except SystemExit as error:  # submitit knows exceptions alone
            raise RuntimeError(f"the run failed, see {self.out / 'failures.jsonl'}") from error

    def checkpoint(self) -> Any:
        """Says what to do when the cluster takes the machine back, or the time is up: the same."""
        return needs("submitit", "--submit", "cluster").helpers.DelayedSubmission(self)


def submit(
    runs: Sequence[RunConfig],
    out: Path,
    device: str,
    cluster: Cluster,
    settings: Sequence[str] = (),
    modules: tuple[str, ...] = (),
) -> list[Any]:
    """Submits a job for each run that is not done, and returns submitit's jobs.

    Logs, and what the jobs are made of, are in OUT/jobs.

    Args:
        runs: What to train.
        out: Folder for results, which all machines share.
        device: Where each job computes.
        cluster: ``slurm``; ``local`` starts processes on this machine, all at once; ``debug`` runs
            the jobs in this process.
        settings: ``NAME=VALUE``, as submitit's ``update_parameters`` takes them.
        modules: Modules that register what the runs name.

    Raises:
        ImportError: If submitit is not installed.
        ValueError: If there is no such cluster here, a setting is not ``NAME=VALUE``, submitit does
            not take it, or SLURM is not told how long a job may take.
    """
    submitit = needs("submitit", "--submit", "cluster")
    parameters = {"name": "harness", **dict(map(_parameter, settings))}
    if cluster == "slurm" and not {"timeout_min", "slurm_time"} & parameters.keys():
        raise ValueError("submit_settings must say timeout_min=MINUTES, or a job ends after five")
    if cluster == "local":
        if device != "cpu":
            raise ValueError(
                f"submit='local' hides GPUs from its jobs, got device={device!r}: start the same "
                "command once for each GPU instead"
            )
        parameters.setdefault("timeout_min", _WEEK)
    done = [line["config"] for line in read_results(out / "results.jsonl", RUN)]
    jobs = [Job(run, out.resolve(), device, modules) for run in runs if run.identity() not in done]
    if not jobs:
        return []
    try:
        executor = submitit.AutoExecutor(
            folder=out / "jobs", cluster=cluster, slurm_max_num_timeout=_TIMEOUTS
        )
    except RuntimeError as error:
        raise ValueError(f"submit={cluster!r}: {error}") from error
    try:
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError) as error:
        raise ValueError(f"submit_settings={list(settings)}: {error!r}") from error
    with executor.batch():
        return [executor.submit(job) for job in jobs]


def _parameter(setting: str) -> tuple[str, Any]:
    name, separator, value = setting.partition("=")
    if not separator or not name:
        raise ValueError(f"submit_settings must be NAME=VALUE each, got {setting!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
