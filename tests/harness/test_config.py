import json
from dataclasses import replace

import pytest

import harness.run_config
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.methods.base import MethodConfig
from harness.run_config import RunConfig


def test_settings_come_back_from_a_results_line(monkeypatch):
    monkeypatch.setattr(harness.run_config, "fingerprint", lambda data: data.dataset)
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


def test_settings_of_another_version_are_refused():
    identity = RunConfig("none", 0).identity()
    identity["mixing"]["temperature"] = 1
    with pytest.raises(ValueError, match=r"config\['mixing'\] was written by another version"):
        RunConfig.from_identity(identity)
