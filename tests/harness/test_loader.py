from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import rand_augment_transform
from timm.utils import random_seed
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from harness.data import DataConfig, load_splits
from harness.loader import DeviceImages, crop, make_loader

MODEL_CONFIG = {"interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
CPU = torch.device("cpu")


def test_crops_and_flips_as_torchvision_does_image_by_image():
    torch.manual_seed(0)
    images = torch.randint(256, (40, 3, 14, 11), dtype=torch.uint8)
    corners = torch.stack((torch.randint(7, (40,)), torch.randint(6, (40,))), dim=1)
    flips = torch.rand(40) < 0.5
    cropped = crop(images, corners, flips, (8, 6))
    for image, (top, left), flip, found in zip(
        images, corners.tolist(), flips, cropped, strict=True
    ):
        expected = F.crop(image, top, left, 8, 6)
        assert torch.equal(found, F.horizontal_flip(expected) if flip else expected)


def test_every_corner_and_both_directions_are_drawn_alike():
    pixels = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2)
    images = DeviceImages(pixels, torch.tensor([7]), (0.0,), (1.0,), padding=1, hflip=0.5)
    torch.manual_seed(0)
    drawn, targets = images.__getitems__([0] * 9_000)
    seen = Counter(tuple((255 * image).round().int().flatten().tolist()) for image in drawn)
    assert len(seen) == 18
    assert all(abs(count - 500) < 5 * 500**0.5 for count in seen.values())
    assert {(1, 2, 3, 4), (2, 1, 4, 3), (0, 0, 0, 1), (0, 0, 1, 0), (4, 0, 0, 0)} <= set(seen)
    assert targets.unique().tolist() == [7]


class Pairs(Dataset):
    """Images and their classes."""

    def __init__(self, pairs):
        self.pairs = pairs
        self.transform = None

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, target = self.pairs[index]
        return self.transform(image), target


class Grey(Dataset):
    """Images that are grey all over, each of another grey, its target."""

    def __init__(self):
        self.transform = None

    def __len__(self):
        return 25

    def __getitem__(self, index):
        return self.transform(Image.new("RGB", (9, 7), (10 * index,) * 3)), index


def test_the_loader_gives_each_image_at_most_once_normalised_and_shuffled_anew():
    config = DataConfig(image_size=8, batch_size=10, on_device=True)
    loader = make_loader(config, Grey(), MODEL_CONFIG, CPU, hflip=0.0)
    assert len(loader) == 2
    torch.manual_seed(0)
    epochs = [list(loader), list(loader)]
    mean, std = (torch.tensor(MODEL_CONFIG[key]) for key in ("mean", "std"))
    for batches in epochs:
        targets = torch.cat([t for _, t in batches])
        images = torch.cat([i for i, _ in batches])
        assert images.shape == (20, 3, 8, 8)
        assert len(targets.unique()) == 20
        middle = images[:, :, 4, 4] * std + mean
        torch.testing.assert_close(middle, (10 * targets[:, None] / 255).expand(20, 3))
    assert [t.tolist() for _, t in epochs[0]] != [t.tolist() for _, t in epochs[1]]
    torch.manual_seed(0)
    for (images, targets), (same, too) in zip(loader, epochs[0], strict=True):
        assert torch.equal(images, same)
        assert torch.equal(targets, too)


def test_each_device_gets_a_part_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        config = DataConfig(image_size=8, batch_size=8, on_device=True)
        loader = make_loader(config, Grey(), MODEL_CONFIG, CPU, hflip=0.5, devices=2)
        loader.sampler.set_epoch(3)
        batches = list(loader)
        assert {len(targets) for _, targets in batches} == {4}
        seen.append({int(t) for _, targets in batches for t in targets})
    assert not seen[0] & seen[1]


