import functools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import timm
import torch

import harness.train
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.glyphs import Glyphs
from harness.methods import METHODS
from harness.methods.base import MethodConfig
from harness.run_config import RunConfig
from harness.store import load_checkpoint, read_results
from harness.train import Validation, checkpoint_path, load_model, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TINY = RunConfig(
    "sage",
    seed=1,
    data=DataConfig(train_size=100, image_size=8, batch_size=20),
    schedule=ScheduleConfig(epochs=3),
    mixing=MethodConfig(update_ratio=0.7, search_fraction=0.1),
)
FLAGS = [
    *("--train-size", "100", "--image-size", "8", "--batch-size", "20", "--epochs", "3"),
    *("--update-ratio", "0.7", "--search-fraction", "0.1", "--seeds", "1"),
]


def untimed(line):
    """A result without the figures that depend on the machine's mood."""
    of_the_machine = ("step_ms", "train_seconds", "finished", "history")
    kept = {k: v for k, v in line.items() if k not in of_the_machine}
    history = [
        {k: v for k, v in epoch.items() if k not in ("step_ms", "seconds")}
        for epoch in line["history"]
    ]
    return {**kept, "history": history}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(tmp_path, method):
    config = replace(TINY, method=method)
    one, other = (train(config, tmp_path / name, CPU) for name in "ab")
    assert untimed(one) == untimed(other)
    weights = [load_model(config, tmp_path / name, 100, CPU).state_dict() for name in "ab"]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_result_holds_what_the_design_asks_for(tmp_path):
    line = train(TINY, tmp_path, CPU)
    assert read_results(tmp_path / "results.jsonl") == [line]
    expected = {
        "method": "sage",
        "seed": 1,
        "dataset": "glyphs",
        "model": "preactresnet8_cifar",
        "epochs": 3,
        "train_size": 100,
        "torch": torch.__version__,
    }
    assert expected.items() <= line.items()
    assert {"step_ms", "device", "timm", "config"} <= line.keys()
    for measure in ("top1", "top5", "nll", "ece"):
        assert line[measure] >= 0
        assert line[f"{measure}_last"] == line["history"][-1][measure]
    assert line["config"]["mixing"]["update_ratio"] == 0.7
    assert len(line["history"]) == 3


def test_a_result_holds_the_classes_and_their_accuracies(tmp_path):
    """The glyphs' classes are of one size, so that the mean over them is top-1."""
    line = train(replace(TINY, method="none"), tmp_path, CPU)
    assert len(line["classes"]) == len(line["class_accuracy"]) == 100
    assert line["balanced_last"] == pytest.approx(line["top1_last"])
    assert statistics.mean(line["class_accuracy"]) == pytest.approx(line["top1_last"], abs=1e-3)
    assert "class_accuracy_last" not in line
    assert "class_accuracy" not in line["history"][-1]
    assert "diverged" not in line


@pytest.mark.parametrize("method", ["none", "mixup", "manifold", "sage"])
def test_a_run_that_diverges_is_marked_and_ends(tmp_path, method):
    config = replace(TINY, method=method, schedule=ScheduleConfig(epochs=3, lr=1e9))
    line = train(config, tmp_path, CPU)
    assert line["diverged"] is True
    assert (line["train_loss"], line["nll"], line["ece"]) == (None, None, None)
    assert read_results(tmp_path / "results.jsonl") == [line]
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()
    assert train(config, tmp_path, CPU) == line  # and is not trained again


def test_a_figure_that_is_not_finite_in_one_epoch_leaves_no_median(tmp_path):
    """Whatever its place among the epochs: NaN has none in their order."""
    figures = iter([1.0, 3.0, math.nan, 2.0, 4.0])
    config = replace(TINY, method="none", schedule=ScheduleConfig(epochs=5))
    validation = Validation(lambda *_: {"top1": 50.0, "nll": next(figures)})
    config = replace(config, batch_norm="running")
    line = train(config, tmp_path, CPU, validation=validation)
    assert line["nll"] is None
    assert line["nll_last"] == 4
    assert line["diverged"]
    assert [epoch["nll"] for epoch in line["history"]] == [1, 3, None, 2, 4]


def test_top1_is_the_median_of_the_last_ten_epochs(tmp_path):
    config = replace(TINY, method="none", schedule=ScheduleConfig(epochs=12))
    line = train(config, tmp_path, CPU)
    measured = [epoch["top1"] for epoch in line["history"] if "top1" in epoch]
    assert len(measured) == 10
    middle = sorted(measured)[4:6]
    assert line["top1"] == pytest.approx(sum(middle) / 2)
    assert line["top1_last"] == measured[-1]


def test_the_accuracy_is_that_of_the_checkpoint(tmp_path):
    """Counted by hand, image by image, on the network that was saved."""
    config = replace(TINY, method="none")
    line = train(config, tmp_path, CPU)
    model = load_model(config, tmp_path, 100, CPU).eval()
    data = Glyphs("validation", 200, 8, seed=0)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    images = (torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == torch.tensor(data.targets)).sum().item()
    assert line["top1_last"] == pytest.approx(100 * right / 200)


