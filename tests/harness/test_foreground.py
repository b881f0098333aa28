from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed

from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.glyphs import Glyphs
from harness.measures.foreground import (
    foreground_kept,
    measurable_methods,
    measure_foreground,
    table,
)
from harness.methods import METHODS, Training
from harness.methods.base import MethodConfig
from harness.run_config import RunConfig
from harness.store import read_results
from sage_timm import best_translation, random_translations, saliency
from tests import oracles

CPU = torch.device("cpu")
COUNT, SIZE = 8, 16
TINY = RunConfig(
    "none",
    seed=0,
    data=DataConfig(train_size=100, image_size=SIZE, batch_size=50),
    schedule=ScheduleConfig(epochs=1),
)
SEEDS = range(6)


@pytest.fixture(scope="module")
def glyphs():
    """Images ``[B, 3, H, W]`` around 0, their foregrounds, and classes that all differ."""
    data = Glyphs("validation", COUNT, SIZE)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.from_numpy(data.masks) / 255, torch.tensor(data.targets)


@pytest.fixture
def model(small_net):
    return small_net(classes=COUNT)


def make(name, model, **kwargs):
    return METHODS[name](Training(MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), COUNT))


def drawn_weight(seed):
    """The weight that timm's Mixup draws after the draw of whether to mix."""
    random_seed(seed)
    np.random.rand()
    return np.random.beta(1.0, 1.0)


def shares(kept, masks):
    """Sums of kept foreground over sums of foreground, in float64."""
    return kept.double().sum(dim=(1, 2)) / masks.double().sum(dim=(1, 2))


