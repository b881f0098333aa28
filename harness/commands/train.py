"""``python -m harness train``."""

import sys
import traceback
from dataclasses import dataclass

import torch
from timm.utils.distributed import init_distributed_device_so
from tqdm import tqdm

from harness.commands.settings import Settings
from harness.config import RunConfig
from harness.results import append_result, read_results
from harness.train import train


@dataclass(frozen=True)
class Train(Settings):
    r"""Train every method with every seed, and append one line a run to OUT/results.jsonl.

    A run that stands there already is skipped, and one that was cut off goes on from its last
    epoch. One that fails is written to OUT/failures.jsonl, and the others go on. Several devices
    are used under torchrun.

    Usage examples:

      python -m harness train --methods none mixup cutmix sage --epochs 10

      python -m harness train --preset cifar10-preactresnet18 --data-dir DIR --dataset-download \
        --methods none mixup sage --device cuda --amp bfloat16 --channels-last

      python -m harness train --dataset folder --data-dir DIR --val-split test --train-size 1000

      torchrun --nproc-per-node 2 -m harness train --device cuda
    """

    methods: tuple[str, ...] = ("none", "mixup", "cutmix", "sage")
    """Methods to train with; there are also mixup-cutmix, manifold, saliencymix, puzzlemix,
    comixup, and sage-no-rearrangement, sage-random-translation, sage-eval-saliency."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""

    def __call__(self) -> None:
        runs = [self.run(method, seed) for seed in self.seeds for method in self.methods]
        place = init_distributed_device_so(self.device)
        device, rank = torch.device(place["device"]), place["global_rank"]
        if rank == 0:
            self._note(runs)
        failed = 0
        for run in tqdm(runs, desc="runs", disable=True if rank else None):
            try:
                line = train(run, self.out, device, rank)
            except Exception as error:
                if place["distributed"]:
                    raise  # the other processes wait for this one
                failed += 1
                self._note_failure(run, error)
                continue
            if rank == 0:
                tqdm.write(
                    f"{line['method']:>8}  seed {line['seed']}  top-1 {line['top1']:5.2f} %  "
                    f"step {line['step_ms']:.1f} ms"
                )
        if place["distributed"]:
            torch.distributed.destroy_process_group()
        if rank == 0:
            tqdm.write(f"results: {self.out / 'results.jsonl'}")
        if failed:
            tqdm.write(f"{failed} of {len(runs)} runs failed: {self.out / 'failures.jsonl'}")
            sys.exit(1)

    def _note(self, runs: list[RunConfig]) -> None:
        """Writes down which runs are asked for, so that the report can show what is missing."""
        path = self.out / "runs.jsonl"
        known = [line["config"] for line in read_results(path)]
        for run in runs:
            if run.identity() not in known:
                append_result(path, _header(run))

    def _note_failure(self, run: RunConfig, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        tqdm.write(f"{run.method:>8}  seed {run.seed}  failed: {message}", file=sys.stderr)
        failure = {"error": message, "traceback": traceback.format_exc()}
        try:
            append_result(self.out / "failures.jsonl", _header(run) | failure)
        except OSError as problem:  # a full disk must not keep the other runs from being tried
            tqdm.write(f"cannot write the failure down: {problem}", file=sys.stderr)


def _header(run: RunConfig) -> dict[str, object]:
    return {"method": run.method, "seed": run.seed, "config": run.identity()}
