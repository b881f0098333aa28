"""Data sets by name: the embedded glyphs, folders of images, and what timm reads."""

import difflib
import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from harness.check import check_folder
from harness.config import DataConfig
from harness.folders import FolderImages, image_mode, listed, open_tar
from harness.glyphs import CLASSES, Glyphs

_GLYPHS_TRAIN, _GLYPHS_VALIDATION = 10_000, 2_000
_FOLDERS = ("folder", "torch/folder", "torch/image_folder")  # timm's names for one and the same
_TORCH = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "imagenet")
_TORCH += ("inaturalist", "inat", "places365")
_READERS = ("hfds", "hfids", "tfds", "wds")
_IMAGES_IN_FINGERPRINT = 16  # of a split

Open = Callable[[DataConfig, str], Any]
"""Opens a split: pairs of a PIL image and a class index, with ``targets`` and ``classes``."""

_REGISTERED: dict[str, tuple[Open, float]] = {}


def register_dataset(name: str, open: Open, hflip: float) -> None:
    """Adds a data set, or replaces the one of that name.

    Args:
        name: What it is called on the command line.
        open: Opens a split of it, by the settings and the split's name.
        hflip: Probability of a horizontal flip in training.
    """
    _REGISTERED[name] = (open, hflip)


class Subset(Dataset):
    """Some images of a data set, with a transform of their own."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        image, target = self.dataset[self.indices[index]]
        return image if self.transform is None else self.transform(image), target


@dataclass(frozen=True)
class Splits:
    """The two data sets of a run."""

    train: Dataset
    validation: Dataset
    classes: list[str]
    hflip: float
    """Probability of a horizontal flip in training: characters are not the same in a mirror."""
    notes: list[str] = field(default_factory=list)
    """A sentence on each thing that is odd about the images."""

    @property
    def broken(self) -> int:
        """The number of training images that could not be read so far."""
        train: Any = self.train
        return getattr(train.dataset if isinstance(train, Subset) else train, "broken", 0)


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Opens a data set's two splits; the seed draws the training subset, and the glyphs.

    Raises ValueError if the data set is not known, cannot be opened or used, or is too small.
    """
    if config.dataset == "glyphs":
        count, classes = _count_glyphs(config)
        train = Glyphs("train", count, config.image_size, seed, classes)
        validation = Glyphs("validation", _GLYPHS_VALIDATION, config.image_size, 0, classes)
        return Splits(train, validation, train.classes, hflip=0.0)
    train, validation, notes = _open_both(config, seed, image_mode(config.in_chans))
    if isinstance(train, IterableDataset):
        if config.num_classes is None or config.train_size is not None:
            raise ValueError(
                f"dataset={config.dataset!r} is a stream: it needs num_classes, and takes no "
                "train_size, since its images cannot be picked"
            )
        return Splits(train, validation, list(map(str, range(config.num_classes))), hflip=0.5)
    targets = targets_of(train)
    names = _classes(train, targets)
    _, hflip = _REGISTERED.get(config.dataset, (None, 0.5))
    apart = sorted(set(names) ^ set(_classes(validation, targets_of(validation))))
    if apart and config.dataset not in _REGISTERED:  # those may share no class
        raise ValueError(
            f"dataset={config.dataset!r}: {config.train_split!r} and {config.val_split!r} need the "
            f"same classes, but only one of them has {listed(apart)}"
        )
    if len(names) < 2:
        raise ValueError(
            f"dataset={config.dataset!r} in data_dir={config.data_dir!r} has one class to train "
            f"on, {names[0]!r}: it takes two or more"
        )
    if config.train_size:
        place = f"of split {config.train_split!r} in {config.data_dir}"
        called = [f"{name!r} {place}" for name in names]
        train = Subset(train, balanced_indices(targets, config.train_size, seed, called))
    return Splits(train, validation, names, hflip, notes)


def dataset_name(config: DataConfig) -> str:
    """Returns what results and the report call a data set: its given name, or its folder's own."""
    if config.name is not None:
        return config.name
    own = config.dataset in (*_FOLDERS, "tar") and config.data_dir is not None
    return (os.path.basename(os.path.abspath(config.data_dir)) if own else "") or config.dataset


def count_images(config: DataConfig, seed: int) -> tuple[int | None, int]:
    """Counts the training images (None for a stream) and the classes, without drawing glyphs."""
    if config.dataset == "glyphs":
        return _count_glyphs(config)
    splits = load_splits(config, seed)
    stream = isinstance(splits.train, IterableDataset)
    return None if stream else len(splits.train), len(splits.classes)  # type: ignore[arg-type]


def _count_glyphs(config: DataConfig) -> tuple[int, int]:
    classes = config.num_classes or len(CLASSES)
    if classes > len(CLASSES):
        raise ValueError(f"num_classes must be in [2, {len(CLASSES)}], got {classes}")
    if config.train_size:
        _per_class(config.train_size, classes)
    return config.train_size or _GLYPHS_TRAIN, classes


