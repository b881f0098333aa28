"""``python -m harness report``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.report import tables
from harness.results import read_results


@dataclass(frozen=True)
class Report:
    """Print Markdown tables of the runs in DIR/results.jsonl: means and spread over the seeds.

    Usage examples:

      python -m harness report runs
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl."""

    def __call__(self) -> None:
        path = self.directory / "results.jsonl"
        results = read_results(path)
        if not results:
            raise ValueError(f"no results in {path}")
        print(tables(results))
