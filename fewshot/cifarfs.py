"""learn2learn's copy of CIFAR-FS by splits, made whole or not at all."""

import os
import tempfile
from pathlib import Path

from learn2learn.vision.datasets import CIFARFS

from fewshot import layouts


def open_cifarfs(root: Path, split: str) -> CIFARFS:
    """Opens a split, after learn2learn has copied each class to its split's folder.

    It makes that copy in the place where it looks for it, and takes what it finds there for whole.
    Here it is made in a temporary root, and then moved to its place.

    Raises:
        ValueError: If the copy is there but not whole.
    """
    folder = root / "cifarfs"
    if not (folder / "processed").exists():
        _copy_classes(folder)
    for name in layouts.cifarfs(folder / "cifar100", split):
        copied = folder / "processed" / layouts.short(split) / name
        original = folder / "cifar100" / "data" / name
        if _files(copied) != _files(original):
            raise ValueError(
                f"{copied} does not hold what {original} does. Delete {folder}/processed: it is "
                "made anew"
            )
    return CIFARFS(str(root), split)


def _copy_classes(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as temporary:
        made = Path(temporary, "cifarfs")
        made.mkdir()
        (made / "cifar100").symlink_to(folder / "cifar100", target_is_directory=True)
        CIFARFS(temporary)
        os.rename(made / "processed", folder / "processed")


def _files(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}
