from dataclasses import replace

import pytest

from fewshot.run_config import FewShotConfig
from fewshot.tasks import TaskConfig


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