def test_a_run_that_stands_there_is_skipped(tmp_path):
    line = train(TINY, tmp_path, CPU)
    started = time.perf_counter()
    assert train(TINY, tmp_path, CPU) == line
    assert time.perf_counter() - started < 1
    assert len(read_results(tmp_path / "results.jsonl")) == 1


def test_a_log_says_what_was_skipped_resumed_and_trained(tmp_path, capsys, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    config = replace(TINY, method="none")
    with monkeypatch.context() as patch:
        patch.setattr(harness.train._Run, "result", die)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, measured_epochs=1), tmp_path, CPU)
    epochs = capsys.readouterr().err.splitlines()
    assert len(epochs) == 3
    assert re.fullmatch(r" +none  seed 1  epoch 1/3  loss \d\.\d{4}  \d+\.\d s", epochs[0])
    assert re.search(r"epoch 3/3  loss \d\.\d{4}  top-1 +\d+\.\d\d %  \d+\.\d s$", epochs[2])
    line = train(replace(config, measured_epochs=1), tmp_path, CPU)
    assert capsys.readouterr().err == "    none  seed 1  resumed at epoch 3 of 3\n"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(line["finished"])
    assert age < timedelta(minutes=5)
    train(replace(config, measured_epochs=1), tmp_path, CPU)
    day = line["finished"][:10]
    assert capsys.readouterr().err == f"    none  seed 1  skipped, done on {day}\n"


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_broken_checkpoint_is_set_aside_and_the_run_starts_anew(tmp_path, capsys, damage):
    config = replace(TINY, method="none")
    line = train(config, tmp_path, CPU)
    (tmp_path / "results.jsonl").unlink()
    checkpoint = checkpoint_path(config, tmp_path)
    if damage == "other":
        torch.save({"model": {}, "history": line["history"]}, checkpoint)
    else:
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no checkpoint")
    broken = checkpoint.read_bytes()
    capsys.readouterr()
    assert untimed(train(config, tmp_path, CPU)) == untimed(line)
    aside = checkpoint.with_suffix(".broken")
    assert aside.read_bytes() == broken
    said = rf"    none  seed 1  starts anew: its checkpoint was broken, and is now {aside}: .+"
    assert re.fullmatch(said, capsys.readouterr().err.splitlines()[0])
    assert load_checkpoint(checkpoint, CPU)["history"]


def test_another_setting_is_another_run(tmp_path):
    config = replace(TINY, schedule=ScheduleConfig(epochs=1))
    train(config, tmp_path, CPU)
    train(replace(config, mixing=MethodConfig(lambda_max=0.5)), tmp_path, CPU)
    train(replace(config, data=replace(config.data, dataset_download=True)), tmp_path, CPU)
    assert len(read_results(tmp_path / "results.jsonl")) == 2


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["none", "sage", "manifold", "puzzlemix", "comixup"])
def test_half_precision_trains_to_about_the_same_loss(tmp_path, method, amp):
    lines = [train(replace(TINY, method=method, amp=kind), tmp_path, CPU) for kind in ("none", amp)]
    full, half = (line["history"][0]["train_loss"] for line in lines)
    assert half == pytest.approx(full, rel=0.03)
    assert half != full
    assert len(read_results(tmp_path / "results.jsonl")) == 2


