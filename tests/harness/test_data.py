import hashlib
import io
import json
import pickle
import shutil
import struct
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

import harness.data
from harness.config import ScheduleConfig
from harness.data import (
    DataConfig,
    balanced_indices,
    fingerprint,
    load_splits,
    register_dataset,
)
from harness.glyphs import Glyphs
from harness.loader import make_loader
from harness.run_config import RunConfig
from harness.train import load_model, train

MODEL_CONFIG = {"interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def folder(tmp_path):
    """A folder of images as timm reads it: three classes, eight training images each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (20, 26, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    return DataConfig("folder", str(tmp_path), val_split="test", image_size=16, batch_size=6)


def test_reads_a_folder_through_timm(folder):
    splits = load_splits(folder, seed=0)
    assert splits.classes == ["ant", "bee", "cat"]
    assert (len(splits.train), len(splits.validation)) == (24, 6)


def test_the_fingerprint_is_of_the_images_not_of_their_place(folder, tmp_path):
    copy = tmp_path / "copy"
    for split in ("train", "test"):
        shutil.copytree(tmp_path / split, copy / split)
    moved = replace(folder, data_dir=str(copy))
    assert fingerprint(moved) == fingerprint(folder)
    changed = replace(folder, data_dir=str(tmp_path / "changed"))
    shutil.copytree(copy, changed.data_dir)
    Image.new("RGB", (20, 26)).save(tmp_path / "changed/test/cat/1.png")
    assert fingerprint(changed) != fingerprint(folder)
    fewer = replace(folder, data_dir=str(tmp_path / "fewer"))
    shutil.copytree(copy, fewer.data_dir)
    (tmp_path / "fewer/train/ant/3.png").unlink()
    assert fingerprint(fewer) != fingerprint(folder)


def test_a_registered_data_set_is_opened_by_its_name(monkeypatch):
    monkeypatch.setattr(harness.data, "_REGISTERED", {})
    config = DataConfig("mine", train_size=4)
    with pytest.raises(ValueError, match="got 'mine'"):
        load_splits(config, seed=0)

    def open_split(settings, split):
        assert settings.dataset == "mine"
        return Glyphs(split, 8, 16, classes=2 if split == "train" else 3)

    register_dataset("mine", open_split, hflip=0.2)
    splits = load_splits(config, seed=0)
    assert (splits.classes, splits.hflip) == (["1", "2"], 0.2)
    assert (len(splits.train), len(splits.validation)) == (4, 8)
    assert fingerprint(config) != fingerprint(replace(config, train_split="test"))


def test_reads_torchvisions_cifar_through_timm(tmp_path):
    """The files of CIFAR-10 as torchvision stores them, made here with ten images each."""
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    random = np.random.default_rng(0)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def images(_name):
        return {
            "data": random.integers(0, 256, (10, 3072), dtype=np.uint8),
            "labels": list(range(10)),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "train_list", [write(n, images(n)) for n, _ in CIFAR10.train_list])
        patch.setattr(CIFAR10, "test_list", [write(n, images(n)) for n, _ in CIFAR10.test_list])
        names = [f"class {i}" for i in range(10)]
        name, digest = write("batches.meta", {"label_names": names})
        patch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
        splits = load_splits(DataConfig("torch/cifar10", str(tmp_path), train_size=20), seed=0)
    assert splits.classes == names
    assert len(splits.train) == 20
    assert len(splits.validation) == 10


@pytest.fixture
def webdataset(tmp_path):
    """The same images as shards, as timm's wds reader takes them."""
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 24), ("validation", 10)):
        name = f"{split}-0000.tar"
        with tarfile.open(tmp_path / name, "w") as shard:
            for index in range(count):
                picture = io.BytesIO()
                pixels = random.integers(0, 256, (20, 26, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(picture, "JPEG")
                for suffix, content in (("jpg", picture.getvalue()), ("cls", b"%d" % (index % 3))):
                    member = tarfile.TarInfo(f"{index:04d}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
        splits[split] = {
            "name": split,
            "num_samples": count,
            "filenames": [name],
            "shard_lengths": [count],
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return DataConfig("wds/made", str(tmp_path), image_size=16, batch_size=6)


def test_reads_a_stream_through_timm(webdataset):
    splits = load_splits(replace(webdataset, num_classes=3), seed=0)
    assert splits.classes == ["0", "1", "2"]
    batches = list(make_loader(webdataset, splits.train, MODEL_CONFIG, torch.device("cpu"), 0.5))
    assert [images.shape for images, _ in batches] == [(6, 3, 16, 16)] * 4
    measured = make_loader(webdataset, splits.validation, MODEL_CONFIG, torch.device("cpu"), None)
    assert torch.cat([t for _, t in measured]).tolist() == [i % 3 for i in range(10)]


def test_a_stream_must_say_its_classes_and_cannot_be_picked_from(webdataset):
    for change in ({}, {"num_classes": 3, "train_size": 6}):
        with pytest.raises(ValueError, match="is a stream: it needs num_classes, and takes no"):
            load_splits(replace(webdataset, **change), seed=0)


@pytest.mark.parametrize("crop_mode", ["pad", "rrc"])
def test_the_loader_crops_and_normalises(folder, crop_mode):
    config = replace(folder, train_crop_mode=crop_mode)
    splits = load_splits(config, seed=0)
    for dataset, hflip in ((splits.train, 0.5), (splits.validation, None)):
        images, targets = next(
            iter(make_loader(config, dataset, MODEL_CONFIG, torch.device("cpu"), hflip))
        )
        assert images.shape == (6, 3, 16, 16)
        assert images.dtype == torch.float32
        assert targets.dtype == torch.int64
        mean, std = (torch.tensor(MODEL_CONFIG[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        pixels = images * std + mean
        assert pixels.min() > -1e-4
        assert pixels.max() < 1 + 1e-4
        assert 0.3 < pixels.mean() < 0.6


def test_evaluation_shows_each_image_once_and_whole(folder):
    splits = load_splits(folder, seed=0)
    loader = make_loader(folder, splits.validation, MODEL_CONFIG, torch.device("cpu"), None)
    targets = torch.cat([t for _, t in loader])
    assert targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_train_size_takes_the_same_number_of_each_class(folder):
    splits = load_splits(replace(folder, train_size=9), seed=0)
    assert Counter(target for _, target in splits.train) == {0: 3, 1: 3, 2: 3}


def test_balanced_indices_follow_the_seed():
    targets = [0, 1, 2] * 40
    one, same, other = (balanced_indices(targets, 30, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 30
    assert Counter(targets[i] for i in one) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize("size", [0, 2, 10])
def test_a_train_size_that_cannot_be_balanced_is_refused(size):
    with pytest.raises(
        ValueError, match=f"train_size must be a multiple of the 3 classes, got {size}"
    ):
        balanced_indices([0, 1, 2] * 5, size, seed=0)


def test_too_few_images_of_a_class_are_refused():
    with pytest.raises(ValueError, match="takes 3 images of each class, but class 1 has 2"):
        balanced_indices([0, 0, 0, 1, 1], 6, seed=0)


def test_glyphs_need_a_balanced_size_too():
    with pytest.raises(
        ValueError, match="train_size must be a multiple of the 100 classes, got 150"
    ):
        load_splits(DataConfig(train_size=150, image_size=8), seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_data_sets_of_one_channel_are_read_through_timm(tmp_path, channels):
    """MNIST's files as torchvision stores them, made here with 30 training images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = {}
    for name, count in (("train", 30), ("t10k", 10)):
        pixels[name] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels[name].tobytes())
        header = struct.pack(">II", 2049, count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    config = DataConfig("torch/mnist", str(tmp_path), image_size=28, in_chans=channels)
    model_config = {
        "interpolation": "bilinear",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    splits = load_splits(config, seed=0)
    loader = make_loader(config, splits.validation, model_config, torch.device("cpu"), None)
    images = torch.cat([images for images, _ in loader])
    expected = torch.from_numpy(pixels["t10k"])[:, None].expand(-1, channels, -1, -1) / 255
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("method", ["sage", "saliencymix", "puzzlemix", "manifold"])
def test_networks_of_one_channel_are_trained(tmp_path, method):
    data = DataConfig(num_classes=2, train_size=40, image_size=16, batch_size=20, in_chans=1)
    run = RunConfig(method, 0, data=data, schedule=ScheduleConfig(epochs=1))
    assert train(run, tmp_path, torch.device("cpu"))["train_loss"] < 2
    network = load_model(run, tmp_path, 2, torch.device("cpu"))
    assert network.stem.conv.weight.shape[1] == 1
    grey = network.pretrained_cfg["mean"][0]
    assert grey == pytest.approx(np.mean([0.4914, 0.4824, 0.4467]))  # CIFAR-10's
