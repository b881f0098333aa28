import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import webdataset
from PIL import Image
from scipy import stats
from torch import nn

from harness.commands import Robustness
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.measures.robustness import (
    EPSILONS,
    FIGURES,
    NOISE_STDS,
    REPLACED_SHARES,
    add_noise,
    attack,
    check_clean,
    draw_places,
    measure_robustness,
    replace_region,
    table,
)
from harness.run_config import RunConfig
from harness.store import read_results
from harness.train import checkpoint_path, load_model, train

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SIZE = 12  # of the images, in pixels
EACH = 20  # validation images of each class


def draw_image(random, target):
    """Noise, a little brighter in one channel: hard enough for errors to be made."""
    pixels = random.normal(110, 60, (SIZE, SIZE, 3))
    pixels[..., target] += 12
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def write_folder(root, seed=0):
    random = np.random.default_rng(seed)
    for split, count in (("train", 60), ("test", EACH)):
        for target, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                path = root / split / name / f"{index:02}.png"
                draw_image(random, target).save(path)
    return str(root)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """Two runs of different methods and batch sizes, and all their figures."""
    out = tmp_path_factory.mktemp("runs")
    for method, batch_size in (("none", 10), ("mixup", 4)):
        data = DataConfig(
            "folder", data_dir, val_split="test", image_size=SIZE, batch_size=batch_size
        )
        config = RunConfig(method, 0, data=data, schedule=ScheduleConfig(epochs=2))
        train(config, out, CPU)
    for result in read_results(out / "results.jsonl"):
        list(measure_robustness(result, out, data_dir, None, CPU))
    return out


@pytest.fixture
def runs(tmp_path, trained):
    """A copy of the runs without their figures, to spoil."""
    out = tmp_path / "runs"
    (out / "checkpoints").mkdir(parents=True)
    for path in (trained / "results.jsonl", *trained.glob("checkpoints/*.pt")):
        (out / path.relative_to(trained)).write_bytes(path.read_bytes())
    return out


def pixels_of(count=40, channels=3, size=SIZE, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator, dtype=dtype)