def test_a_compiled_network_trains_to_the_same_loss(tmp_path, monkeypatch):
    """With SAGE's shared gradients, whose hook must not be compiled away.

    Without code generation, which takes a minute: what is traced and what is not stays the same.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    mixing = replace(TINY.mixing, lambda_max=1)
    config = replace(TINY, mixing=mixing, schedule=ScheduleConfig(epochs=2))
    lines = [train(replace(config, compile=c), tmp_path, CPU) for c in (False, True)]
    losses = [[epoch["train_loss"] for epoch in line["history"]] for line in lines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    other = train(replace(config, mixing=replace(mixing, update_ratio=1)), tmp_path, CPU)
    assert abs(other["train_loss"] - losses[0][-1]) > 1e-3


def accuracy(state, config):
    """Counts by hand, image by image, how often some weights are right."""
    model = timm.create_model(config.model, num_classes=100)
    model.load_state_dict(state)
    model.eval()
    data = Glyphs("validation", 200, 8, seed=0)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    images = (torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == torch.tensor(data.targets)).float().mean().item()


def test_the_averaged_network_is_what_counts(tmp_path, monkeypatch):
    """Averaged by the formula in float64, from the weights after each step."""
    steps = []

    def stepped(loss, optimizer, *arguments):
        step(loss, optimizer, *arguments)
        weights = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
        steps.append([weight.double() for weight in weights])

    step = harness.train.training_step
    monkeypatch.setattr(harness.train, "training_step", stepped)
    schedule = ScheduleConfig(epochs=3, lr=0.05, model_ema=True, model_ema_decay=0.7)
    config = replace(TINY, method="none", schedule=schedule)
    line = train(config, tmp_path, CPU)
    state = load_checkpoint(checkpoint_path(config, tmp_path), CPU)
    average = steps[0]
    for number, weights in enumerate(steps[1:], start=1):
        decay = min(0.7, 1 - (1 + number) ** (-2 / 3))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    kept = [value.double() for value in state["model_ema"].values()]
    for wanted in average:
        alike = [value for value in kept if value.shape == wanted.shape]
        assert any(torch.allclose(value, wanted, atol=1e-6) for value in alike), wanted.shape
    loaded = load_model(config, tmp_path, 100, CPU).state_dict()
    assert all(torch.equal(loaded[name], state["model_ema"][name]) for name in loaded)
    assert line["top1_last"] == pytest.approx(accuracy(state["model_ema"], config))
    assert line["top1_unaveraged_last"] == pytest.approx(accuracy(state["model"], config))
    plain = replace(config, schedule=replace(schedule, model_ema=False))
    assert "top1_unaveraged" not in train(plain, tmp_path, CPU)
    unaveraged = load_model(plain, tmp_path, 100, CPU).state_dict()
    for name, value in unaveraged.items():  # training itself is as without averages
        if "running" not in name:  # the order in which statistics are taken is another
            assert torch.equal(value, state["model"][name]), name


RECIPES = {
    "all": RunConfig(
        "sage",
        seed=1,
        data=replace(TINY.data, aa="rand-m6-mstd0.5-inc1", reprob=0.5),
        schedule=ScheduleConfig(
            epochs=3, opt="adamw", lr=1e-3, warmup_epochs=1, layer_decay=0.8, clip_grad=1.0,
            bce_loss=True, bce_target_thresh=0.2, model_ema=True,
        ),
        drop_path=0.2,
    ),
    "lamb": RunConfig(
        "mixup-cutmix",
        seed=1,
        data=replace(TINY.data, on_device=True, reprob=0.5),
        schedule=ScheduleConfig(epochs=3, opt="lookahead_lamb", lr=1e-3, model_ema=True),
        mixing=MethodConfig(alpha=0.1, cutmix_alpha=1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_was_cut_off_ends_with_the_same_bits(tmp_path, recipe):
    class CutOffError(Exception):
        pass

    def cut_off(epochs):
        if epochs == 1:
            raise CutOffError

    config = RECIPES[recipe]
    with pytest.raises(CutOffError):
        train(config, tmp_path / "cut", CPU, progress=cut_off)
    cut, whole = (train(config, tmp_path / name, CPU) for name in ("cut", "whole"))
    assert untimed(cut) == untimed(whole)
    states = [load_checkpoint(checkpoint_path(config, tmp_path / n), CPU) for n in ("cut", "whole")]
    for part in ("model", "model_ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    assert "diverged" not in cut


def start(out, *flags):
    command = [sys.executable, "-m", "harness", "train", *FLAGS, "--out", str(out), *flags]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    flags = ["--methods", "none", "sage"]
    checkpoints = tmp_path / "killed" / "checkpoints"
    process = start(tmp_path / "killed", *flags, "--epochs", "12")
    while not list(checkpoints.glob("sage-*.pt")):  # in the middle of the second run
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_results(tmp_path / "killed" / "results.jsonl")) == 1
    trained = len(torch.load(next(checkpoints.glob("sage-*.pt")))["history"])
    assert 1 <= trained < 12
    assert start(tmp_path / "killed", *flags, "--epochs", "12").wait() == 0
    assert start(tmp_path / "whole", *flags, "--epochs", "12").wait() == 0
    killed, whole = (
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").open()]
        for name in ("killed", "whole")
    )
    assert [untimed(line) for line in killed] == [untimed(line) for line in whole]
    assert len(killed) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "nosuchmix"}, "method must be one of none, mixup, cutmix, .* got 'nosuchmix'"),
        ({"schedule": ScheduleConfig(epochs=0)}, r"epochs must be in \(0, 100000\), got 0"),
        ({"data": DataConfig(batch_size=25)}, r"batch_size must be even on each of 1 device\(s\)"),
        (
            {"data": DataConfig(batch_size=50), "devices": 2},
            r"batch_size must be even on each of 2 device\(s\), since timm's Mixup mixes pairs",
        ),
        (
            {"method": "manifold", "compile": True},
            "manifold reaches into hidden layers .* without compile",
        ),
        ({"model": "no_such_net"}, r"model must be one that timm.list_models\(\) knows"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(change, text):
    with pytest.raises(ValueError, match=text):
        replace(TINY, **change)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    config = replace(TINY, data=replace(TINY.data, batch_size=102))
    with pytest.raises(ValueError, match="batch_size=102 is more than the 100 training images"):
        train(config, tmp_path, CPU)