def test_without_mixing_all_of_one_and_nothing_of_the_other_is_kept(model, glyphs):
    kept, weights = foreground_kept(make("none", model), *glyphs, seed=0)
    assert torch.equal(kept, torch.tensor([[1.0, 0.0]] * COUNT, dtype=torch.float64))
    assert torch.equal(weights, kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixup_keeps_its_weight_of_each(model, glyphs, seed):
    kept, weights = foreground_kept(make("mixup", model), *glyphs, seed)
    lam = drawn_weight(seed)
    expected = torch.tensor([[lam, 1 - lam]] * COUNT, dtype=torch.float64)
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_cutmix_keeps_what_is_outside_of_the_box_and_inside_of_it(model, glyphs, seed):
    images, masks, targets = glyphs
    kept, _ = foreground_kept(make("cutmix", model), images, masks, targets, seed)
    (top, bottom, left, right), _ = cutmix_bbox_and_lam(images.shape, drawn_weight(seed))
    inside = torch.zeros(SIZE, SIZE)
    inside[top:bottom, left:right] = 1
    expected = (shares(masks * (1 - inside), masks), shares(masks * inside, masks).flip(0))
    torch.testing.assert_close(kept, torch.stack(expected, dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("search", ["random", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sage_keeps_what_the_mask_and_the_translation_leave(model, glyphs, seed, search):
    """Pixel by pixel in float64, from the public functions' saliency and translations."""
    images, masks, targets = glyphs
    mix = make("sage", model, search=search, search_fraction=0.05, lambda_max=0.8)
    kept, weights = foreground_kept(mix, images, masks, targets, seed)
    lam = 0.8 * drawn_weight(seed)
    candidates = random_translations(SIZE, SIZE, 0.05)
    if search == "none":
        candidates = torch.zeros(1, 2, dtype=torch.int64)
    one_hot = mixup_target(targets, COUNT)
    maps = saliency(model, images, one_hot, SoftTargetCrossEntropy())
    own, other = lam * maps, (1 - lam) * maps.flip(0)
    chosen = best_translation(own, other, candidates)
    for index, t in enumerate(chosen.tolist()):
        s0, s1 = (m[index, 0].double().numpy() for m in (own, other))
        mask = oracles.mask(s0, s1, t)
        f0, f1 = (masks[i].double().numpy() for i in (index, COUNT - 1 - index))
        expected = [
            (mask * f0).sum() / f0.sum(),
            ((1 - mask) * oracles.translate(f1, t)).sum() / f1.sum(),
        ]
        np.testing.assert_allclose(kept[index].numpy(), expected, atol=1e-5)
        assert weights[index, 0].item() == pytest.approx(mask.mean(), abs=1e-5)


def test_saliencymix_keeps_what_is_outside_of_its_region_and_inside_of_it(model, glyphs):
    images, masks, targets = glyphs
    pytest.importorskip("cv2")
    mix = make("saliencymix", model)
    mixes = 0
    for seed in range(12):
        kept, _ = foreground_kept(mix, images, masks, targets, seed)
        random_seed(seed)
        mixed, _ = mix(images.clone(), targets)
        inside = (mixed != images).any(dim=1).any(dim=0).float()
        mixes += int(inside.any())
        expected = (shares(masks * (1 - inside), masks), shares(masks * inside, masks).flip(0))
        torch.testing.assert_close(kept, torch.stack(expected, dim=1), atol=1e-6, rtol=0)
    assert mixes > 2


@pytest.mark.parametrize("name", measurable_methods())
def test_of_a_foreground_that_is_the_whole_image_its_label_weight_is_kept(model, glyphs, name):
    images, _, targets = glyphs
    mixes = 0
    for seed in range(8):
        kept, weights = foreground_kept(
            make(name, model), images, torch.ones(COUNT, SIZE, SIZE), targets, seed
        )
        torch.testing.assert_close(kept, weights, atol=1e-5, rtol=0)
        if name == "comixup":  # may mix more than two
            assert (kept.sum(dim=1) <= 1 + 1e-6).all()
        else:
            torch.testing.assert_close(kept.sum(dim=1), torch.ones(COUNT).double())
        mixes += int((weights[:, 1] > 0.01).any())
    assert mixes > 1 or name == "none"


def several(shifts, weights):
    """A method that mixes each image with those some places after it."""

    def mix(images, targets):
        one_hot = torch.eye(COUNT)[targets]
        parts = [(w, -shift) for shift, w in zip(shifts, weights, strict=True)]
        return tuple(sum(w * v.roll(shift, 0) for w, shift in parts) for v in (images, one_hot))

    return mix


@pytest.mark.parametrize(
    ("shifts", "weights", "main"),
    [
        ((0, 1, 2), (0.3, 0.2, 0.5), (0.3, 0.5)),
        ((0, 1, 2, 3, 5), (0.1, 0.15, 0.3, 0.25, 0.2), (0.3, 0.25)),
        ((3,), (1.0,), (0.0, 1.0)),
    ],
)
def test_of_several_images_the_two_of_most_weight_count(glyphs, shifts, weights, main):
    kept, label_weights = foreground_kept(several(shifts, weights), *glyphs, seed=0)
    expected = torch.tensor([main] * COUNT, dtype=torch.float64)
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(label_weights, expected, atol=1e-6, rtol=0)


def test_images_that_are_in_no_mix_do_not_matter(glyphs):
    def mix(images, targets):
        one_hot = torch.eye(COUNT)[targets]
        return tuple(
            (0.6 * v[:1] + 0.4 * v[1:2]).repeat_interleave(COUNT, 0) for v in (images, one_hot)
        )

    kept, _ = foreground_kept(mix, *glyphs, seed=0)
    expected = torch.tensor([[0.6, 0.4]] * COUNT, dtype=torch.float64)
    expected[1] = expected[1].flip(0)  # where image 1 is in its own place
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)


def test_a_method_that_leaves_pytorch_is_refused(glyphs):
    def mix(images, targets):
        return torch.from_numpy(images.numpy().copy()), torch.eye(COUNT)[targets]

    with pytest.raises(ValueError, match="does not mix images by differentiable operations"):
        foreground_kept(mix, *glyphs, seed=0)


def test_two_images_of_one_class_are_refused(model, glyphs):
    images, masks, _ = glyphs
    with pytest.raises(ValueError, match=r"targets must all differ, got \[0, 0, 0"):
        foreground_kept(make("none", model), images, masks, torch.zeros(COUNT).long(), seed=0)


def test_lines_are_appended_once_and_hold_means_over_the_mixes(tmp_path):
    methods = ("none", "mixup", "sage")
    lines = measure_foreground(TINY, methods, tmp_path, 80, CPU)
    path = tmp_path / "foreground.jsonl"
    assert read_results(path) == lines
    (trained,) = read_results(tmp_path / "results.jsonl")  # which was not there
    assert trained["config"] == TINY.identity()
    none, mixup, sage = lines
    for line, method in zip(lines, methods, strict=True):
        assert (line["method"], line["seed"], line["pairs"]) == (method, 0, 80)
        assert line["config"] == TINY.identity()
        assert 0 <= line["foreground_kept_least"] <= line["foreground_kept_0"] <= 100
    assert [none[f"foreground_kept_{name}"] for name in ("0", "1", "least")] == [100, 0, 0]
    drawn = np.array([drawn_weight(seed) for seed in range(4)])
    for name, values in (
        ("foreground_kept_0", drawn),
        ("foreground_kept_1", 1 - drawn),
        ("foreground_kept_least", np.minimum(drawn, 1 - drawn)),
        ("label_weight", drawn),
    ):
        assert mixup[name] == pytest.approx(100 * values.mean(), abs=1e-4)
        deviation = 100 * values.std(ddof=1) / 2  # over four batches
        assert mixup["standard_error"][name] == pytest.approx(deviation, abs=1e-4)

    assert measure_foreground(TINY, ("sage", "mixup"), tmp_path, 80, CPU) == [sage, mixup]
    measure_foreground(TINY, ("mixup",), tmp_path, 40, CPU)
    assert [line["pairs"] for line in read_results(path)] == [80, 80, 80, 40]

    rows = table(lines).rows
    assert [row[:2] for row in rows] == [[method, "0"] for method in methods]
    assert rows[0][2:] == ["100.00 ± 0.00", "0.00 ± 0.00", "0.00 ± 0.00", "100.00 ± 0.00"]
    half = 3.182446 * 100 * drawn.std(ddof=1) / 2  # Student's t, 3 degrees
    assert rows[1][2] == f"{100 * drawn.mean():.2f} ± {half:.2f}"


def test_the_same_seed_gives_the_same_figures(tmp_path):
    lines = []
    for _ in range(2):
        lines += measure_foreground(TINY, ("sage",), tmp_path, 40, CPU)
        (tmp_path / "foreground.jsonl").unlink()
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("change", "methods", "pairs", "text"),
    [
        (
            {},
            ("manifold",),
            40,
            "manifold mixes no pixels of a batch by weights, so no foreground can be followed",
        ),
        ({}, ("nosuchmix",), 40, "method must be one of none, .* got 'nosuchmix'"),
        ({}, ("none",), 50, "pairs must be a multiple of 20, at least 40, got 50"),
        ({}, ("none",), 20, "pairs must be a multiple of 20, at least 40, got 20"),
        ({"dataset": "folder"}, ("none",), 40, "dataset must be glyphs, .* got 'folder'"),
    ],
)
def test_bad_input_is_refused(tmp_path, change, methods, pairs, text):
    config = replace(TINY, data=replace(TINY.data, **change))
    with pytest.raises(ValueError, match=text):
        measure_foreground(config, methods, tmp_path, pairs, CPU)
    assert not list(tmp_path.iterdir())


def test_every_method_that_mixes_images_is_measured_by_default():
    assert {"none", "mixup", "cutmix", "sage", "sage-no-rearrangement"} <= set(measurable_methods())
    assert "manifold" not in measurable_methods()
