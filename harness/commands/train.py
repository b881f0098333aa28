"""``python -m harness train``."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from harness.commands.settings import Settings
from harness.train import train


@dataclass(frozen=True)
class Train(Settings):
    r"""Train every method with every seed, and append one line a run to OUT/results.jsonl.

    A run that stands there already is skipped, and one that was cut off goes on from its last
    epoch.

    Usage examples:

      python -m harness train --methods none mixup cutmix sage --epochs 10

      python -m harness train --dataset torch/cifar10 --data-dir DIR --dataset-download \
        --model preactresnet18_cifar --epochs 300 --lr 0.2 --weight-decay 1e-4 --sched multistep \
        --methods sage --lambda-max 0.6 --update-ratio 0.7 --device cuda

      python -m harness train --dataset folder --data-dir DIR --val-split test --train-size 1000
    """

    methods: tuple[str, ...] = ("none", "mixup", "cutmix", "sage")
    """Methods to train with; there are also mixup-cutmix, manifold, saliencymix, puzzlemix, comixup,
    and sage-no-rearrangement, sage-random-translation, sage-eval-saliency."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""

    def __call__(self) -> None:
        runs = [self.run(method, seed) for seed in self.seeds for method in self.methods]
        for run in tqdm(runs, desc="runs", disable=None):
            line = train(run, self.out, torch.device(self.device))
            tqdm.write(
                f"{line['method']:>8}  seed {line['seed']}  top-1 {line['top1']:5.2f} %  "
                f"step {line['step_ms']:.1f} ms"
            )
        tqdm.write(f"results: {self.out / 'results.jsonl'}")
