import pytest
import torch
from PIL import Image

from fewshot.episodes import EpisodeConfig, draw_episodes
from fewshot.tasks import TaskBatches, TaskConfig, in_batches, in_order, way_labels
from harness.data import DataConfig, Subset, targets_of
from harness.loader import make_loader

CPU = torch.device("cpu")
TARGETS = [image // 10 for image in range(60)]
SMALL = TaskConfig(ways=3, shots=2, queries=4, tasks=2, steps=5)


class Grey:
    """Images of one grey each, their index, so that a batch tells which images are in it."""

    transform = None

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return self.transform(Image.new("RGB", (16, 16), (index,) * 3)), TARGETS[index]


def test_a_batch_holds_the_support_of_each_task_then_its_queries():
    for batch in TaskBatches(TARGETS, SMALL):
        assert len(batch) == len(set(batch[:18])) + len(set(batch[18:])) == 36
        for task in (batch[:18], batch[18:]):
            support = [TARGETS[index] for index in task[:6]]
            queries = [TARGETS[index] for index in task[6:]]
            ways = support[::2]
            assert len(set(ways)) == 3
            assert support == [way for way in ways for _ in range(2)]
            assert queries == [way for way in ways for _ in range(4)]
    assert way_labels(3, 2, CPU).tolist() == [0, 0, 1, 1, 2, 2]


def test_an_epoch_has_its_own_tasks_and_the_random_state_decides_them():
    batches = TaskBatches(TARGETS, SMALL)
    torch.manual_seed(3)
    one, other = list(batches), list(batches)
    torch.manual_seed(3)
    assert list(batches) == one != other
    assert len(one) == len(batches) == 5


def test_a_step_of_one_task_is_enough():
    batches = list(TaskBatches(TARGETS, TaskConfig(2, 1, 1, tasks=1, steps=1)))
    assert [len(batch) for batch in batches] == [4]


def test_the_first_episodes_of_many_are_those_of_a_draw_of_few():
    few, many = (draw_episodes(TARGETS, EpisodeConfig(5, 1, 3, n, seed=4)) for n in (7, 100))
    assert torch.equal(in_order(many)[:7], in_order(few))


@pytest.mark.parametrize("workers", [0, 1])
def test_other_batches_of_a_loader_have_its_images(workers):
    data = DataConfig(image_size=16, batch_size=10, workers=workers)
    normalisation = {"interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    loader = make_loader(data, Grey(), normalisation, CPU, hflip=None)
    batches = [[5, 5, 40], [11]]
    given = list(in_batches(loader, batches))
    for batch, (images, targets) in zip(batches, given, strict=True):
        expected = (torch.tensor(batch) / 255 - 0.5) / 0.25
        assert torch.allclose(images, expected.view(-1, 1, 1, 1).expand(-1, 3, 16, 16), atol=1e-6)
        assert targets.tolist() == [TARGETS[index] for index in batch]
    assert sum(len(images) for images, _ in loader) == 60


def test_the_classes_of_a_part_are_those_of_its_images():
    whole = Grey()
    whole.targets = TARGETS
    assert targets_of(whole) == TARGETS
    assert targets_of(Subset(whole, [59, 0, 31])) == [5, 0, 3]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ways": 1}, "tasks.ways must be at least 2, got 1"),
        ({"adaptation_steps": 0}, "tasks.adaptation_steps must be at least 1, got 0"),
        ({"adaptation_lr": 0.0}, r"tasks.adaptation_lr must be in \(0, inf\), got 0.0"),
        ({"queries": 15}, "must be even, since timm's Mixup mixes pairs .* got 5 times 15"),
    ],
)
def test_bad_tasks_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        TaskConfig(**settings).check()


def test_tasks_of_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match="tasks of the base classes: shots=1 and queries=16 take"):
        TaskBatches(TARGETS, TaskConfig())
