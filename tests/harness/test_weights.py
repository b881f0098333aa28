"""The weights that a training starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from harness.config import DataConfig, ScheduleConfig
from harness.models import create_network
from harness.run_config import RunConfig
from harness.runs import check_runs
from harness.store import load_checkpoint
from harness.train import checkpoint_path, load_model, train
from harness.weights import InitialWeights, _say

CPU = torch.device("cpu")
TINY = RunConfig(
    "none",
    seed=1,
    data=DataConfig(train_size=40, num_classes=4, image_size=8, batch_size=20),
    schedule=ScheduleConfig(epochs=1, lr=1e-12, weight_decay=0.0),
    measured_epochs=1,
)


def network(classes=4, name="preactresnet8_cifar", **options):
    return timm.create_model(name, num_classes=classes, **options)


@pytest.fixture(autouse=True)
def _says_again():
    _say.cache_clear()


@pytest.fixture
def saved(tmp_path) -> Path:
    """Weights of preactresnet8_cifar for four classes."""
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    return path


def differing(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_a_training_starts_from_the_weights_with_their_head(tmp_path, saved, capsys):
    """At a learning rate of almost nothing, it ends with them."""
    config = replace(TINY, initial_checkpoint=saved)
    train(config, tmp_path, CPU)
    trained = load_model(config, tmp_path, 4, CPU).state_dict()
    for name, value in torch.load(saved).items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(trained[name], value, msg=name)
    assert "starts anew" not in capsys.readouterr().err


def test_a_head_of_another_size_is_left_out_and_named_once(saved, capsys):
    fresh = network(7)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    weights = InitialWeights.from_file(saved)
    for _ in range(2):
        weights.load_into(fresh)
    heads = {"head.fc.weight", "head.fc.bias"}
    loaded, given = fresh.state_dict(), torch.load(saved)
    assert all(torch.equal(loaded[name], before[name]) for name in heads)
    assert all(torch.equal(loaded[name], given[name]) for name in loaded.keys() - heads)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        f"initial_checkpoint={str(saved)!r}: the head is of another size, starts anew: "
        "head.fc.weight, head.fc.bias"
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_weights_are_loaded_as_timm_loads_published_ones(tmp_path, name, in_chans):
    """With its conversions: of channels, of positions where the images are of another size."""
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    published = network(1000, name)
    torch.save(published.state_dict(), path)
    known = timm.get_pretrained_cfg(name)
    size = {"img_size": 96} if known.fixed_input_size else {}
    expected = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": published.state_dict()},
        num_classes=5,
        in_chans=in_chans,
        **size,
    )
    loaded = create_network(name, 5, 96, in_chans)
    InitialWeights.from_file(path).load_into(loaded)
    head = {
        n for n, _ in loaded.named_parameters() if n.startswith(("fc.", "head.", "classifier."))
    }
    assert len(head) == 2
    assert differing(loaded.state_dict(), expected.state_dict()) <= head
    assert loaded.num_classes == 5


def test_other_checkpoints_are_read_too(tmp_path, saved):
    """Those of timm's script, the averaged weights first, of DistributedDataParallel, and without
    the counters of batch norm.
    """
    state = torch.load(saved)
    digest = InitialWeights.from_file(saved).digest
    other = network().state_dict()
    for name, content in {
        "timm": {"state_dict": other, "state_dict_ema": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "uncounted": {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
    }.items():
        path = tmp_path / name
        torch.save(content, path)
        weights = InitialWeights.from_file(path)
        assert weights.digest == digest, name
        fresh = network()
        weights.load_into(fresh)
        assert not differing(fresh.state_dict(), state), name


def test_whatever_else_does_not_fit_is_refused_by_name(tmp_path, saved):
    state = torch.load(saved)
    weights = InitialWeights.from_file(saved)
    with pytest.raises(
        ValueError, match=r"stem.conv.weight is \[16, 3, 3, 3\], not \[16, 1, 3, 3\]"
    ):
        weights.load_into(network(in_chans=1))
    with pytest.raises(ValueError, match=r"conv1.weight is missing, not \[64, 3, 7, 7\], .* more"):
        weights.load_into(network(name="resnet18"))
    torch.save(state | {"extra.weight": torch.zeros(2)}, tmp_path / "more")
    with pytest.raises(ValueError, match=r"extra.weight is \[2\], not of the network"):
        InitialWeights.from_file(tmp_path / "more").load_into(network())


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"initial_checkpoint='.*nothing' is no file"):
        replace(TINY, initial_checkpoint=tmp_path / "nothing")
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ValueError, match="text' cannot be read as a checkpoint: "):
        replace(TINY, initial_checkpoint=tmp_path / "text")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"must hold tensors by name, .* got epoch"):
        replace(TINY, initial_checkpoint=tmp_path / "other")


def test_a_run_is_known_by_its_weights_and_not_by_their_place(tmp_path, saved):
    config = replace(TINY, initial_checkpoint=saved)
    state = torch.load(saved)
    moved = tmp_path / "moved.pt"
    torch.save(state, moved)
    assert replace(TINY, initial_checkpoint=moved).name() == config.name() != TINY.name()
    assert len(config.identity()["initial_weights"]) == 16
    assert not {"initial_checkpoint", "pretrained"} & config.identity().keys()
    state["stem.conv.weight"][0, 0, 0, 0] += 1
    torch.save(state, moved)
    assert replace(TINY, initial_checkpoint=moved).name() != config.name()
    with pytest.raises(ValueError, match="initial_weights='0123' are not those of initial_check"):
        replace(TINY, initial_checkpoint=saved, initial_weights="0123")


def test_a_trained_run_is_found_and_made_again_without_its_weights(tmp_path, saved):
    config = replace(TINY, initial_checkpoint=saved)
    line = train(config, tmp_path, CPU)
    saved.unlink()
    again = RunConfig.from_identity(line["config"])
    assert again.identity() == line["config"]
    assert checkpoint_path(again, tmp_path).exists()
    load_model(again, tmp_path, 4, CPU)
    check_runs([again], tmp_path)
    assert train(again, tmp_path, CPU) == line
    other = replace(again, seed=2)
    with pytest.raises(ValueError, match="name a run that is trained already: to train it, give"):
        check_runs([again, other], tmp_path)
    with pytest.raises(ValueError, match="name a run that is trained already: to train it, give"):
        train(other, tmp_path, CPU)


def test_published_weights_are_those_of_a_file_with_the_same(tmp_path, monkeypatch):
    state = network(1000, "test_resnet").state_dict()
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state)
    )
    InitialWeights.from_timm.cache_clear()
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    config = replace(TINY, model="test_resnet", data=replace(TINY.data, image_size=32))
    published, from_file = (
        replace(config, **source) for source in ({"pretrained": True}, {"initial_checkpoint": path})
    )
    assert published.name() == from_file.name()
    train(published, tmp_path, CPU)
    trained = load_checkpoint(checkpoint_path(published, tmp_path), CPU)["model"]
    torch.testing.assert_close(trained["conv1.0.weight"], state["conv1.0.weight"])
    InitialWeights.from_timm.cache_clear()


def test_a_hub_out_of_reach_is_said_before_anything_is_trained(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    text = "cannot get timm's weights of model='test_resnet'; name a file .*: no route to the hub"
    with pytest.raises(ValueError, match=text):
        replace(TINY, model="test_resnet", pretrained=True)
    with pytest.raises(ValueError, match="the harness's CIFAR networks have no pretrained weights"):
        replace(TINY, pretrained=True)
