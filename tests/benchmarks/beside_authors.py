"""Times SAGE's mixing beside the authors' own, round by round, in one process.

The authors' code is read from a clone of their repository, which is not part of this project:

    git clone https://github.com/SamsungLabs/SAGE CLONE
    python tests/benchmarks/beside_authors.py CLONE

Both get the same images and the same saliency, mix with the same weight, and are compared by the
median over the rounds. Theirs searches a random 1 % of the translations, as in their experiments;
ours searches all, and a random 1 % as well. Theirs keeps several copies of a map for every
translation, padded to three times its sides (24 MB each at 64 pixels, 3.6 GB at 224), so it is run
up to a size only.
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
    """Prints a Markdown table: milliseconds a batch and an image, and how many times faster."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--authors-up-to", type=int, default=64, help="largest size for theirs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    authors = load_authors(settings.clone)
    print(f"{settings.batch_size} pairs, {torch.get_num_threads()} thread(s), milliseconds\n")
    print("| size | authors, random 1 % | random 1 % | all | all, an image | times faster, all |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in settings.sizes:
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch_size, 3, size, size)
        images = torch.randn(shape, generator=generator)
        maps = saliency_from_gradient(torch.randn(shape, generator=generator) ** 3)
        labels = torch.arange(settings.batch_size)

        def ours(candidates, images=images, maps=maps):
            own, other = _WEIGHT * maps, (1 - _WEIGHT) * maps.flip(0)
            blend(images, images.flip(0), own, other, best_translation(own, other, candidates))

        ways = {
            "share": lambda ours=ours, size=size: ours(random_translations(size, size, _SHARE)),
            "all": lambda ours=ours: ours(None),
        }
        if size <= settings.authors_up_to:
            ways["authors"] = lambda images=images, maps=maps, labels=labels: authors(
                images, labels, maps, alpha=_WEIGHT, rand_pos=_SHARE
            )
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in tqdm(range(settings.rounds + 1), desc=f"{size}x{size}", leave=False):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if number:  # the first round warms up
                    times[name].append(1000 * (time.perf_counter() - started))
        taken = {name: median(rounds) for name, rounds in times.items()}
        theirs, faster = "-", "-"
        if "authors" in taken:
            theirs, faster = f"{taken['authors']:.0f}", f"{taken['authors'] / taken['all']:.1f}"
        an_image = taken["all"] / settings.batch_size
        ours_taken = f"{taken['share']:.1f} | {taken['all']:.1f} | {an_image:.2f}"
        print(f"| {size} | {theirs} | {ours_taken} | {faster} |")


if __name__ == "__main__":
    main()
