"""Lightning, transformers and fastai, as docs/loops.md shows them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from sage_timm import SageMixup
from tests.loops_page import Net, Watch, clean_loss, images_and_labels, run, vit, write_pictures


def loader():
    return DataLoader(TensorDataset(*images_and_labels()), batch_size=10, shuffle=True)


def test_lightning(monkeypatch, tmp_path):
    import lightning

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
    assert watch.check(24, autocast=True) == 24
    assert len(steps) == 12
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


def resnet():
    import transformers

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
    assert watch.check(48, autocast=bf16) == 48
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
    pytest.importorskip("fastai", reason="on machines with a GPU there may be no fastai")
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
    assert watch.check(24) == 24
    assert learn.loss_func is own_loss
    assert after < 0.75 * before
