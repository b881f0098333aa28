import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.methods.base import MethodConfig
from harness.run_config import RunConfig


def test_settings_come_back_from_a_results_line(monkeypatch):
    monkeypatch.setattr("harness.run_config.fingerprint", lambda data: data.dataset)
    config = RunConfig(
        "sage",
        seed=3,
        data=DataConfig(dataset="folder", data_dir="here", train_size=100),
        schedule=ScheduleConfig(epochs=3, sched="multistep", decay_milestones=(1, 2)),
        mixing=MethodConfig(update_ratio=0.7),
        channels_last=True,
    )
    identity = json.loads(json.dumps(config.identity()))
    assert RunConfig.from_identity(identity, data_dir="here") == config
    moved = replace(config, data=replace(config.data, data_dir="there"))
    assert RunConfig.from_identity(identity, data_dir="there") == moved
    assert moved.name() == config.name()


# Of runs of earlier versions, by the code of their time.
EARLIER = {
    "cifar10-1000": "none-seed0-5ebe971b03",
    "cifar10-1000-half": "sage-seed0-b6e06225d9",
    "imagenette-500": "mixup-seed0-674d68dfc0",
}


@pytest.mark.parametrize("folder", EARLIER)
def test_settings_that_came_later_leave_the_names_of_earlier_runs(monkeypatch, folder):
    results = Path(__file__).parents[2] / "docs" / "results" / folder / "results.jsonl"
    config = json.loads(results.read_text().partition("\n")[0])["config"]
    monkeypatch.setattr(
        "harness.run_config.fingerprint", lambda _data: config["data"].get("fingerprint", "")
    )
    assert RunConfig.from_identity(config).name() == EARLIER[folder]


LATER = [
    *(
        {"schedule": ScheduleConfig(**{name: value})}
        for name, value in {
            "opt": "lamb",
            "warmup_epochs": 3,
            "layer_decay": 0.7,
            "clip_grad": 1.0,
            "bce_loss": True,
            "model_ema": True,
            "model_ema_decay": 0.99,
        }.items()
    ),
    {"schedule": ScheduleConfig(bce_loss=True, bce_target_thresh=0.2)},
    {"data": DataConfig(aa="rand-m6-mstd0.5-inc1")},
    {"data": DataConfig(reprob=0.25)},
    {"mixing": MethodConfig(cutmix_alpha=0.5)},
    {"drop_path": 0.1},
]


@pytest.mark.parametrize("change", LATER, ids=str)
def test_a_setting_that_came_later_makes_another_run(change):
    config = replace(RunConfig("none", 0), **change)
    assert config.name() != RunConfig("none", 0).name()
    assert RunConfig.from_identity(config.identity()) == config


def test_every_setting_that_came_later_is_tried_above():
    def later(kind):
        parts = [getattr(kind, f.name, f.type) for f in fields(kind)]
        named = {f.name for f in fields(kind) if "later" in f.metadata}
        return named.union(*(later(part) for part in parts if is_dataclass(part)))

    tried = {"initial_weights", "drop_path"}
    for change in LATER:
        for part in change.values():
            if is_dataclass(part):
                tried |= {f.name for f in fields(part) if getattr(part, f.name) != f.default}
    kinds = (RunConfig, *RunConfig.PARTS.values())
    assert set().union(*map(later, kinds)) <= tried


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schedule": ScheduleConfig(opt="adamx")}, "opt must be one that .* got 'adamx'"),
        (
            {"schedule": ScheduleConfig(epochs=3, warmup_epochs=3)},
            r"warmup_epochs must be in \[0, 3",
        ),
        (
            {"schedule": ScheduleConfig(layer_decay=0.0)},
            r"layer_decay must be in \(0, 1\], got 0.0",
        ),
        ({"schedule": ScheduleConfig(clip_grad=0.0)}, r"clip_grad must be in \(0, inf\), got 0.0"),
        ({"schedule": ScheduleConfig(bce_target_thresh=0.2)}, "is a setting of bce_loss"),
        (
            {"schedule": ScheduleConfig(bce_loss=True, bce_target_thresh=1.0)},
            r"bce_target_thresh must be in \[0, 1\), got 1.0",
        ),
        ({"schedule": ScheduleConfig(model_ema_decay=1.0)}, "model_ema_decay must be in"),
        ({"data": DataConfig(aa="rand-x9")}, "aa='rand-x9' is not an augmentation of timm's"),
        ({"data": DataConfig(aa="")}, "aa='' is not an augmentation of timm's"),
        ({"data": DataConfig(aa="3a", on_device=True)}, "aa='3a' changes PIL images"),
        ({"data": DataConfig(reprob=1.1)}, r"reprob must be in \[0, 1\], got 1.1"),
        ({"mixing": MethodConfig(cutmix_alpha=0.0)}, "cutmix_alpha must be in"),
        ({"drop_path": 1.0}, r"drop_path must be in \(0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_their_range_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        replace(RunConfig("none", 0), **change)


def test_settings_of_another_version_are_refused():
    identity = RunConfig("none", 0).identity()
    identity["mixing"]["temperature"] = 1
    with pytest.raises(ValueError, match=r"config\['mixing'\] was written by another version"):
        RunConfig.from_identity(identity)
