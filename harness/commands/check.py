"""``python -m harness check``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from harness.config import expanded


@dataclass(frozen=True)
class Check:
    """Say what a folder of images holds, before anything is trained on it.

    Prints the classes with their counts, the images' sizes and types, and what is odd: files that
    are no images, the same images in both splits, an EXIF orientation. What would keep a training
    from running, or make its figures wrong, ends with one line and exit code 2. Every command that
    opens a folder makes the same check first.

    Usage examples:

      python -m harness check photographs

      python -m harness check photographs --val-split test
    """

    data_dir: Annotated[Path, tyro.conf.Positional]
    """Folder that holds SPLIT/CLASS/, with images at any depth."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "validation"
    """Split to measure on; where there is none called validation, val, valid or test."""
    in_chans: Literal[1, 3] = 3
    """Channels that images are converted to: 3 for RGB, 1 for grey."""

    def __call__(self) -> None:
        from harness.check import check_folder, describe

        root = expanded(self.data_dir)
        mode = "L" if self.in_chans == 1 else "RGB"
        checked = check_folder(root, self.train_split, self.val_split, mode)
        print(describe([checked.train, checked.validation]))
        print(f"\n{root} can be trained on: {len(checked.notes)} remarks")
