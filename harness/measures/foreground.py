"""Foreground kept: the share of both objects that survives in a mix, which is SAGE's claim.

A glyph's image is ``background + mask * (colour - background)``: its second term is the contrast of
the character to what is behind it, and the mask is known. Every method that mixes images gives each
pixel of the mix a weighted sum of pixels of the batch, with weights that do not depend on the
pixels once the method has decided; so the mix is the mix of the backgrounds plus the mix of the
contrasts. What is measured is the share of a foreground's mask that the mix takes over, the sum of
the mixed mask over the sum of the mask. It is λ for plain mixup, and for CutMix the share of the
character outside of the box. Where two foregrounds meet in one pixel, both count.

The masks go through the very same call as the images, as tangents of forward-mode differentiation:
the derivative of a mix in the direction of the masks is the mix of the masks. No method
differentiates its saliency, so that takes no part in it.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import sem
from timm.data import resolve_data_config
from timm.utils import random_seed
from torch import Tensor
from torch.autograd import forward_ad
from tqdm import tqdm

from harness.device import made_with
from harness.figures import Column, Table, half_width, table_of_means
from harness.glyphs import CLASSES, Glyphs
from harness.learner import make_loss
from harness.measures import Measurement
from harness.methods import METHODS, REQUIRES, Mix, Training, kind_of, no_steps, normalised
from harness.run_config import RunConfig
from harness.store import Line, cached
from harness.train import Progress, load_model, no_progress, train

MEASURES = ("foreground_kept_0", "foreground_kept_1", "foreground_kept_least", "label_weight")
"""Means over the mixes in percent: the shares that are kept of a mix's main image and of its
partner, the smaller of the two, and the label weight of image 0."""
_IMAGES = 2_000
_BATCH = 20  # a method draws one weight for a batch: in small ones, many weights are drawn
_MOST_BATCHES = 100_000
_CHANNELS = 3
_glyphs = cache(Glyphs)


def measurable_methods() -> tuple[str, ...]:
    """Names the methods that mix images, less those that need a module that is not installed."""
    return tuple(
        name
        for name in METHODS
        if kind_of(name) == "images" and (name not in REQUIRES or find_spec(REQUIRES[name]))
    )


def measure_foreground(
    config: RunConfig,
    methods: Sequence[str],
    out: Path,
    pairs: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[Line]:
    """Measures how much of the foregrounds each method keeps, and appends what is not there yet.

    Each image of a batch of validation glyphs is mixed with its partner, with the saliency of the
    run's network in training mode; it is trained first where ``out`` does not hold it. All methods
    see the same batches, and those that draw alike (timm's Mixup and what follows its order of
    draws) the same weights.

    Returns:
        The methods' lines of ``foreground.jsonl``: ``MEASURES``, and their ``standard_error``
        over the batches.

    Raises:
        ImportError: If a method needs a module that is not installed.
        ValueError: If a setting does not fit.
    """
    _check(config, methods, pairs)
    train(config, out, device, progress=progress)
    identity = config.identity()
    key = {"seed": config.seed, "pairs": pairs, "mixing": identity["mixing"], "config": identity}
    return [
        cached(
            out / "foreground.jsonl",
            {"method": method, **key},
            partial(_measure_method, config, method, out, pairs, device),
        )
        for method in methods
    ]


def foreground_kept(
    mix: Mix, images: Tensor, masks: Tensor, targets: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Measures how much of its two main images' foregrounds each mix of a batch keeps.

    Args:
        mix: The method, without label smoothing.
        images: ``[B, 3, H, W]``.
        masks: Foregrounds ``[B, H, W]``, in [0, 1].
        targets: ``[B]``, all different, so that the mixed targets tell which images are in a mix.
        seed: Seeds all that the method draws.

    Returns:
        The kept shares ``[B, 2]`` in [0, 1] of image 0 (the one in the mix's own place, if it is
        one of the two of most weight) and of image 1; and their label weights ``[B, 2]``.
    """
    count = len(images)
    if len(targets.unique()) < count:
        raise ValueError(f"targets must all differ, got {targets.tolist()}")
    # Most methods mix the batch with its reverse, so that two colours are enough.
    colours = (torch.arange(count, device=images.device) >= count / 2).long()
    of_colour, weights = _mixed_masks(mix, images, masks, targets, colours, seed)
    together = (weights > 0).mT.float() @ (weights > 0).float() > 0
    if (together & (colours == colours[:, None])).triu(1).any():
        colours = torch.tensor(_colours(together), device=images.device)
        of_colour, weights = _mixed_masks(mix, images, masks, targets, colours, seed)
    kept = of_colour[:, colours] / masks.double().sum(dim=(1, 2))
    kept = kept * (weights > 0)  # another image of the same colour is no part of this one
    main = _main_images(weights)
    return kept.gather(1, main), weights.double().gather(1, main)


def _check(config: RunConfig, methods: Sequence[str], pairs: int) -> None:
    """Checks what can be checked before a network is trained."""
    if not methods:
        raise ValueError("methods must name at least one, got none")
    if config.data.dataset != "glyphs":
        raise ValueError(
            f"dataset must be glyphs, whose foregrounds are known, got {config.data.dataset!r}"
        )
    if _classes(config) < _BATCH:
        raise ValueError(
            f"num_classes must be at least {_BATCH}, so that the images of a batch can all be of "
            f"other classes, got {config.data.num_classes}"
        )
    for method in methods:
        if kind_of(method) != "images":
            raise ValueError(
                f"{method} mixes no pixels of a batch by weights, so no foreground can be followed"
            )
        replace(config, method=method)
    if pairs % _BATCH or not 2 * _BATCH <= pairs <= _MOST_BATCHES * _BATCH:
        raise ValueError(
            f"pairs must be a multiple of {_BATCH}, at least {2 * _BATCH}, got {pairs}"
        )


