"""Accuracy of trained networks on perturbed images: noise, replaced regions, and attacks.

All perturbations act on pixels in [0, 1], before normalisation. What is random about an image's
noise or region follows from its place in the data set alone, so that every network sees the same
images, whatever its method, seed and batch size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchvision.transforms.v2 import Normalize
from tqdm import tqdm

from harness.data import Subset, load_splits
from harness.device import autocast, device_name
from harness.figures import Column, Runs, Table, table_of_means
from harness.loader import make_loader
from harness.measures import Measurement
from harness.methods.base import evaluation_mode, needs
from harness.run_config import RunConfig
from harness.store import RUN, Line, cached, load_checkpoint
from harness.train import checkpoint_path, load_model

ATTACKS = ("fgsm", "pgd")
NOISE_STDS = (0.05, 0.1, 0.2)
REPLACED_SHARES = (0.1, 0.25, 0.5)
EPSILONS = (2.0, 4.0, 8.0)  # of 255, as the step
PGD_STEP = 2.0
PGD_STEPS = 10
FIGURES = (
    ("clean", 0.0),
    *(("noise", std) for std in NOISE_STDS),
    *(("replacement", share) for share in REPLACED_SHARES),
    *((kind, epsilon) for kind in ATTACKS for epsilon in EPSILONS),
)
"""Kind and strength of all that is measured of a network."""

# The runs of one seed, which stand side by side, share their images.
_splits = lru_cache(maxsize=1)(load_splits)
# Another device or version of torch rounds otherwise, and tips predictions that are near a tie.
_TIPPED_SHARE, _TIPPED_LEAST = 0.005, 2  # of the images; images


def torchattacks() -> Any:
    """Imports torchattacks, or says which extra installs it."""
    return needs("torchattacks", "robustness", extra="harness")


def draw_places(size: int, images: int | None) -> list[int]:
    """Draws the places of the images to measure on, the same for every run; all if None.

    Not the first ones, which are of one class where the data set is sorted by class.
    """
    return sorted(np.random.default_rng(0).permutation(size)[:images].tolist())


def add_noise(pixels: Tensor, std: float, places: Sequence[int]) -> Tensor:
    """Adds Gaussian noise to images ``[B, C, H, W]``, and clips them to [0, 1].

    Each image's noise is seeded with its place in the data set.
    """
    shape = pixels.shape[1:]
    noise = np.stack(
        [np.random.default_rng(p).standard_normal(shape, dtype=np.float32) for p in places]
    )
    return (pixels + std * torch.from_numpy(noise).to(pixels.device)).clamp(0, 1)


def replace_region(pixels: Tensor, share: float, places: Sequence[int]) -> Tensor:
    """Replaces a square somewhere in each image ``[B, C, S, S]`` by uniform noise.

    The square has a share of the image's area, but for its side's rounding to pixels. Where it is,
    and its noise, are seeded with the image's place in the data set.
    """
    size = pixels.shape[-1]
    side = round(share**0.5 * size)
    replaced = pixels.clone()
    for image, place in zip(replaced, places, strict=True):
        random = np.random.default_rng(place)
        top, left = random.integers(size - side + 1, size=2)
        region = random.random((len(image), side, side), dtype=np.float32)
        image[:, top : top + side, left : left + side] = torch.from_numpy(region)
    return replaced


def attack(
    model: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    kind: str,
    epsilon: float,
    places: Sequence[int],
) -> Tensor:
    """Moves each pixel of images ``[B, C, H, W]`` by at most epsilon / 255 to raise the loss.

    Pixels stay in [0, 1]. The attacks are torchattacks': the fast gradient sign method (Goodfellow,
    Shlens and Szegedy, ICLR 2015) and projected gradient descent from a random start (Madry et al.,
    ICLR 2018). The start is seeded with the first image's place in the data set: it is the same for
    every model, but not for every batch size. The model and torch's random state are left as they
    were.
    """
    attacks = torchattacks()
    devices = [pixels.device] if pixels.is_cuda else []
    with evaluation_mode(model), torch.random.fork_rng(devices):
        torch.manual_seed(places[0])
        if kind == "fgsm":
            method = attacks.FGSM(model, eps=epsilon / 255)
        else:
            method = attacks.PGD(model, eps=epsilon / 255, alpha=PGD_STEP / 255, steps=PGD_STEPS)
        attacked: Tensor = method(pixels, targets)
    return attacked


def top1(
    model: nn.Module,
    loader: Any,
    places: Sequence[int],
    kind: str,
    strength: float,
    amp: str = "none",
) -> float:
    """Measures the accuracy, in percent, of a model in evaluation mode on perturbed images.

    The loader gives pixels in [0, 1] and class indices of the images at ``places`` in the data set.
    Attacks take their gradients in float32, where nothing underflows; ``amp`` is for the answers.
    """
    right = first = 0
    title = f"{kind} {strength:g}"
    for pixels, targets in tqdm(loader, desc=title, leave=False, disable=None):
        here = places[first : first + len(targets)]
        if kind == "noise":
            pixels = add_noise(pixels, strength, here)
        elif kind == "replacement":
            pixels = replace_region(pixels, strength, here)
        elif kind != "clean":
            pixels = attack(model, pixels, targets, kind, strength, here)
        with torch.inference_mode(), autocast(amp, pixels.device):
            right += (model(pixels).argmax(dim=1) == targets).sum().item()
        first += len(targets)
    return 100 * right / len(places)


def measure_robustness(
    result: Line, out: Path, data_dir: str | None, images: int | None, device: torch.device
) -> Iterator[Line]:
    """Measures one run's ``FIGURES``, and gives the line of each once it is written.

    Args:
        result: The run's line in ``results.jsonl``.
        out: Folder of ``results.jsonl`` and ``checkpoints/``; the lines go to its
            ``robustness.jsonl``.
        data_dir: Where the data set is on this machine.
        images: Measure on so many validation images, drawn once for all runs; on all if None.
        device: Where to compute.

    Raises:
        ValueError: If the checkpoint is missing or broken, or does not fit the data set.
    """
    config = RunConfig.from_identity(result["config"], data_dir)
    places = draw_places(result["validation_size"], images)
    opened = cache(lambda: _open(config, result, out, places, device))

    def measure(kind: str, strength: float) -> Line:
        network, loader = opened()
        accuracy = top1(network, loader, places, kind, strength, config.amp)
        if kind == "clean":
            check_clean(accuracy, len(places), result)
        line = {"top1": accuracy, "device": device_name(device), "torch": torch.__version__}
        return line | ({"torchattacks": torchattacks().__version__} if kind in ATTACKS else {})

    for kind, strength in FIGURES:
        key = {name: result[name] for name in RUN}
        key |= {"kind": kind, "strength": strength, "images": len(places)}
        yield cached(out / "robustness.jsonl", key, partial(measure, kind, strength))


def check_clean(accuracy: float, images: int, result: Line) -> None:
    """Raises if an accuracy on all clean images is not that after training, but for rounding."""
    trained = result["top1_last"]
    tipped = round(abs(accuracy - trained) / 100 * images)
    whole = images == result["validation_size"]
    if whole and tipped > max(_TIPPED_LEAST, _TIPPED_SHARE * images):
        raise ValueError(
            f"top-1 on the clean images is {accuracy:.2f} %, but was {trained:.2f} % after "
            "training: take the data set and the checkpoint of this run"
        )


def _open(
    config: RunConfig, result: Line, out: Path, places: Sequence[int], device: torch.device
) -> tuple[nn.Module, Any]:
    """Makes a run's network, which takes pixels in [0, 1], and a loader of those at ``places``."""
    if config.identity() != result["config"]:
        raise ValueError(
            f"dataset={config.data.dataset!r} in data_dir={config.data.data_dir!r} does not hold "
            "the images that the run was trained on, or another version trained it"
        )
    try:
        state = load_checkpoint(checkpoint_path(config, out), device)
        classes = state["classes"] if state else []
        model = load_model(config, out, len(classes), device)
    except Exception as error:  # a broken file can make torch.load raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot load the network: {reason}") from error
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    data = replace(config.data, num_classes=len(classes))
    dataset: Any = _splits(data, config.seed).validation
    if not isinstance(dataset, IterableDataset):
        dataset = Subset(dataset, places)
    elif len(places) != len(dataset):
        raise ValueError(
            f"dataset={data.dataset!r} is a stream of {len(dataset)} images, which cannot be "
            f"picked, got images={len(places)}: measure on all"
        )
    model_config = resolve_data_config({}, model=model)
    network = nn.Sequential(Normalize(model_config["mean"], model_config["std"]), model).eval()
    model_config |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return network, make_loader(data, dataset, model_config, device, hflip=None)


