"""``python -m harness train``."""

from dataclasses import dataclass

from tqdm import tqdm

from harness.config import RunConfig
from harness.settings import Settings, each_run


@dataclass(frozen=True)
class Train(Settings):
    r"""Train every method with every seed, and append one line a run to OUT/results.jsonl.

    A run that stands there already is skipped, and one that was cut off goes on from its last
    epoch. One that fails is written to OUT/failures.jsonl, and the others go on. Several devices
    are used by one run under torchrun; the same command, started several times, divides the runs.

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
        import torch
        from timm.utils.distributed import init_distributed_device_so

        from harness.runs import note_runs, run_all
        from harness.train import Progress, train

        runs = each_run(self.run, self.methods, self.seeds)
        self.begin(runs)
        place = init_distributed_device_so(self.device)
        device, rank = torch.device(place["device"]), place["global_rank"]
        if rank == 0:
            note_runs(runs, self.out)

        def call(run: RunConfig, progress: Progress) -> None:
            line = train(run, self.out, device, rank, progress=progress)
            if rank == 0:
                tqdm.write(
                    f"{line['method']:>8}  seed {line['seed']}  top-1 {line['top1']:5.2f} %  "
                    f"step {line['step_ms']:.1f} ms{'  diverged' if 'diverged' in line else ''}"
                )

        try:
            run_all(runs, call, self.out, rank)
        finally:
            if rank == 0:
                tqdm.write(f"results: {self.out / 'results.jsonl'}")
        if place["distributed"]:
            torch.distributed.destroy_process_group()
