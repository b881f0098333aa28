"""Data sets by name: the embedded glyphs, or whatever timm's ``create_dataset`` reads."""

import difflib
import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import (
    ImageDataset,
    add_img_extensions,
    create_dataset,
    create_loader,
    create_transform,
)
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import v2

from harness.check import CheckedFolder, check_folder
from harness.config import DataConfig
from harness.loader import device_loader
from harness.folders import (
    FolderImages,
    as_mode,
    image_extensions,
    listed,
    natural_order,
    stand_ins,
)
from harness.glyphs import CLASSES, Glyphs

_GLYPHS_TRAIN, _GLYPHS_VALIDATION = 10_000, 2_000
_FOLDERS = ("folder", "torch/folder", "torch/image_folder")  # timm's names for one and the same
_TORCH = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "imagenet")
_TORCH += ("inaturalist", "inat", "places365")
_READERS = ("hfds", "hfids", "tfds", "wds")
_IMAGES_IN_FINGERPRINT = 16  # of a split
_PADDING = 8  # a crop may reach an eighth of the side beyond the image


class Source(NamedTuple):
    """Where a data set that timm does not know comes from."""

    open: Callable[[DataConfig, str], Any]
    """Opens a split: pairs of a PIL image and a class index, with ``targets`` and ``classes``."""
    hflip: float
    """Probability of a horizontal flip in training."""


DATASETS: dict[str, Source] = {}


def register_dataset(name: str, open: Callable[[DataConfig, str], Any], hflip: float) -> None:
    """Adds a data set to those that timm knows, or replaces the one of that name.

    Args:
        name: What it is called on the command line.
        open: Opens a split, by the settings and the split's name: pairs of a PIL image and a class
            index, with ``targets`` and ``classes``.
        hflip: Probability of a horizontal flip in training.
    """
    DATASETS[name] = Source(open, hflip)


@dataclass(frozen=True)
class Splits:
    """The two data sets of a run."""

    train: Dataset
    validation: Dataset
    classes: list[str]
    hflip: float
    """Probability of a horizontal flip in training: characters are not the same in a mirror."""
    notes: list[str] = field(default_factory=list)
    """What is odd about the images, a sentence each."""

    @property
    def broken(self) -> int:
        """The number of training images that could not be read, as far as they were tried."""
        train: Any = self.train
        whole = train.dataset if isinstance(train, Subset) else train
        return getattr(whole, "broken", 0)


class Subset(Dataset):
    """Some images of a data set, with a transform of its own."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        image, target = self.dataset[self.indices[index]]
        return image if self.transform is None else self.transform(image), target


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Opens a data set's two splits.

    Args:
        config: Which one.
        seed: Draws the training subset, and the glyphs.

    Raises:
        ValueError: If the data set is not known, cannot be opened or is not fit to be used, or has
            too few images for ``train_size``.
    """
    if config.dataset == "glyphs":
        classes = config.num_classes or len(CLASSES)
        size = config.image_size
        train = Glyphs("train", config.train_size or _GLYPHS_TRAIN, size, seed, classes)
        validation = Glyphs("validation", _GLYPHS_VALIDATION, size, 0, classes)
        if config.train_size:
            _per_class(config.train_size, len(train.classes))
        return Splits(train, validation, train.classes, hflip=0.0)
    check_name(config.dataset)
    if config.dataset in _FOLDERS:
        checked = _checked_folder(config)
        train = FolderImages(checked.train, _mode(config), replace=True)
        validation = FolderImages(checked.validation, _mode(config), replace=False)
        return _splits(config, train, validation, seed, hflip=0.5, notes=checked.notes)
    train = _open(config, config.train_split, seed, training=True)
    validation = _open(config, config.val_split, seed, training=False)
    if isinstance(train, IterableDataset):
        if config.num_classes is None or config.train_size is not None:
            raise ValueError(
                f"dataset={config.dataset!r} is a stream: it needs num_classes, and takes no "
                "train_size, since its images cannot be picked"
            )
        classes = [str(index) for index in range(config.num_classes)]
        return Splits(train, validation, classes, hflip=0.5)
    if config.dataset in DATASETS:
        hflip = DATASETS[config.dataset].hflip
    else:
        hflip = 0.5
        _check_same_classes(config, train, validation)
    return _splits(config, train, validation, seed, hflip)


def _splits(
    config: DataConfig,
    train: Any,
    validation: Any,
    seed: int,
    hflip: float,
    notes: Sequence[str] = (),
) -> Splits:
    targets = targets_of(train)
    classes = _classes(train, targets)
    if len(classes) < 2:
        raise ValueError(
            f"dataset={config.dataset!r} in data_dir={config.data_dir!r} has one class to train "
            f"on, {classes[0]!r}: it takes two or more"
        )
    if config.train_size:
        place = f"of split {config.train_split!r} in {config.data_dir}"
        names = [f"{name!r} {place}" for name in classes]
        indices = balanced_indices(targets, config.train_size, seed, names)
        train = Subset(train, indices)
    return Splits(train, validation, classes, hflip, list(notes))