def test_every_figure_of_every_run_is_a_line(trained):
    lines = read_results(trained / "robustness.jsonl")
    results = read_results(trained / "results.jsonl")
    assert [(line["kind"], line["strength"]) for line in lines] == 2 * list(FIGURES)
    for index, line in enumerate(lines):
        result = results[index // len(FIGURES)]
        for name in ("method", "seed", "config", "device", "torch"):
            assert line[name] == result[name]
        assert line["images"] == 3 * EACH
        assert 0 <= line["top1"] <= 100
        assert ("torchattacks" in line) == (line["kind"] in ("fgsm", "pgd"))


def test_the_clean_accuracy_is_that_of_the_last_epoch(trained):
    clean = [li for li in read_results(trained / "robustness.jsonl") if li["kind"] == "clean"]
    results = read_results(trained / "results.jsonl")
    assert len(clean) == len(results) == 2
    for line, result in zip(clean, results, strict=True):
        assert line["top1"] == pytest.approx(result["top1_last"])
        assert 40 < line["top1"] < 100


@pytest.mark.parametrize("images", [None, 17])
def test_the_accuracy_is_that_counted_image_by_image(trained, data_dir, images):
    """One file after the other, in float64, for both methods and batch sizes."""
    paths = sorted(Path(data_dir, "test").glob("*/*.png"))
    places = draw_places(len(paths), images)
    figures = 0
    for result in read_results(trained / "results.jsonl"):
        config = RunConfig.from_identity(result["config"], data_dir)
        model = load_model(config, trained, 3, CPU).double().eval()
        mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        for line in measure_robustness(result, trained, data_dir, images, CPU):
            if line["kind"] not in ("clean", "noise", "replacement"):
                continue
            perturbation = {"noise": add_noise, "replacement": replace_region}.get(line["kind"])
            right = 0
            for place in places:
                image = np.asarray(Image.open(paths[place])) / np.float32(255)
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
                if perturbation:
                    pixels = perturbation(pixels, line["strength"], [place])
                answer = model((pixels.double() - mean) / std).argmax().item()
                right += CLASSES[answer] == paths[place].parent.name
            assert line["top1"] == pytest.approx(100 * right / len(places))
            figures += 1
    assert figures == 14


def test_some_images_are_drawn_from_all_classes():
    drawn = draw_places(10_000, 1000)
    assert len(set(drawn)) == 1000
    assert drawn == sorted(drawn)
    # As many of each tenth of the data set as the hypergeometric law lets expect.
    counts = np.bincount(np.array(drawn) // 1000, minlength=10)
    assert stats.chisquare(counts).pvalue > 0.01
    assert draw_places(50, None) == draw_places(50, 50) == draw_places(50, 99) == list(range(50))


@pytest.mark.parametrize("std", NOISE_STDS)
def test_the_noise_is_gaussian_of_the_asked_deviation(std):
    grey = torch.full((40, 3, 32, 32), 0.5)
    noisy = add_noise(grey, std, range(40))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    inside = ((noisy > 0) & (noisy < 1)).numpy()
    law = stats.norm(0.5, std)
    assert inside.mean() == pytest.approx(law.cdf(1) - law.cdf(0), abs=1e-3)
    truncated = stats.truncnorm(-0.5 / std, 0.5 / std, loc=0.5, scale=std)
    assert stats.kstest(noisy.numpy()[inside], truncated.cdf).pvalue > 0.01
    if std <= 0.1:  # five deviations from being clipped
        assert noisy.std().item() == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("perturbation", [add_noise, replace_region])
def test_an_image_is_perturbed_alike_in_every_batch(perturbation):
    pixels, places = pixels_of(9), [3, 4, 5, 60, 61, 62, 7, 8, 9]
    together = perturbation(pixels, 0.1, places)
    for size in (1, 4):
        parts = [
            perturbation(pixels[i : i + size], 0.1, places[i : i + size]) for i in range(0, 9, size)
        ]
        assert torch.equal(torch.cat(parts), together)
    others = perturbation(pixels, 0.1, [place + 100 for place in places])
    assert not (others == together).flatten(1).all(dim=1).any()


def test_the_noise_does_not_depend_on_the_image():
    one, other = (torch.full((5, 3, 8, 8), value) for value in (0.5, 0.25))
    noise = [add_noise(pixels, 0.01, range(5)) - pixels for pixels in (one, other)]
    torch.testing.assert_close(*noise)


@pytest.mark.parametrize("share", REPLACED_SHARES)
@pytest.mark.parametrize("size", [16, 32])
def test_a_square_of_the_asked_area_is_replaced_by_uniform_noise(share, size):
    pixels = torch.full((300, 3, size, size), 2.0)
    replaced = replace_region(pixels, share, range(300))
    assert (pixels == 2).all()
    changed = replaced != 2
    assert torch.equal(changed.any(dim=1), changed.all(dim=1))
    rows, columns = changed[:, 0].any(dim=2), changed[:, 0].any(dim=1)
    assert torch.equal(changed[:, 0], rows[:, :, None] & columns[:, None])
    sides = {*rows.sum(dim=1).tolist(), *columns.sum(dim=1).tolist()}
    (side,) = sides
    assert abs(side - (share * size * size) ** 0.5) <= 0.5
    # Every place is reached, and the square has no gap.
    for line in (rows, columns):
        first = line.int().argmax(dim=1)
        last = size - 1 - line.flip(1).int().argmax(dim=1)
        assert (last - first + 1 == side).all()
        assert set(first.tolist()) == set(range(size - side + 1))
    assert stats.kstest(replaced[changed].numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_fgsm_is_one_step_along_the_sign_of_the_gradient(small_net, epsilon):
    net = small_net(dtype=torch.float64)
    net(pixels_of(dtype=torch.float64))  # gives batch norm statistics to use in evaluation
    pixels = pixels_of(seed=1, dtype=torch.float64)
    targets = torch.arange(40) % 5
    attacked = attack(net, pixels, targets, "fgsm", epsilon, range(40))
    net.eval()
    variable = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(variable), targets), variable)
    moved = pixels + epsilon / 255 * gradient.sign()
    assert moved.min() < 0
    assert moved.max() > 1
    torch.testing.assert_close(attacked, moved.clamp(0, 1))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_pgd_keeps_its_bounds_and_raises_the_loss(small_net, epsilon):
    net = small_net().eval()
    pixels, targets = pixels_of(), torch.arange(40) % 5
    one, same, other = (
        attack(net, pixels, targets, "pgd", epsilon, range(first, first + 40))
        for first in (0, 0, 40)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one - pixels).abs().max() <= epsilon / 255 + 1e-6
    assert one.min() >= 0
    assert one.max() <= 1
    losses = [F.cross_entropy(net(x), targets, reduction="none") for x in (pixels, one)]
    assert (losses[1] > losses[0]).all()


def test_pgd_takes_ten_steps_of_two_255ths():
    """On a linear network the attacks on either class go opposite ways from the same start."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))
    grey, targets = torch.full((40, 3, SIZE, SIZE), 0.5), torch.arange(40) % 2
    one, other = (attack(net, grey, t, "pgd", 100, range(40)) for t in (targets, 1 - targets))
    free = ((one - grey).abs() < 99 / 255) & ((other - grey).abs() < 99 / 255)
    assert free.float().mean() > 0.5
    apart = 255 * (one - other).abs()[free]
    torch.testing.assert_close(apart, torch.full_like(apart, 40), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_linear_network_gets_the_worst_perturbation_of_all(kind, epsilon):
    """With two classes the margin falls fastest along -sign(w_y - w_other), whatever the start."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))
    pixels, targets = pixels_of(), torch.arange(40) % 2
    weights = net[1].weight.detach()
    margin = (weights[targets] - weights[1 - targets]).view_as(pixels)
    worst = (pixels - epsilon / 255 * margin.sign()).clamp(0, 1)
    attacked = attack(net, pixels, targets, kind, epsilon, range(40))
    torch.testing.assert_close(attacked, worst)


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_an_attack_leaves_no_trace(small_net, kind):
    net = small_net()
    net.norm.eval()
    pixels, targets = pixels_of(), torch.arange(40) % 5
    before = {name: value.clone() for name, value in net.state_dict().items()}
    original, random_state = pixels.clone(), torch.get_rng_state()
    attacked = attack(net, pixels, targets, kind, 8, range(40))
    assert not attacked.requires_grad
    assert torch.equal(pixels, original)
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_stands_there_is_skipped_and_a_killed_job_resumes(runs, trained, data_dir):
    whole = (trained / "robustness.jsonl").read_text().splitlines(keepends=True)
    whole = whole[: 2 * len(FIGURES)]
    path = runs / "robustness.jsonl"
    path.write_text("".join(whole[:5]) + whole[5][:40])
    Robustness(runs, data_dir)()
    assert path.read_text() == "".join(whole)
    for checkpoint in runs.glob("checkpoints/*.pt"):
        checkpoint.unlink()
    Robustness(runs, data_dir)()  # needs nothing any more
    assert path.read_text() == "".join(whole)


def test_another_number_of_images_is_another_figure(runs, data_dir):
    (runs / "results.jsonl").write_text((runs / "results.jsonl").read_text().splitlines()[0] + "\n")
    for images in (10, 10, 11):
        Robustness(runs, data_dir, images=images)()
    lines = read_results(runs / "robustness.jsonl")
    assert [line["images"] for line in lines] == [10] * len(FIGURES) + [11] * len(FIGURES)


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_a_network_is_measured_in_the_type_that_it_was_trained_in(
    tmp_path, data_dir, monkeypatch, amp
):
    data = DataConfig("folder", data_dir, val_split="test", image_size=SIZE, batch_size=10)
    config = RunConfig("none", 0, data=data, schedule=ScheduleConfig(epochs=1), amp=amp)
    result = train(config, tmp_path, CPU)
    types = {"answers": set(), "gradients": set()}
    forward = nn.Conv2d.forward

    def watched(module, images):
        maps = forward(module, images)
        types["gradients" if torch.is_grad_enabled() else "answers"].add(maps.dtype)
        return maps

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    (clean,) = [
        line
        for line in measure_robustness(result, tmp_path, data_dir, None, CPU)
        if line["kind"] == "clean"
    ]
    assert clean["top1"] == pytest.approx(result["top1_last"])
    assert types == {"answers": {getattr(torch, amp)}, "gradients": {torch.float32}}


@pytest.mark.parametrize(("images", "allowed"), [(60, 2), (1000, 5)])
def test_some_predictions_may_tip_and_no_more(images, allowed):
    """Half a percent of the images, and two of a few."""
    result = {"validation_size": images, "top1_last": 50.0}
    check_clean(50 + 100 * allowed / images, images, result)
    more = 50 + 100 * (allowed + 1) / images
    check_clean(more, images - 1, result)  # some of the images only
    with pytest.raises(ValueError, match="top-1 on the clean images is"):
        check_clean(more, images, result)


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def empty(path):
    path.write_bytes(b"")


def add_a_class(path):
    state = torch.load(path)
    torch.save({**state, "classes": [*CLASSES, "dog"]}, path)


def forget(path):
    state = torch.load(path)
    torch.save({**state, "model": {k: v * 0 for k, v in state["model"].items()}}, path)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (Path.unlink, "cannot load the network: no checkpoint .*none-seed0-.*: train this run"),
        (cut, "cannot load the network: "),
        (empty, "cannot load the network: "),
        (add_a_class, "cannot load the network: "),
        (forget, r"top-1 on the clean images is 33.33 %, but was .* % after training"),
    ],
)
def test_a_run_that_cannot_be_measured_is_named_and_the_others_go_on(
    runs, data_dir, capsys, spoil, text
):
    results = read_results(runs / "results.jsonl")
    spoil(checkpoint_path(RunConfig.from_identity(results[0]["config"], data_dir), runs))
    with pytest.raises(SystemExit) as stopped:
        Robustness(runs, data_dir, images=None)()
    assert stopped.value.code == 1
    named = [li for li in capsys.readouterr().out.splitlines() if "not measured" in li]
    assert len(named) == 1
    assert named[0].split()[:3] == ["none", "seed", "0"]
    assert re.search(text, named[0])
    lines = read_results(runs / "robustness.jsonl")
    assert [line["method"] for line in lines] == ["mixup"] * len(FIGURES)


