"""Which statistics of batch norm a network is measured with."""

import numpy as np
import pytest
import torch
from timm.data import resolve_data_config
from torch.nn.modules.batchnorm import _BatchNorm

from harness.config import ScheduleConfig
from harness.data import DataConfig, load_splits
from harness.methods.base import normalised
from harness.run_config import RunConfig
from harness.train import load_model, train

CPU = torch.device("cpu")


def run(batch_norm="clean", epochs=3, **changes):
    data = DataConfig(
        num_classes=4,
        train_size=80,
        image_size=16,
        batch_size=20,
        train_crop_mode="rrc",
        scale=(1, 1),
        ratio=(1, 1),
    )  # each image as it is, every time
    schedule = ScheduleConfig(epochs=epochs, lr=changes.pop("lr", 1e-9))
    return RunConfig("mixup", 0, data=data, schedule=schedule, batch_norm=batch_norm, **changes)


def first_norm(model):
    return next(module for module in model.modules() if isinstance(module, _BatchNorm))


def clean_statistics(config, model):
    """Mean and variance at the first batch norm over all training images, in float64."""
    images = np.stack([np.asarray(image) for image, _ in load_splits(config.data, 0).train])
    data_config = resolve_data_config({}, model=model)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    seen = []
    model = model.double().eval()
    with first_norm(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        model(normalised(pixels, data_config["mean"], data_config["std"]).double())
    return seen[0].mean(dim=(0, 2, 3)), seen[0].var(dim=(0, 2, 3))


def test_clean_statistics_are_those_of_the_images_and_not_of_the_mixes(tmp_path):
    apart = {}
    for batch_norm in ("clean", "running"):
        config = run(batch_norm)
        train(config, tmp_path, CPU)
        model = load_model(config, tmp_path, 4, CPU)
        mean, variance = clean_statistics(config, model)
        norm = first_norm(model)
        apart[batch_norm] = ((norm.running_var - variance) / variance).abs().max().item()
        if batch_norm == "clean":
            torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=1e-4)
    assert apart["clean"] < 0.05  # four batches' variances miss what the batches' means differ by
    assert apart["running"] > 0.2


def test_both_accuracies_are_written_down(tmp_path):
    clean = train(run("clean", lr=0.1), tmp_path, CPU)
    running = train(run("running", lr=0.1), tmp_path, CPU)
    assert clean["top1_running"] == running["top1_last"]
    assert "top1_running" not in running


def test_measuring_leaves_the_training_alone(tmp_path):
    """The weights after the last epoch are the same bits, however often it was measured."""
    weights = []
    for config in (run(lr=0.1), run("running", lr=0.1), run(lr=0.1, measured_epochs=1)):
        train(config, tmp_path, CPU)
        weights.append(load_model(config, tmp_path, 4, CPU))
    for other in weights[1:]:
        for one, two in zip(weights[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_so_many_last_epochs_are_measured(tmp_path):
    line = train(run(epochs=4, measured_epochs=2), tmp_path, CPU)
    assert ["top1" in epoch for epoch in line["history"]] == [False, False, True, True]
    assert line["top1"] == np.median([epoch["top1"] for epoch in line["history"][2:]])


def test_no_epoch_to_measure_is_refused():
    with pytest.raises(ValueError, match="measured_epochs must be at least 1, got 0"):
        run(measured_epochs=0)
