from collections import Counter

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
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
