from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr
from torch import nn

import harness.measures.dynamics
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.measures.dynamics import MEASURES, follow, table
from harness.measures.pairs import FixedPairs
from harness.methods.base import MethodConfig
from harness.run_config import RunConfig
from harness.store import read_results
from harness.train import checkpoint_path, load_model, train
from tests import oracles

CPU = torch.device("cpu")
TINY = RunConfig(
    "sage",
    seed=0,
    data=DataConfig(train_size=100, image_size=10, batch_size=10),
    schedule=ScheduleConfig(epochs=3),
    mixing=MethodConfig(lambda_max=0.8),
)
IMAGES = 20


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder, and the lines that were written there; to be read only."""
    out = tmp_path_factory.mktemp("followed")
    lines = follow(TINY, (1, 3), out, IMAGES, CPU)
    return out, lines


def test_a_line_for_each_epoch_and_a_picture(followed):
    out, lines = followed
    assert [line["epoch"] for line in lines] == [1, 3]
    assert read_results(out / "dynamics.jsonl") == lines
    for line in lines:
        assert set(MEASURES) <= line.keys()
        assert (out / f"mixes-sage-seed0-epoch{line['epoch']}.png").stat().st_size > 10_000


def test_following_a_run_leaves_no_trace_in_it(followed, tmp_path):
    out, _ = followed
    train(TINY, tmp_path, CPU)
    there, here = (load_model(TINY, folder, 100, CPU).state_dict() for folder in (out, tmp_path))
    assert all(torch.equal(there[name], value) for name, value in here.items())


def test_what_stands_there_is_not_measured_again(followed, monkeypatch):
    out, lines = followed
    monkeypatch.setattr(harness.measures.dynamics, "train", None)
    assert follow(TINY, (3, 1), out, IMAGES, CPU) == lines


def test_a_run_that_was_cut_off_goes_on(followed, tmp_path, monkeypatch):
    def die(path, state, save=harness.train.save_checkpoint):
        save(path, state)
        if len(state["history"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(harness.train, "save_checkpoint", die)
        with pytest.raises(KeyboardInterrupt):
            follow(TINY, (1, 3), tmp_path, IMAGES, CPU)
    assert len(read_results(tmp_path / "dynamics.jsonl")) == 1
    assert follow(TINY, (1, 3), tmp_path, IMAGES, CPU) == followed[1]


def test_says_so_where_the_run_went_past_an_epoch_unmeasured(followed):
    out, _ = followed
    with pytest.raises(ValueError, match="holds sage, seed 0, trained past epoch 2 without a line"):
        follow(TINY, (2,), out, IMAGES, CPU)


@pytest.mark.parametrize(
    ("epochs", "images", "message"),
    [
        ((), 20, r"measured must be epochs in \[1, 3\], got \(\)"),
        ((0,), 20, r"measured must be epochs in \[1, 3\], got \(0,\)"),
        ((4,), 20, r"measured must be epochs in \[1, 3\], got \(4,\)"),
        ((1,), 25, "images must be a multiple of batch_size=10, got 25"),
        ((1,), 0, "images must be a multiple of batch_size=10, got 0"),
        ((1,), 200, "images=200 takes 200 images, the split has 100"),
    ],
)
def test_bad_input_is_named(tmp_path, epochs, images, message):
    with pytest.raises(ValueError, match=message):
        follow(TINY, epochs, tmp_path, images, CPU)
    assert not (tmp_path / "results.jsonl").exists()


def test_measures_agree_with_float64_formulas(followed):
    """Recomputed image by image from the last network, by other means than the code's."""
    out, lines = followed
    model = load_model(TINY, out, 100, CPU)
    fixed = FixedPairs(TINY, "train", IMAGES, "images")
    images, classes, _ = fixed.load(model, CPU)
    targets = nn.functional.one_hot(classes, 100).float()
    weights = torch.from_numpy(fixed.random.beta(1.0, 1.0, IMAGES))
    masks = torch.from_numpy(fixed.dataset.masks[fixed.indices])[:, None] / 255
    batches = zip(*(v.split(10) for v in (images, targets, weights, masks)), strict=True)
    expected = {name: [] for name in MEASURES}
    for x, y, lam, objects in batches:
        maps = maps_of(model, x, y)
        mirrored = maps_of(model, x.flip(3), y)[:, :, ::-1]
        for i in range(len(x)):
            j = len(x) - 1 - i
            own = 0.8 * float(lam[i])
            s0, s1 = own * maps[i], (1 - own) * maps[j]
            translations = oracles.all_translations(10, 10)
            t = max(translations, key=lambda t: oracles.objective(s0, s1, t))
            mixed, mask = oracles.mix(x[i].double().numpy(), x[j].double().numpy(), s0, s1, t)
            gamma = mask.mean()
            target = gamma * y[i] + (1 - gamma) * y[j]
            expected["label_weight"].append(gamma)
            expected["lesser_weight"].append(min(gamma, 1 - gamma))
            expected["nearly_clean"].append(min(gamma, 1 - gamma) < 0.1)
            expected["shift"].append(np.hypot(*t) / 10)
            expected["uncovered"].append(1 - (10 - abs(t[0])) * (10 - abs(t[1])) / 100)
            expected["effective_area"].append(np.exp(entropy(maps[i].ravel())) / 100)
            expected["mirrored"].append(spearmanr(maps[i].ravel(), mirrored[i].ravel())[0])
            mask_of_object = objects[i, 0].double().numpy()
            expected["on_object"].append(
                (maps[i] * mask_of_object).sum() / mask_of_object.sum() * 100
            )
            expected["label_entropy"].append(entropy(target.numpy()))
            with torch.no_grad():
                model.eval()
                for name, image, soft in (
                    ("clean_loss", x[i], y[i]),
                    ("mixed_loss", torch.from_numpy(mixed).float(), target),
                ):
                    loss = nn.functional.cross_entropy(model(image[None]), soft[None].float())
                    expected[name].append(loss.item())
    for name in MEASURES:
        assert lines[1][name] == pytest.approx(np.mean(expected[name]), rel=0.01, abs=0.005), name


def maps_of(model, images, targets):
    """Saliency maps ``[B, H, W]`` in float64, the network in training mode, by autograd."""
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), targets).backward()
    model.load_state_dict(state)
    return oracles.saliency(x.grad.double().numpy())[:, 0]


def test_other_methods_networks_can_be_followed(tmp_path):
    config = replace(TINY, method="none", schedule=ScheduleConfig(epochs=1))
    (line,) = follow(config, (1,), tmp_path, 10, CPU)
    assert line["method"] == "none"
    assert checkpoint_path(config, tmp_path).exists()


def test_the_table_has_means_over_seeds():
    lines = [
        {
            "method": "sage",
            "seed": seed,
            "epoch": 2,
            "label_weight": 0.25 * seed,
            "shift": 1.0,
            "images": 9,
        }
        for seed in (1, 2)
    ]
    assert str(table(lines)).splitlines()[:3] == [
        "| method | seeds | epoch | label weight | shift |",
        "| --- | --- | --- | --- | --- |",
        "| sage | 1 2 | 2 | 0.375 | 1.000 |",
    ]
