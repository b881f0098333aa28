"""The embedded few-shot data: the harness's glyphs in the files of mini-ImageNet."""

import os
import pickle
from pathlib import Path

import numpy as np

from harness.glyphs import CLASSES, Glyphs

# Shuffled, so that each split has digits, Latin, Greek and Cyrillic letters, and symbols.
_SHUFFLED = tuple(CLASSES[index] for index in np.random.default_rng(2).permutation(len(CLASSES)))
SPLITS = {"train": _SHUFFLED[:64], "validation": _SHUFFLED[64:80], "test": _SHUFFLED[80:]}
IMAGES_PER_CLASS = {"train": 100, "validation": 40, "test": 40}


def write_glyphs(root: Path, image_size: int) -> Path:
    """Draws the glyphs and writes the files that are not there yet.

    Each split's file is laid out as mini-ImageNet's: ``image_data``, uint8 ``[N, H, W, 3]``, and
    ``class_dict``, from a class's name to the indices of its images. The same bits each time.

    Args:
        root: The data sets' common root.
        image_size: Height and width in pixels, at least 8.

    Returns:
        The folder of the three files, ``root/glyphs-{image_size}``.

    Raises:
        ValueError: If ``image_size`` is out of its range.
    """
    folder = root / f"glyphs-{image_size}"
    for split, characters in SPLITS.items():
        path = folder / f"mini-imagenet-cache-{split}.pkl"
        if path.exists():
            continue
        samples = IMAGES_PER_CLASS[split] * len(characters)
        glyphs = Glyphs(split, samples, image_size, classes=characters)
        class_dict = {
            character: list(range(index, samples, len(characters)))
            for index, character in enumerate(characters)
        }
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as file:
                pickle.dump({"image_data": glyphs.images, "class_dict": class_dict}, file)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return folder