def test_other_data_than_in_training_are_refused(runs, tmp_path):
    result, _ = read_results(runs / "results.jsonl")
    fewer, wrong = (write_folder(tmp_path / name) for name in ("fewer", "wrong"))
    Path(fewer, "test", "ant", "00.png").unlink()
    Path(wrong, "test", "ant").rename(Path(wrong, "test", "moved"))
    Path(wrong, "test", "bee").rename(Path(wrong, "test", "ant"))
    Path(wrong, "test", "moved").rename(Path(wrong, "test", "bee"))
    for data_dir in (fewer, wrong):
        with pytest.raises(ValueError, match="does not hold the images that the run was trained"):
            list(measure_robustness(result, runs, data_dir, None, CPU))


def test_a_stream_is_measured_whole(tmp_path):
    random, splits = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("validation", 9)):
        name = f"{split}-0000.tar"
        with webdataset.TarWriter(str(tmp_path / name)) as shard:
            for index in range(count):
                image = draw_image(random, index % 3)
                shard.write({"__key__": f"{index:04}", "jpg": image, "cls": index % 3})
        shards = {"filenames": [name], "shard_lengths": [count]}
        splits[split] = {"name": split, "num_samples": count, **shards}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    data = DataConfig("wds/made", str(tmp_path), num_classes=3, image_size=SIZE, batch_size=4)
    config = RunConfig("none", 0, data=data, schedule=ScheduleConfig(epochs=1))
    result = train(config, tmp_path, CPU)
    lines = list(measure_robustness(result, tmp_path, str(tmp_path), None, CPU))
    assert len(lines) == len(FIGURES)
    assert lines[0]["top1"] == pytest.approx(result["top1_last"])
    with pytest.raises(
        ValueError, match="is a stream of 9 images, which cannot be picked, got images=5"
    ):
        list(measure_robustness(result, tmp_path, str(tmp_path), 5, CPU))