def check_name(name: str) -> None:
    """Checks that there is a data set of a name, as far as it can be known.

    Raises:
        ValueError: If there is none, with the nearest name that is known.
    """
    prefix, slash, rest = name.partition("/")
    known = ["glyphs", *_FOLDERS, "tar", *(f"torch/{of}" for of in _TORCH), *DATASETS]
    if name in known or (slash and rest and prefix in _READERS):
        return
    by_end = {of.rpartition("/")[2]: of for of in reversed(known)}
    near = difflib.get_close_matches(name.lower(), [*known, *by_end], n=1, cutoff=0.6)
    meant = f": did you mean {by_end.get(near[0], near[0])!r}?" if near else ""
    raise ValueError(
        f"dataset must be glyphs, folder, tar, torch/NAME, or {', '.join(_READERS)} and /NAME, got "
        f"{name!r}{meant}"
    )


def _checked_folder(config: DataConfig) -> CheckedFolder:
    if config.data_dir is None:
        raise ValueError(f"dataset={config.dataset!r} needs data_dir, its folder")
    root = Path(config.data_dir).expanduser()
    return check_folder(root, config.train_split, config.val_split, _mode(config))


def _mode(config: DataConfig) -> str:
    return "L" if config.in_chans == 1 else "RGB"


def count_images(config: DataConfig, seed: int) -> tuple[int | None, int]:
    """Counts the training images, if they can be, and the classes, without drawing glyphs.

    Raises:
        ValueError: As :func:`load_splits`.
    """
    if config.dataset != "glyphs":
        splits = load_splits(config, seed)
        stream = isinstance(splits.train, IterableDataset)
        return None if stream else len(splits.train), len(splits.classes)  # type: ignore[arg-type]
    classes = config.num_classes or len(CLASSES)
    if classes > len(CLASSES):
        raise ValueError(f"num_classes must be in [2, {len(CLASSES)}], got {classes}")
    if config.train_size:
        _per_class(config.train_size, classes)
    return config.train_size or _GLYPHS_TRAIN, classes


@functools.cache
def fingerprint(config: DataConfig) -> str:
    """A digest that tells one data set from another of the same name.

    It is made of both splits' classes, targets and some of their images. The glyphs are all in
    their settings, and of a stream nothing can be known beforehand: for both it is empty.

    Raises:
        ValueError: If the data set cannot be opened.
    """
    if config.dataset == "glyphs":
        return ""
    digest = hashlib.sha256()
    check_name(config.dataset)
    if config.dataset in _FOLDERS:
        checked = _checked_folder(config)
        opened = [FolderImages(f, "RGB", True) for f in (checked.train, checked.validation)]
    else:
        names = (config.train_split, config.val_split)
        opened = [_open(config, split, seed=0, training=False) for split in names]
    for dataset in opened:
        if isinstance(dataset, IterableDataset):
            return ""
        targets = targets_of(dataset)
        digest.update(repr((_classes(dataset, targets), targets)).encode())
        for index in np.linspace(0, len(dataset) - 1, _IMAGES_IN_FINGERPRINT, dtype=int):
            digest.update(np.asarray(dataset[int(index)][0]).tobytes())
    return digest.hexdigest()[:16]


def balanced_indices(
    targets: Sequence[int], size: int, seed: int, classes: Sequence[str] | None = None
) -> list[int]:
    """Draws ``size`` indices, the same number of each class.

    Args:
        targets: The class of each image.
        size: How many to draw.
        seed: Draws them.
        classes: What to call each class in the error.

    Raises:
        ValueError: If ``size`` is no multiple of the number of classes, or a class has too few.
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


def make_loader(
    config: DataConfig,
    dataset: Any,
    model_config: dict[str, Any],
    device: torch.device,
    hflip: float | None,
    devices: int = 1,
):
    """Makes timm's loader, which normalises on the device; ``hflip=None`` is for evaluation.

    In training each device gets its part of the batch; evaluation is for one device.
    """
    training = hflip is not None
    convert = functools.partial(as_mode, mode=_mode(config))
    square = _square(config, model_config)
    if training and config.on_device:
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"on_device=True cannot keep dataset={config.dataset!r}, which is a stream"
            )
        return device_loader(
            dataset,
            v2.Compose([convert, square]),
            padding=config.image_size // _PADDING,
            batch_size=config.batch_size // devices,
            mean=model_config["mean"],
            std=model_config["std"],
            hflip=hflip,
            workers=config.workers,
            device=device,
            distributed=devices > 1,
        )
    loader = create_loader(
        dataset,
        input_size=(config.in_chans, config.image_size, config.image_size),
        batch_size=config.batch_size // devices if training else 4 * config.batch_size,
        is_training=training,
        train_crop_mode=None if config.train_crop_mode == "pad" else config.train_crop_mode,
        scale=config.scale,
        ratio=config.ratio,
        hflip=hflip or 0.0,
        color_jitter=0.0,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],
        std=model_config["std"],
        num_workers=config.workers,
        distributed=training and devices > 1,
        persistent_workers=False,  # fresh workers take their seeds from the epoch's
        device=device,
    )
    steps = [convert, loader.dataset.transform]
    if not training:
        steps = [convert, square, v2.PILToTensor()]
    elif config.train_crop_mode == "pad":
        crop = v2.RandomCrop(config.image_size, padding=config.image_size // _PADDING)
        steps = [convert, square, crop, v2.RandomHorizontalFlip(hflip), v2.PILToTensor()]
    loader.dataset.transform = v2.Compose(steps)
    return loader


def _square(config: DataConfig, model_config: dict[str, Any]) -> Any:
    """Makes timm's evaluation geometry: from a PIL image of any size to a square one."""
    transform = create_transform(
        config.image_size,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],  # the colour of crop_mode="border"
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        use_prefetcher=True,  # ends with a byte tensor, and normalises nothing
    )
    *geometry, _to_tensor = transform.transforms
    return v2.Compose(geometry)


