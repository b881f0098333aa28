"""``python -m harness robustness``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from harness.config import check_directory, expanded


@dataclass(frozen=True)
class Robustness:
    """Measure the runs in DIR/results.jsonl on perturbed images, from their checkpoints.

    The accuracy under Gaussian noise, with a region replaced, and under the attacks FGSM and PGD is
    appended to DIR/robustness.jsonl, one line a figure. A figure that stands there already is
    skipped. A run that cannot be measured is named, and the others go on; the exit code is 1 then.

    Usage examples:

      python -m harness robustness runs

      python -m harness robustness runs --data-dir DIR --images 1000 --device cuda
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl and checkpoints/."""
    data_dir: str | None = None
    """Where the data set is (not for glyphs)."""
    images: int | None = None
    """Measure on so many validation images, drawn once for all runs; on all if None."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Expands ``~``."""
        object.__setattr__(self, "directory", expanded(self.directory))

    def __call__(self) -> None:
        from harness.device import open_device
        from harness.measures.robustness import FIGURES, measure_robustness, torchattacks
        from harness.store import RUN, read_results

        check_directory(self.directory)
        path = self.directory / "results.jsonl"
        results = read_results(path, RUN)
        if not results:
            raise ValueError(f"no results in {path}")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        torchattacks()
        device = open_device(self.device)
        failed = 0
        with tqdm(total=len(results) * len(FIGURES), desc="figures", disable=None) as bar:
            for number, result in enumerate(results, start=1):
                run = f"{result['method']:>8}  seed {result['seed']}"
                try:
                    for line in measure_robustness(
                        result, self.directory, self.data_dir, self.images, device
                    ):
                        figure = f"{line['kind']} {line['strength']:g}"
                        tqdm.write(f"{run}  {figure:<16}  top-1 {line['top1']:5.2f} %")
                        bar.update()
                except (ValueError, ImportError) as error:
                    failed += 1
                    tqdm.write(f"{run}  not measured: {error}")
                bar.update(number * len(FIGURES) - bar.n)
        tqdm.write(f"figures: {self.directory / 'robustness.jsonl'}")
        if failed:
            raise SystemExit(1)
