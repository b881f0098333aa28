"""Hands each run to a cluster as a job of its own, through submitit."""

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

        run_all([self.run], call, self.out)

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
        ValueError: If a setting is not ``NAME=VALUE``, or submitit does not know it.
    """
    submitit = needs("submitit", "--submit", "cluster")
    parameters = dict(_parameter(setting) for setting in settings)
    done = [line["config"] for line in read_results(out / "results.jsonl", RUN)]
    jobs = [Job(run, out.resolve(), device, modules) for run in runs if run.identity() not in done]
    if not jobs:
        return []
    try:
        executor = submitit.AutoExecutor(folder=out / "jobs", cluster=cluster)
        executor.update_parameters(name="harness", **parameters)
    except (NameError, RuntimeError) as error:
        raise ValueError(f"submit_settings={list(settings)}: {error}") from error
    with executor.batch():
        return [executor.submit(job) for job in jobs]


def _parameter(setting: str) -> tuple[str, Any]:
    name, separator, value = setting.partition("=")
    if not separator or not name:
        raise ValueError(f"submit_settings must be NAME=VALUE each, got {setting!r}")
    return name, int(value) if value.lstrip("-").isdigit() else value