def _open(config: DataConfig, split: str, seed: int, training: bool) -> Any:
    if config.dataset in DATASETS:
        return DATASETS[config.dataset].open(config, split)
    root = None if config.data_dir is None else str(Path(config.data_dir).expanduser())
    streamed = config.dataset.partition("/")[0] in ("hfids", "tfds", "wds")
    try:
        if config.dataset == "tar":
            return open_tar(Path(root or "."), split)
        return create_dataset(
            config.dataset,
            root=root,
            split=split,
            is_training=training,
            download=config.dataset_download,
            batch_size=config.batch_size,
            seed=seed,
            # Streams convert as they decode; of other images, make_loader sees to the mode.
            input_img_mode=_mode(config) if streamed else "",
        )
    except Exception as error:
        raise ValueError(
            f"cannot open split {split!r} of dataset={config.dataset!r} in "
            f"data_dir={config.data_dir!r}: {error or type(error).__name__}"
        ) from error


def open_tar(root: Path, split: str) -> ImageDataset:
    """Opens ``SPLIT.tar``, read by timm, with the classes that its folder would have.

    Raises:
        ValueError: If there is no such file, or an image in it is in no folder.
    """
    names = dict.fromkeys((split, *stand_ins(split)))
    found = [root / f"{name}.tar" for name in names if (root / f"{name}.tar").is_file()]
    if not found or (len(found) > 1 and found[0].stem != split):
        there = listed(sorted(path.name for path in root.glob("*.tar"))) or "no .tar file"
        raise ValueError(f"{root} has no {split}.tar, or more than one for it: it has {there}")
    add_img_extensions(sorted(image_extensions()))
    reader = ReaderImageInTar(str(found[0]))
    members = [[p for p in sample[0].name.split("/") if p != "."] for sample in reader.samples]
    if len({parts[0] for parts in members}) == 1 and all(len(parts) > 2 for parts in members):
        members = [parts[1:] for parts in members]  # the split's own folder was packed
    if any(len(parts) < 2 for parts in members):
        raise ValueError(f"{found[0]} has images beside the classes' folders")
    seen = [i for i, parts in enumerate(members) if not any(p.startswith(".") for p in parts)]
    names = [members[index][0] for index in seen]
    classes = sorted(set(names), key=natural_order)
    reader.class_name_to_idx = {name: target for target, name in enumerate(classes)}
    reader.samples = [reader.samples[index] for index in seen]
    reader.targets = [reader.class_name_to_idx[name] for name in names]
    return ImageDataset(str(found[0]), reader=reader, input_img_mode="")


def _check_same_classes(config: DataConfig, train: Any, validation: Any) -> None:
    one, other = (_classes(opened, targets_of(opened)) for opened in (train, validation))
    apart = sorted(set(one) ^ set(other))
    if apart:
        raise ValueError(
            f"dataset={config.dataset!r}: {config.train_split!r} and {config.val_split!r} need the "
            f"same classes, but only one of them has {listed(apart)}"
        )


def targets_of(dataset: Any) -> list[int]:
    """Returns the class of each image of a split, or of a part of one."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return [targets[index] for index in dataset.indices]
    if hasattr(dataset, "targets"):
        return [int(target) for target in dataset.targets]
    reader = getattr(dataset, "reader", None)
    if hasattr(reader, "targets"):
        return [int(target) for target in reader.targets]
    if hasattr(reader, "samples"):
        return [int(target) for _, target in reader.samples]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _classes(dataset: Any, targets: list[int]) -> list[str]:
    if hasattr(dataset, "classes"):
        return list(dataset.classes)
    reader = getattr(dataset, "reader", None)
    by_name = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if by_name:
        return sorted(by_name, key=by_name.__getitem__)
    return [str(target) for target in range(max(targets) + 1)]


def _per_class(size: int, classes: int) -> int:
    each, rest = divmod(size, classes)
    if rest or not each:
        raise ValueError(f"train_size must be a multiple of the {classes} classes, got {size}")
    return each
