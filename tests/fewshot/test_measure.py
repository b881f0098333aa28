import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.data import open_split
from fewshot.episodes import EpisodeConfig, draw_episodes
from fewshot.measure import EvaluationConfig, epoch_measure, evaluate
from harness.config import ScheduleConfig
from harness.data import load_splits
from harness.store import load_checkpoint, read_results
from harness.train import Validation, checkpoint_path, train

CPU = torch.device("cpu")


def centroid_counts(embeddings, episodes):
    """Correct queries of each episode, by NumPy in float64."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    support = embeddings[episodes.support.numpy()].mean(axis=2)
    query = embeddings[episodes.query.numpy()]
    distances = ((query[:, :, :, None] - support[:, None, None]) ** 2).sum(axis=-1)
    own = np.arange(support.shape[1])[:, None]
    return (distances.argmin(axis=-1) == own).sum(axis=(1, 2))


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def embeddings_by_hand(weights, dataset, config):
    """Through learn2learn's own backbone, the images normalised by hand."""
    from learn2learn.vision.models import CNN4Backbone

    model = CNN4Backbone(hidden_size=32).eval()
    model.load_state_dict(
        {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
    )
    size = config.data.image_size
    images = np.stack([np.asarray(dataset[i][0].resize((size, size))) for i in range(len(dataset))])
    mean = np.array([120.39586422, 115.59361427, 104.54012653]) / 255
    deviation = np.array([70.68188272, 68.27635443, 72.54505529]) / 255
    pixels = torch.tensor((images / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        return model(pixels).numpy()


def trained(command):
    run = command.run("none", 0)
    splits = load_splits(run.data, run.seed)
    validation = Validation(epoch_measure(run, splits.validation.targets), True)
    return run, train(run, command.out, CPU, validation=validation), splits


def test_accuracies_are_those_of_the_checkpoint_counted_by_hand(tiny):
    command = tiny()
    run, result, splits = trained(command)
    weights = load_checkpoint(checkpoint_path(run, command.out), CPU)["best"]
    own = unit(embeddings_by_hand(weights, splits.validation, run))
    drawn = draw_episodes(splits.validation.targets, run.validation)
    assert result["top1"] == pytest.approx(100 * centroid_counts(own, drawn).mean() / 75, abs=0.5)

    novel = open_split("glyphs", command.root, "test", download=False, image_size=16)
    base_mean = embeddings_by_hand(weights, splits.train, run).mean(axis=0)
    own = unit(embeddings_by_hand(weights, novel, run) - base_mean)
    for line in evaluate(run, command.evaluation, command.out, CPU):
        episodes = EpisodeConfig(shots=line["shots"], episodes=30)
        counts = centroid_counts(own, draw_episodes(novel.targets, episodes))
        expected = pytest.approx(100 * counts.mean() / 75, abs=0.7)  # half a query, for rounding
        assert line["accuracy"] == expected


def test_the_epoch_with_the_best_validation_episodes_counts(tiny):
    """With a constant rate, as many epochs alone end with the same network."""
    command = tiny(schedule=ScheduleConfig(epochs=6, sched="constant", lr=0.05))
    run, result, _ = trained(command)
    accuracies = [epoch["top1"] for epoch in result["history"]]
    assert result["top1"] == max(accuracies)
    assert result["best_epoch"] == accuracies.index(max(accuracies)) + 1
    best = load_checkpoint(checkpoint_path(run, command.out), CPU)["best"]
    schedule = replace(command.schedule, epochs=result["best_epoch"])
    shorter = replace(command, schedule=schedule, out=command.out / "shorter")
    alone, _, _ = trained(shorter)
    weights = load_checkpoint(checkpoint_path(alone, shorter.out), CPU)["model"]
    assert all(torch.equal(weights[name], value) for name, value in best.items())


class StoppedError(Exception):
    pass


def test_a_run_that_was_cut_off_ends_with_the_same_best_network(tiny):
    whole = tiny(schedule=ScheduleConfig(epochs=4))
    run, result, splits = trained(whole)
    cut = replace(whole, out=whole.out / "cut")
    episodes = epoch_measure(run, splits.validation.targets)
    calls = []

    def stop_at_third(model, loader):
        calls.append(model)
        if len(calls) == 3:
            raise StoppedError
        return episodes(model, loader)

    with pytest.raises(StoppedError):
        train(run, cut.out, CPU, validation=Validation(stop_at_third, best=True))
    _, resumed, _ = trained(cut)
    assert [e["top1"] for e in resumed["history"]] == [e["top1"] for e in result["history"]]
    states = [load_checkpoint(checkpoint_path(run, out), CPU) for out in (whole.out, cut.out)]
    for name, value in states[0]["best"].items():
        assert torch.equal(value, states[1]["best"][name]), name


def test_what_stands_there_is_not_measured_again(tiny):
    command = tiny()
    run, _, _ = trained(command)
    first = list(evaluate(run, command.evaluation, command.out, CPU))
    checkpoint_path(run, command.out).rename(command.out / "away.pt")
    assert list(evaluate(run, command.evaluation, command.out, CPU)) == first
    more = replace(command.evaluation, shots=(1, 3))
    with pytest.raises(ValueError, match=r"no checkpoint .*: train this run first"):
        list(evaluate(run, more, command.out, CPU))
    (command.out / "away.pt").rename(checkpoint_path(run, command.out))
    assert next(iter(evaluate(run, more, command.out, CPU))) == first[0]
    lines = list(evaluate(run, more, command.out, CPU))
    assert [line["shots"] for line in lines] == [1, 3]
    assert len(read_results(command.out / "episodes.jsonl")) == 3


def write_folder(root, seed, relabelled):
    """Noise; in ``relabelled``, the novel classes have each other's images and other names."""
    random = np.random.default_rng(seed)
    for split, classes in {"train": 4, "validation": 5, "test": 5}.items():
        for number in range(classes):
            images = [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(20)]
            if split == "test" and relabelled:
                number = (number + 1) % classes + 100
            folder = root / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for index, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{index}.png")
    return root


def test_the_labels_of_the_novel_classes_do_not_reach_the_backbone(tiny, tmp_path):
    weights, histories = [], []
    for relabelled in (False, True):
        root = write_folder(tmp_path / str(relabelled), 0, relabelled)
        command = tiny(dataset="folder", root=root, train_size=None, out=root / "out")
        command()
        run = command.run("none", 0)
        weights.append(load_checkpoint(checkpoint_path(run, command.out), CPU))
        histories.append([e["top1"] for e in weights[-1]["history"]])
    assert histories[0] == histories[1]
    for part in ("model", "best"):
        for name, value in weights[0][part].items():
            assert torch.equal(value, weights[1][part][name]), name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classifiers": ("forest",)}, r"classifiers must be of centroid, .*, got \['forest'\]"),
        ({"normalizations": ("l3",)}, r"normalizations must be of un, l2n, cl2n, got \['l3'\]"),
        ({"shots": ()}, "shots must name at least one number, got none"),
        ({"shots": (0,)}, "shots must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        EvaluationConfig(**change).check()


def test_a_split_without_enough_images_is_refused_before_training(tiny, tmp_path):
    root = write_folder(tmp_path / "images", 0, False)
    shutil.rmtree(root / "test" / "test0")
    command = tiny(dataset="folder", root=root, train_size=None)
    with pytest.raises(ValueError, match="ways=5 takes as many classes, the images have 4"):
        command()
    assert not (command.out / "checkpoints").exists()
