"""Times SAGE's mixing beside the authors' own, round by round, in one process.

The authors' code is read from a clone of their repository, which is not part of this project:

    git clone https://github.com/SamsungLabs/SAGE CLONE
    python tests/benchmarks/beside_authors.py CLONE

Both get the same images and the same saliency, mix with the same weight, and are compared by the
median over the rounds. Theirs searches a random 1 % of the translations, as in their experiments;
ours searches all, and a random 1 % as well.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from tqdm import tqdm

from sage_timm import best_translation, blend, random_translations, saliency_from_gradient

_WEIGHT = 0.4
_SHARE = 0.01
_NOT_USED = ("wandb", "ipdb", "gco", "mixup")  # imported there, but not by what is measured


def load_authors(clone: Path):
    """Imports the authors' ``sage`` function from a clone.

    Raises:
        SystemExit: If the clone does not hold it.
    """
    path = clone / "utils_SAGE.py"
    if not path.exists():
        sys.exit(f"no {path}: give the path of a clone of SamsungLabs/SAGE")
    for name in _NOT_USED:
        module = sys.modules[name] = ModuleType(name)
        module.to_one_hot = None
    spec = importlib.util.spec_from_file_location("utils_SAGE", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.sage


def main() -> None:
    """Prints a Markdown table: milliseconds a batch, and how many times faster."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    authors = load_authors(settings.clone)
    print(f"{settings.batch_size} pairs, {torch.get_num_threads()} thread(s), milliseconds\n")
    print("| size | authors, random 1 % | random 1 % | all | times faster, all |")
    print("| --- | --- | --- | --- | --- |")
    for size in settings.sizes:
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch_size, 3, size, size)
        images = torch.randn(shape, generator=generator)
        maps = saliency_from_gradient(torch.randn(shape, generator=generator) ** 3)
        labels = torch.arange(settings.batch_size)

        def ours(candidates, images=images, maps=maps):
            own, other = _WEIGHT * maps, (1 - _WEIGHT) * maps.flip(0)
            blend(images, images.flip(0), own, other, best_translation(own, other, candidates))

        ways = (
            lambda images=images, maps=maps, labels=labels: authors(
                images, labels, maps, alpha=_WEIGHT, rand_pos=_SHARE
            ),
            lambda ours=ours, size=size: ours(random_translations(size, size, _SHARE)),
            lambda ours=ours: ours(None),
        )
        times: list[list[float]] = [[], [], []]
        for number in tqdm(range(settings.rounds + 1), desc=f"{size}x{size}", leave=False):
            for way, taken in zip(ways, times, strict=True):
                started = time.perf_counter()
                way()
                if number:  # the first round warms up
                    taken.append(1000 * (time.perf_counter() - started))
        theirs, share, every = (median(taken) for taken in times)
        print(f"| {size} | {theirs:.0f} | {share:.1f} | {every:.1f} | {theirs / every:.1f} |")


if __name__ == "__main__":
    main()
