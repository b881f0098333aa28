"""``--tensorboard``: curves of each run, read by TensorBoard's own reader."""

import re
import sys

import pytest

import harness.__main__
import harness.train
from harness.commands import Train
from harness.config import DataConfig, ScheduleConfig
from harness.run_config import RunConfig
from harness.store import read_results


def command(out, epochs=3, **changes):
    return Train(
        methods=("none", "mixup"),
        data=DataConfig(train_size=100, image_size=8, batch_size=20),
        schedule=ScheduleConfig(epochs=epochs, lr=0.1, sched="multistep", decay_milestones=(2,)),
        measured_epochs=1,
        out=out,
        **changes,
    )


def curves(folder):
    """Each curve's points as TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(x.step, x.value) for x in found.Scalars(name)] for name in names}


def expected(line):
    """The points by the line's own history, and the learning rate by its schedule."""
    history = line["history"]
    points = {
        name: [
            (epoch, pytest.approx(figures[name]))
            for epoch, figures in enumerate(history, start=1)
            if name in figures
        ]
        for name in history[-1]
    }
    rates = [(1, 0.1), (2, 0.01), (3, 0.01)]  # a tenth from the second epoch on
    return points | {"lr": [(epoch, pytest.approx(rate)) for epoch, rate in rates]}


def test_a_run_has_a_folder_with_its_curves(tmp_path):
    pytest.importorskip("tensorboard")
    command(tmp_path, tensorboard=True)()
    lines = read_results(tmp_path / "results.jsonl")
    names = [RunConfig.from_identity(line["config"]).name() for line in lines]
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == sorted(names)
    for line, name in zip(lines, names, strict=True):
        found = curves(tmp_path / "tensorboard" / name)
        assert found == expected(line)
        assert {"train_loss", "lr", "top1"} <= found.keys()


def test_a_run_that_was_cut_off_goes_on_without_doubled_points(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    save, saved = harness.train.save_checkpoint, []

    def cut_off(path, state):
        """Saves one epoch's checkpoint; the next epoch is lost once its points are written."""
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(harness.train, "save_checkpoint", cut_off)
        with pytest.raises(KeyboardInterrupt):
            command(tmp_path, tensorboard=True)()
    name = saved[0].stem
    assert [step for step, _ in curves(tmp_path / "tensorboard" / name)["train_loss"]] == [1, 2]
    command(tmp_path, tensorboard=True)()
    line = read_results(tmp_path / "results.jsonl")[0]
    assert RunConfig.from_identity(line["config"]).name() == name
    assert curves(tmp_path / "tensorboard" / name) == expected(line)


def test_a_run_is_the_same_with_curves(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    command(tmp_path / "with", tensorboard=True)()
    command(tmp_path / "without")()
    kept = [
        [(x["config"], x["top1"], x["train_loss"]) for x in read_results(out / "results.jsonl")]
        for out in (tmp_path / "with", tmp_path / "without")
    ]
    assert kept[0] == kept[1]
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_without_the_package_nothing_is_trained(tmp_path, monkeypatch, capsys):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(
        sys, "argv", ["harness", "train", "--tensorboard", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as end:
        harness.__main__.main()
    assert end.value.code == 2
    pattern = r"harness: tensorboard=True needs the package tensorboard: pip install .*\n"
    assert re.fullmatch(pattern, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
