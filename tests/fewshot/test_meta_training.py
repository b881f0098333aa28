"""Learners in the harness's training loop, from the first epoch to the figures."""

import math
from dataclasses import replace

import pytest
import torch
from timm.data import resolve_data_config

import fewshot.config
from fewshot.episodes import EpisodeConfig
from fewshot.learners import LEARNERS
from fewshot.measure import EvaluationConfig, check_episodes, epoch_measure, evaluate
from fewshot.run_config import FewShotConfig
from fewshot.tasks import TaskConfig
from harness.config import ScheduleConfig
from harness.data import DataConfig, load_splits
from harness.loader import make_loader
from harness.methods.base import MethodConfig
from harness.models import create_network
from harness.store import read_results
from harness.train import Validation, load_model, train

CPU = torch.device("cpu")
NAMES = ("protonet", "maml", "anil")
EVALUATION = EvaluationConfig(
    shots=(1,), queries=4, episodes=20, adaptation_episodes=6, classifiers=("centroid",)
)


@pytest.fixture
def tiny(hues):
    return FewShotConfig(
        "sage",
        seed=1,
        model="cnn4_32",
        data=DataConfig(dataset=hues, image_size=16, batch_size=20),
        schedule=ScheduleConfig(epochs=3, lr=0.01),
        tasks=TaskConfig(shots=2, queries=4, tasks=2, steps=2, adaptation_steps=2),
        validation=EpisodeConfig(shots=2, queries=4, episodes=4),
    )


def run(config, out, measure=None):
    targets = load_splits(config.data, config.seed).validation.targets
    validation = Validation(measure or epoch_measure(config, targets), best=True)
    return train(config, out, CPU, learner=LEARNERS[config.learner], validation=validation)


def untimed(line):
    of_the_machine = ("step_ms", "train_seconds", "finished", "history")
    kept = {k: v for k, v in line.items() if k not in of_the_machine}
    history = [
        {k: v for k, v in epoch.items() if k not in ("step_ms", "seconds")}
        for epoch in line["history"]
    ]
    return {**kept, "history": history}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("learner", NAMES)
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tiny, tmp_path, learner):
    config = replace(tiny, learner=learner)
    targets = load_splits(config.data, 1).validation.targets
    whole = run(config, tmp_path / "whole")
    measure, epochs = epoch_measure(config, targets), []

    def killing(model, loader):
        epochs.append(measure(model, loader))
        if len(epochs) == 2:
            raise KilledError
        return epochs[-1]

    with pytest.raises(KilledError):
        run(config, tmp_path / "killed", killing)
    assert untimed(run(config, tmp_path / "killed")) == untimed(whole)
    outputs = config.outputs(6)
    weights = [
        load_model(config, tmp_path / name, outputs, CPU).state_dict()
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    assert len({epoch["train_loss"] for epoch in whole["history"]}) == 3


@pytest.mark.parametrize("learner", NAMES)
def test_a_learner_learns(tiny, tmp_path, learner):
    """Hues under noise, which an untrained network takes for each other."""
    config = replace(
        tiny,
        method="none",
        learner=learner,
        data=replace(tiny.data, val_split="train"),
        schedule=ScheduleConfig(epochs=2, lr=0.05),
        tasks=replace(tiny.tasks, steps=10, adaptation_lr=0.3),
        validation=EpisodeConfig(shots=5, queries=4, episodes=15),
    )
    line = run(config, tmp_path)
    first, last = (epoch["train_loss"] for epoch in line["history"])
    assert last < first
    assert last < 0.8 * math.log(5)
    torch.manual_seed(0)
    untrained = create_network("cnn4_32", 5, 16)
    splits = load_splits(config.data, 1)
    normalisation = resolve_data_config({}, model=untrained)
    loader = make_loader(config.data, splits.validation, normalisation, CPU, hflip=None)
    before = epoch_measure(config, splits.validation.targets)(untrained, loader)
    assert line["top1"] > before["top1"] + 20


@pytest.mark.parametrize("learner", NAMES)
def test_figures_of_a_trained_network(tiny, tmp_path, learner):
    config = replace(tiny, learner=learner, schedule=ScheduleConfig(epochs=1))
    run(config, tmp_path)
    lines = list(evaluate(config, EVALUATION, tmp_path, CPU))
    assert read_results(tmp_path / "episodes.jsonl") == lines
    described = [(d["classifier"], d["normalization"], d["episodes"]) for d in lines]
    adapted = [] if learner == "protonet" else [(learner, "un", 6)]
    assert described == [("centroid", "cl2n", 20), *adapted]
    assert list(evaluate(config, EVALUATION, tmp_path, CPU)) == lines
    again = FewShotConfig.from_identity(lines[0]["config"])
    assert again == config


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "manifold"}, "does not go with manifold, .* support must stay unmixed"),
        ({"compile": True}, "does not go with compile=True"),
        ({"method": "comixup"}, "comixup adds the clean loss's .* set tasks.tasks=1, got 2"),
        ({"mixing": MethodConfig(update_ratio=0.7)}, "sage with update_ratio=0.7 adds .* got 2"),
        ({"mixing": MethodConfig(saliency_size=8)}, "leave out saliency_size=8"),
        ({"learner": "maml", "method": "comixup"}, "comixup needs the clean loss's gradient"),
        (
            {"learner": "anil", "mixing": MethodConfig(update_ratio=0.7)},
            "sage with update_ratio=0.7 needs .* learner='anil'",
        ),
        ({"learner": "maml", "amp": "float16"}, "vanish with amp='float16'"),
        ({"learner": "maml", "validation": EpisodeConfig(ways=4)}, "must be the same, got 4"),
    ],
)
def test_what_does_not_fit_a_learner_is_refused(tiny, change, text):
    with pytest.raises(ValueError, match=text):
        replace(tiny, **{"learner": "protonet", **change})


def test_what_fits_the_classifier_is_not_refused(tiny):
    for change in ({"method": "manifold"}, {"compile": True}, {"method": "comixup"}):
        replace(tiny, **change)


def test_episodes_of_other_ways_than_a_network_has_outputs_are_refused(tiny):
    evaluation = replace(EVALUATION, ways=4)
    with pytest.raises(ValueError, match=r"tasks\.ways=5: ways must be the same, got 4"):
        check_episodes(replace(tiny, learner="maml"), evaluation)
    check_episodes(replace(tiny, learner="protonet"), evaluation)


def test_tasks_that_the_data_set_cannot_give_are_refused_before_training(tiny):
    config = replace(tiny, learner="protonet", tasks=replace(tiny.tasks, ways=7))
    with pytest.raises(ValueError, match="tasks of the base classes: ways=7"):
        check_episodes(config, EVALUATION)


@pytest.mark.parametrize("learner", NAMES)
def test_half_precision_trains_to_about_the_same_loss(tiny, tmp_path, learner):
    config = replace(tiny, learner=learner, schedule=ScheduleConfig(epochs=1))
    losses = [run(replace(config, amp=kind), tmp_path) for kind in ("none", "bfloat16")]
    full, half = (line["train_loss"] for line in losses)
    assert half == pytest.approx(full, rel=0.1)
    assert half != full


def test_the_names_of_learners_are_those_of_the_registry():
    assert set(LEARNERS) == set(fewshot.config.LearnerName.__args__)
    assert set(fewshot.config.ADAPTING) <= set(LEARNERS)
