"""The blocks of docs/loops.md, each run with the library that it is for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.io import write_png

from sage_timm import SageMixup
from sage_timm.gradient import in_saliency_pass
from tests.model_snapshot import assert_same, snapshot

PAGE = (Path(__file__).parents[2] / "docs/loops.md").read_text()


def blocks(heading, language="python"):
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.S)


def run(heading, **scope):
    """Runs the blocks below a heading, after the first of the page; returns what they define."""
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], scope)
    for block in blocks(heading):
        exec(block, scope)
    return scope


def images_and_labels():
    """Forty images of ten classes, each a bright row or column at a place of its own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 12, 12, generator=generator) / 4
    labels = torch.arange(10).repeat(4)
    for image, label in zip(images, labels.tolist(), strict=True):
        (image if label < 5 else image.mT)[:, 2 * (label % 5) + 1] += 2
    return images, labels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


class Watch:
    """Asserts that mixing leaves the model alone, and notes what it was trained on."""

    def __init__(self, model, monkeypatch):
        self.mixed, self.seen, self.autocast = [], [], []
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        call = SageMixup.__call__

        def mix(mixup_fn, x, y):
            before, clean = snapshot(model), x.clone()
            mixed, targets = call(mixup_fn, x, y)
            assert_same(before, snapshot(model))
            assert not torch.equal(mixed, clean)
            assert targets.shape == (len(x), 10)
            self.mixed.append(mixed)
            return mixed, targets

        monkeypatch.setattr(SageMixup, "__call__", mix)

    def note(self, model, args, kwargs):
        if model.training and torch.is_grad_enabled():
            self.autocast.append(torch.is_autocast_enabled("cpu"))
            if not in_saliency_pass():
                self.seen.append((*args, *kwargs.values())[0])

    def check(self, steps):
        """Asserts that each step was that of a mixed batch, and none another's."""
        assert len(self.mixed) == len(self.seen) == steps
        for mixed, seen in zip(self.mixed, self.seen, strict=True):
            assert torch.equal(mixed, seen)


@torch.no_grad()
def clean_loss(model, forward=None):
    images, labels = images_and_labels()
    model.eval()
    loss = F.cross_entropy(forward(model, images) if forward else model(images), labels)
    model.train()
    return loss.item()


def loader():
    return DataLoader(TensorDataset(*images_and_labels()), batch_size=10, shuffle=True)


def test_lightning(monkeypatch, tmp_path):
    lightning = pytest.importorskip("lightning")
    scope, net = run("Lightning"), Net()
    watch, before = Watch(net, monkeypatch), clean_loss(net)
    steps = []
    monkeypatch.setattr(torch.optim.SGD, "step", _counted(torch.optim.SGD.step, steps))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=6, precision="bf16-mixed", accumulate_grad_batches=2,
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
        logger=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(scope["Classifier"](net), loader())
    watch.check(24)
    assert len(steps) == 12
    assert all(watch.autocast)  # in the saliency pass as well
    assert clean_loss(net) < 0.6 * before


def _counted(step, steps):
    def counted(*args, **kwargs):
        steps.append(1)
        return step(*args, **kwargs)

    return counted


class Pictures(torch.utils.data.Dataset):
    """As Hugging Face's data sets give them."""

    def __init__(self):
        self.images, self.labels = images_and_labels()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def vit():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=12, patch_size=3, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, num_labels=10,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32], depths=[1], layer_type="basic", num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


def hugging_face(model, folder, **options):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **options
    )
    scope = run("Hugging Face's Trainer", model=model, arguments=arguments, dataset=Pictures())
    return scope["trainer"]


@pytest.mark.parametrize("bf16", [False, True])
def test_hugging_face(monkeypatch, tmp_path, bf16):
    def forward(model, images):
        return model(pixel_values=images).logits

    model = resnet()
    before = clean_loss(model, forward)
    trainer = hugging_face(
        model, tmp_path, num_train_epochs=12, learning_rate=0.01, bf16=bf16,
        per_device_train_batch_size=10,
    )  # fmt: skip
    watch = Watch(model, monkeypatch)
    trainer.train()
    watch.check(48)
    assert clean_loss(model, forward) < 0.8 * before
    assert trainer.evaluate()["eval_loss"] == pytest.approx(clean_loss(model, forward), rel=0.02)
    assert len(watch.mixed) == 48  # evaluation mixes nothing


def test_hugging_faces_accumulated_steps_are_those_of_the_whole_batch(monkeypatch, tmp_path):
    """Two batches of ten, and one of their twenty images."""
    monkeypatch.setattr(SageMixup, "__call__", lambda self, x, y: (x, F.one_hot(y, 10).float()))
    weights = []
    for size, batches in ((10, 2), (20, 1)):
        model = vit()
        trainer = hugging_face(
            model, tmp_path, max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0,
            per_device_train_batch_size=size, gradient_accumulation_steps=batches,
        )  # fmt: skip
        trainer.train()
        weights.append(model.classifier.weight.detach())
    assert not torch.equal(weights[0], vit().classifier.weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_fastai(monkeypatch, tmp_path):
    pytest.importorskip("fastai")
    from fastai.callback.progress import ProgressCallback
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import SGD
    from fastai.torch_core import set_seed
    from fastai.vision.data import ImageDataLoaders

    sage, own_loss, model = run("fastai")["Sage"], CrossEntropyLossFlat(), Net()
    for split in ("train", "valid"):
        write_pictures(tmp_path / split)
    loaders = ImageDataLoaders.from_folder(tmp_path, bs=10, num_workers=0, device="cpu")
    learn = Learner(loaders, model, own_loss, opt_func=SGD, path=tmp_path)
    learn.remove_cb(ProgressCallback)
    watch = Watch(model, monkeypatch)
    with learn.no_logging():
        before = learn.validate()[0]
        set_seed(0)
        learn.fit(6, lr=0.1, cbs=sage())
        after = learn.validate()[0]
    watch.check(24)
    assert learn.loss_func is own_loss
    assert after < 0.6 * before


def write_pictures(folder):
    images, labels = images_and_labels()
    pixels = (64 * images + 96).clamp(0, 255).byte()
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        write_png(image, str(folder / f"{label}/{number}.png"))