STRENGTHS = {
    "clean": "clean",
    "noise": "noise: standard deviation on pixels from 0 to 1",
    "replacement": "replacement: share of the area",
    "fgsm": "fgsm: ε in 1/255",
    "pgd": "pgd: ε in 1/255",
}
"""The kinds of images, in the tables' order, and what their strength is."""


def pivot(lines: Sequence[Line]) -> pd.DataFrame:
    """Sorts top-1 by label and seed down, by kind and strength across."""
    order = [*STRENGTHS]
    found = {}
    for line in lines:
        of_run = found.setdefault((line.get("label", line["method"]), line["seed"]), {})
        of_run[line["kind"], float(line["strength"])] = line["top1"]
    frame = pd.DataFrame.from_dict(found, orient="index")
    frame.index = pd.MultiIndex.from_tuples(found, names=["label", "seed"])
    columns = {condition for of_run in found.values() for condition in of_run}
    return frame[sorted(columns, key=lambda c: (order.index(c[0]) if c[0] in order else 99, *c))]


def condition_name(kind: str, strength: float) -> str:
    """Names a corruption or attack with its strength."""
    if kind == "clean":
        return kind
    return f"{kind} {strength:g}{'/255' if kind in ATTACKS else ''}"


def table(lines: Sequence[Line], runs: Runs | None = None) -> Table:
    """Makes a table of top-1 under each corruption and attack: means over the seeds."""
    frame = pivot(lines)
    kinds = dict.fromkeys(kind for kind, _ in frame if kind != "clean")
    images = sorted({str(line["images"]) for line in lines if "images" in line})
    shown = " or ".join(images)
    parts = (
        f"Top-1 in percent of the trained network{f' on {shown} images' if images else ''}",
        "mean ± sample standard deviation over seeds",
        *(STRENGTHS.get(kind, kind) for kind in kinds),
    )
    frame.columns = [condition_name(*condition) for condition in frame]
    columns = dict.fromkeys(frame, Column("max"))
    return table_of_means("Robustness", f"{'; '.join(parts)}.", frame, columns, runs)


MEASUREMENT = Measurement(
    "robustness.jsonl",
    table,
    of="runs",
    key=("label", "seed", "kind", "strength"),
    place=1,
    holds={**RUN, "kind": str, "strength": (int, float), "top1": (int, float)},
)