def test_augments_after_the_crop_as_timm_does():
    """timm's RandAugment put together by hand, with the same random state."""
    photograph = load_sample_images().images[0]
    images = [(Image.fromarray(photograph[100:164, 100:164]), 0)] * 4
    config = DataConfig(image_size=32, batch_size=4, aa="rand-m9-mstd0.5-inc1")
    options = {
        "translate_const": int(0.45 * 32),
        "img_mean": (128, 102, 76),
        "interpolation": Image.Resampling.BILINEAR,
    }
    by_hand = v2.Compose(
        [
            v2.Resize((32, 32), v2.InterpolationMode.BILINEAR),
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(0.5),
            rand_augment_transform(config.aa, options),
            v2.PILToTensor(),
        ]
    )
    loaders = (
        make_loader(each, Pairs(images), MODEL_CONFIG, CPU, hflip=0.5)
        for each in (config, replace(config, aa=None))
    )
    steps = [by_hand, *(loader.dataset.transform for loader in loaders)]
    changed = 0
    for seed in range(20):
        made = []
        for transform in steps:
            random_seed(seed)
            made.append(transform(images[0][0]))
        assert torch.equal(made[0], made[1]), seed
        changed += not torch.equal(made[1], made[2])
    assert changed >= 10  # each of its two operations is left out half of the time


@pytest.mark.parametrize("mode", ["pad", "rrc"])
def test_augmentation_takes_grey_images_too(mode):
    images = [(Image.new("L", (40, 40), 90), 0)] * 20
    config = DataConfig(image_size=32, batch_size=4, aa="rand-m9", in_chans=1, train_crop_mode=mode)
    grey = MODEL_CONFIG | {"mean": (0.5,), "std": (0.3,)}
    for batch, _ in make_loader(config, Pairs(images), grey, CPU, hflip=0.5):
        assert batch.shape == (4, 1, 32, 32)


@pytest.mark.parametrize("on_device", [False, True])
def test_erases_a_part_of_each_image_by_noise(on_device):
    """Parts of 2 to 33 percent of the area, in other places; the rest is as it was."""
    images = [(Image.new("RGB", (32, 32), (200, 100, 50)), 0)] * 100
    config = DataConfig(image_size=32, batch_size=20, reprob=0.5, on_device=on_device)
    random_seed(0)
    loader = make_loader(config, Pairs(images), MODEL_CONFIG, CPU, hflip=0.0)
    batch = torch.cat([batch for batch, _ in loader])
    mean, std = (torch.tensor(MODEL_CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    colour = (torch.tensor((200, 100, 50)).view(3, 1, 1) / 255 - mean) / std
    black = (0 - mean) / std  # beyond the edge that a crop reaches over
    noise = ~torch.isclose(batch, colour).all(1) & ~torch.isclose(batch, black).all(1)
    shares = noise.float().mean(dim=(1, 2))
    assert 30 <= (shares > 0).sum() <= 70
    assert ((shares == 0) | ((shares > 0.015) & (shares < 0.35))).all()
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in noise if mask.any()}) > 20
    erased = batch.permute(0, 2, 3, 1)[noise]
    assert erased.mean().item() == pytest.approx(0, abs=0.05)
    assert erased.std().item() == pytest.approx(1, abs=0.05)


def test_says_what_it_cannot_keep():
    with pytest.raises(ValueError, match="on_device=True needs train_crop_mode='pad', got 'rrc'"):
        DataConfig(on_device=True, train_crop_mode="rrc").check()

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="on_device=True cannot keep dataset='wds/x', which is a"):
        make_loader(DataConfig("wds/x", on_device=True), Stream(), MODEL_CONFIG, CPU, hflip=0.5)


def test_glyphs_can_be_kept():
    config = DataConfig(image_size=16, train_size=200, on_device=True)
    splits = load_splits(config, seed=0)
    images, targets = next(iter(make_loader(config, splits.train, MODEL_CONFIG, CPU, splits.hflip)))
    assert images.shape == (100, 3, 16, 16)
    assert targets.shape == (100,)