def test_bad_input_is_refused(runs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere"):
        Robustness(tmp_path / "nowhere")()
    with pytest.raises(ValueError, match=r"no results in .*results.jsonl"):
        Robustness(tmp_path)()
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        Robustness(runs, images=0)()
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"robustness needs torchattacks.*sage-timm\[harness\]"):
        Robustness(runs)()


def test_the_table_has_means_over_the_seeds():
    """By hand: 50 and 52 have mean 51 and deviation 1.41."""
    figures = (("pgd", 2.0, 10.0), ("clean", 0.0, 50.0), ("noise", 0.1, 40.0))
    lines = [
        {
            "method": "sage",
            "seed": seed,
            "kind": kind,
            "strength": strength,
            "top1": top1 + 2 * seed,
        }
        for seed in (0, 1)
        for kind, strength, top1 in figures
    ]
    lines.append({**lines[1], "method": "none", "top1": 60.0})
    assert str(table(lines)).splitlines()[:4] == [
        "| method | seeds | clean | noise 0.1 | pgd 2/255 |",
        "| --- | --- | --- | --- | --- |",
        "| sage | 0 1 | 51.00 ± 1.41 | 41.00 ± 1.41 | 11.00 ± 1.41 |",
        "| none | in part 0, missing 1 | **60.00** | - | - |",
    ]