def _classes(config: RunConfig) -> int:
    return config.data.num_classes or len(CLASSES)


def _measure_method(
    config: RunConfig, method: str, out: Path, pairs: int, device: torch.device
) -> Line:
    classes = _classes(config)
    model = load_model(config, out, classes, device).train()
    # The first changes labels only, the second the step after the mix: neither the mix itself.
    mixing = replace(config.mixing, label_smoothing=0.0, update_ratio=1.0)
    mix = METHODS[method](Training(mixing, model, make_loss(config.schedule), classes))
    glyphs = _glyphs("validation", _IMAGES, config.data.image_size, 0, classes)
    data_config = resolve_data_config({}, model=model)
    pixels = torch.from_numpy(glyphs.images).permute(0, 3, 1, 2)
    inputs = normalised(pixels, data_config["mean"], data_config["std"])
    batches = []
    for number in tqdm(range(pairs // _BATCH), desc=method, leave=False, disable=None):
        chosen = _draw_batch(glyphs, config.seed, number)
        images, masks, targets = (
            torch.as_tensor(values)[chosen].to(device)
            for values in (inputs, glyphs.masks, glyphs.targets)
        )
        seed = config.seed * _MOST_BATCHES + number
        kept, weights = foreground_kept(mix, images, masks.float() / 255, targets, seed)
        figures = (kept[:, 0], kept[:, 1], kept.amin(dim=1), weights[:, 0])
        batches.append([100 * figure.mean().item() for figure in figures])
    return {
        **dict(zip(MEASURES, np.mean(batches, axis=0).tolist(), strict=True)),
        "standard_error": dict(zip(MEASURES, sem(batches, axis=0).tolist(), strict=True)),
        **made_with(device),
    }


def _draw_batch(glyphs: Glyphs, seed: int, number: int) -> Tensor:
    """Draws images of classes that all differ; the classes stand in turn."""
    random = np.random.default_rng([seed, number])
    count = len(glyphs.classes)
    classes = random.choice(count, _BATCH, replace=False)
    each = random.integers(len(glyphs) // count, size=_BATCH)
    return torch.from_numpy(classes + count * each)


def _colours(together: Tensor) -> list[int]:
    """Colours images so that no two that are ``together [B, B]`` in a mix have the same colour."""
    colours: list[int] = []
    for row in together.tolist():
        taken = {colour for colour, meet in zip(colours, row, strict=False) if meet}
        colours.append(next(c for c in itertools.count() if c not in taken))
    return colours


def _mixed_masks(
    mix: Mix, images: Tensor, masks: Tensor, targets: Tensor, colours: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Sums the masks of each colour in each mix, ``[B, colours]``, and reads the label weights."""
    sums = []
    for first in range(0, int(colours.max()) + 1, _CHANNELS):
        channels = torch.arange(first, first + _CHANNELS, device=images.device)
        marks = (colours[:, None] == channels)[:, :, None, None] * masks[:, None]
        random_seed(seed)
        with forward_ad.dual_level():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own first use
                dual = forward_ad.make_dual(images.clone(), marks.to(images))
            with no_steps():
                mixed, soft_targets = mix(dual, targets)
            tangent = forward_ad.unpack_dual(mixed).tangent
            if tangent is None:
                raise ValueError("the method does not mix images by differentiable operations")
            sums.append(tangent.double().sum(dim=(2, 3)))
    return torch.cat(sums, dim=1), soft_targets[:, targets]


def _main_images(weights: Tensor) -> Tensor:
    """The two images of most weight in each mix, ``[B, 2]``, the one in its own place first."""
    own = torch.arange(len(weights), device=weights.device)[:, None]
    # Where nothing else has a weight, the own image must still be one of the two.
    preferred = weights + torch.finfo(weights.dtype).tiny * (own == own.mT)
    main = preferred.topk(2).indices
    return torch.where(main[:, 1:] == own, main.flip(1), main)


def table(lines: Sequence[Line]) -> Table:
    """Makes a table with a row a method: means over the seeds, in percent."""
    titles = dict(
        zip(
            MEASURES,
            ("of image 0, %", "of image 1, %", "the smaller of the two, %", "label weight, %"),
            strict=True,
        )
    )
    rows = [line | {"label": line.get("label", line["method"])} for line in lines]
    frame = pd.DataFrame(rows).set_index(["label", "seed"])
    shown = {titles[name]: frame[name] for name in MEASURES if name in frame}
    halves = {
        titles[name]: [_half_width(line, name) for line in lines]
        for name in MEASURES
        if name in frame
    }
    pairs = sorted({str(line["pairs"]) for line in lines if "pairs" in line})
    note = (
        "Percent of the contrast of the foreground that survives the mixing, mean over "
        f"{' or '.join(pairs)} pairs; label weight: image 0's; mean ± sample standard deviation "
        "over seeds, of one seed ± 95 % interval of Student's t over the batches."
    )
    columns = {title: Column("max" if title != titles["label_weight"] else None) for title in shown}
    values, alone = pd.DataFrame(shown), pd.DataFrame(halves, frame.index)
    return table_of_means("Foreground kept", note, values, columns, alone=alone)


def _half_width(line: Line, name: str) -> float:
    error = line.get("standard_error", {}).get(name)
    return math.nan if error is None else half_width(error, line["pairs"] // _BATCH)


MEASUREMENT = Measurement(
    "foreground.jsonl",
    table,
    of="mixes",
    key=("label", "seed"),
    place=2,
    holds={"method": str, "seed": int},
)
