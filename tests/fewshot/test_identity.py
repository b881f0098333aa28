from dataclasses import replace

import pytest
import timm
import torch

from fewshot.config import EpisodeConfig
from fewshot.run_config import FewShotConfig
from fewshot.tasks import TaskConfig
from harness.config import ScheduleConfig
from harness.train import load_model, train


def test_tasks_name_a_run_only_where_its_learner_reads_them(tiny):
    classifier = tiny().run("none", 0)
    assert replace(classifier, tasks=TaskConfig(shots=3)).name() == classifier.name()
    protonet = replace(classifier, learner="protonet")
    assert protonet.name() != classifier.name()
    assert replace(protonet, tasks=TaskConfig(shots=3)).name() != protonet.name()


def test_every_option_of_the_data_reaches_the_run(tiny):
    options = {
        "crop_mode": "center",
        "crop_pct": 0.5,
        "batch_size": 8,
        "workers": 1,
        "train_size": 64,
    }
    data = tiny(**options, download=True).run("none", 0).data
    assert {name: getattr(data, name) for name in options} == options
    assert data.dataset_download


def test_a_backbone_starts_from_the_weights_that_are_given(tiny, tmp_path):
    """With timm's optimiser and warm-up; of a learning rate of nothing, it ends with them."""
    given = timm.create_model("cnn4_32", num_classes=7, img_size=16).state_dict()
    torch.save(given, tmp_path / "weights.pt")
    schedule = ScheduleConfig(epochs=2, opt="adamw", lr=1e-12, warmup_epochs=1, weight_decay=0.0)
    command = tiny(initial_checkpoint=tmp_path / "weights.pt", schedule=schedule)
    run = command.run("none", 0)
    assert len(run.identity()["initial_weights"]) == 16
    assert run.identity()["schedule"]["opt"] == "adamw"
    train(replace(run, validation=EpisodeConfig(episodes=2)), tmp_path, torch.device("cpu"))
    trained = load_model(replace(run, validation=EpisodeConfig(episodes=2)), tmp_path, 64, "cpu")
    for name, value in trained.named_parameters():
        if not name.startswith("classifier"):
            torch.testing.assert_close(value.detach(), given[name], rtol=0, atol=1e-3, msg=name)
    with pytest.raises(ValueError, match="cnn4_32 has no pretrained weights"):
        tiny(pretrained=True).run("none", 0)


def test_a_learner_of_tasks_takes_no_binary_cross_entropy(tiny):
    schedule = ScheduleConfig(bce_loss=True)
    assert tiny(schedule=schedule).run("none", 0).schedule.bce_loss
    with pytest.raises(ValueError, match=r"learner='protonet' learns by .*: leave out bce_loss"):
        tiny(schedule=schedule, learner="protonet").run("none", 0)


@pytest.mark.parametrize("learner", ["classifier", "protonet"])
def test_a_run_is_made_again_from_its_line(tiny, learner):
    run = replace(tiny(learner=learner).run("sage", 3), tasks=TaskConfig(queries=8))
    made = FewShotConfig.from_identity(run.identity(), run.data.data_dir)
    assert made.identity() == run.identity()
    assert made.validation == run.validation
    if learner == "protonet":
        assert made == run


def test_a_line_of_another_command_is_refused(tiny):
    identity = tiny().run("none", 0).identity() | {"colour": "blue"}
    with pytest.raises(ValueError, match="config was written by another version or command"):
        FewShotConfig.from_identity(identity)