@functools.cache
def fingerprint(config: DataConfig) -> str:
    """Computes a digest of both splits' classes, targets and some of their images.

    It tells one data set from another of the same name. It is empty for the glyphs, which are all
    in their settings, and for a stream, of which nothing is known beforehand.
    """
    if config.dataset == "glyphs":
        return ""
    digest = hashlib.sha256()
    for dataset in _open_both(config, seed=0, mode="RGB")[:2]:
        if isinstance(dataset, IterableDataset):
            return ""
        targets = targets_of(dataset)
        digest.update(repr((_classes(dataset, targets), targets)).encode())
        for index in np.linspace(0, len(dataset) - 1, _IMAGES_IN_FINGERPRINT, dtype=int):
            digest.update(np.asarray(dataset[int(index)][0]).tobytes())
    return digest.hexdigest()[:16]


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest name, if there can be no data set of a name."""
    prefix, slash, rest = name.partition("/")
    known = ["glyphs", *_FOLDERS, "tar", *(f"torch/{of}" for of in _TORCH), *_REGISTERED]
    if name in known or (slash and rest and prefix in _READERS):
        return
    by_end = {of.rpartition("/")[2]: of for of in reversed(known)}
    near = difflib.get_close_matches(name.lower(), [*known, *by_end], n=1, cutoff=0.6)
    meant = f": did you mean {by_end.get(near[0], near[0])!r}?" if near else ""
    raise ValueError(
        f"dataset must be glyphs, folder, tar, torch/NAME, or {', '.join(_READERS)} and /NAME, got "
        f"{name!r}{meant}"
    )


def balanced_indices(
    targets: Sequence[int], size: int, seed: int, classes: Sequence[str] | None = None
) -> list[int]:
    """Draws ``size`` indices, the same number of each class.

    Raises ValueError if that cannot be done; a class is called by its name in ``classes`` there.
    """
    by_class = defaultdict(list)
    for index, target in enumerate(targets):
        by_class[target].append(index)
    each = _per_class(size, len(by_class))
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for target, indices in sorted(by_class.items()):
        if len(indices) < each:
            name = target if classes is None else classes[target]
            raise ValueError(
                f"train_size={size} takes {each} images of each class, but class {name} has "
                f"{len(indices)}"
            )
        chosen += random.choice(indices, each, replace=False).tolist()
    return sorted(chosen)


def _per_class(size: int, classes: int) -> int:
    each, rest = divmod(size, classes)
    if rest or not each:
        raise ValueError(f"train_size must be a multiple of the {classes} classes, got {size}")
    return each


def targets_of(dataset: Any) -> list[int]:
    """Returns the class of each image of a split, or of a part of one."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return [targets[index] for index in dataset.indices]
    for source in (dataset, getattr(dataset, "reader", None)):
        if hasattr(source, "targets"):
            return [int(target) for target in source.targets]
    if hasattr(source, "samples"):
        return [int(target) for _, target in source.samples]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _classes(dataset: Any, targets: list[int]) -> list[str]:
    if hasattr(dataset, "classes"):
        return list(dataset.classes)
    reader = getattr(dataset, "reader", None)
    by_name = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", {})
    return sorted(by_name, key=by_name.__getitem__) or list(map(str, range(max(targets) + 1)))


def _open_both(config: DataConfig, seed: int, mode: str) -> tuple[Any, Any, list[str]]:
    """Opens both splits whole, and says what is odd; ``mode`` is that of a folder's images."""
    check_name(config.dataset)
    if config.dataset not in _FOLDERS:
        train, validation = (_open(config, seed, training) for training in (True, False))
        return train, validation, []
    if config.data_dir is None:
        raise ValueError(f"dataset={config.dataset!r} needs data_dir, its folder")
    splits = config.train_split, config.val_split
    checked = check_folder(Path(config.data_dir), *splits, image_mode(config.in_chans))
    train = FolderImages(checked.train, mode, replace=True)
    return train, FolderImages(checked.validation, mode, replace=False), list(checked.notes)


def _open(config: DataConfig, seed: int, training: bool) -> Any:
    split = config.train_split if training else config.val_split
    if config.dataset in _REGISTERED:
        return _REGISTERED[config.dataset][0](config, split)
    streamed = config.dataset.partition("/")[0] in ("hfids", "tfds", "wds")
    try:
        if config.dataset == "tar":
            return open_tar(Path(config.data_dir or "."), split)
        return create_dataset(
            config.dataset,
            root=config.data_dir,
            split=split,
            is_training=training,
            download=config.dataset_download,
            batch_size=config.batch_size,
            seed=seed,
            # Streams convert as they decode; of other images, the loader sees to the mode.
            input_img_mode=image_mode(config.in_chans) if streamed else "",
        )
    except Exception as error:
        raise ValueError(
            f"cannot open split {split!r} of dataset={config.dataset!r} in "
            f"data_dir={config.data_dir!r}: {error or type(error).__name__}"
        ) from error
