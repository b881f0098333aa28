"""``python -m fewshot evaluate``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from fewshot.commands.train import data_folder
from fewshot.config import PREFIX, EvaluationConfig, FewShotConfig
from fewshot.table import table
from harness.config import check_directory, expanded


@dataclass(frozen=True)
class Evaluate:
    """Measure the backbones in DIR/checkpoints on episodes of new classes, without training.

    Usage examples:

      python -m fewshot evaluate runs/fewshot --shots 1 5 10 --normalizations un l2n cl2n
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl and checkpoints/."""
    root: Path | None = None
    """Where the data set is: ~/data if None, for glyphs DIR/data."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Expands ``~``."""
        object.__setattr__(self, "directory", expanded(self.directory))

    def __call__(self) -> None:
        from fewshot.measure import evaluate
        from harness.device import open_device
        from harness.runs import run_all
        from harness.store import RUN, read_results

        check_directory(self.directory)
        self.evaluation.check()
        device = open_device(self.device)
        path = self.directory / "results.jsonl"
        results = [
            r
            for r in read_results(path, {**RUN, "dataset": str})
            if r["dataset"].startswith(PREFIX)
        ]
        if not results:
            raise ValueError(f"no few-shot results in {path}")
        runs = []
        for result in results:
            dataset = result["dataset"].removeprefix(PREFIX)
            root = data_folder(dataset, self.root, self.directory)
            runs.append(FewShotConfig.from_identity(result["config"], root))
        lines = []

        def call(run: FewShotConfig, _progress: object) -> None:
            lines.extend(evaluate(run, self.evaluation, self.directory, device))

        try:
            run_all(runs, call, self.directory)
        finally:
            if lines:
                tqdm.write(table(lines))
            tqdm.write(f"figures: {self.directory / 'episodes.jsonl'}")
