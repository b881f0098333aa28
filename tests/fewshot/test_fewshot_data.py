import multiprocessing
import os
import pickle
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from learn2learn.vision.datasets import CIFARFS, FC100, MiniImagenet, TieredImagenet
from torch.utils.data import DataLoader

import fewshot.data
from fewshot.config import PREFIX, EpisodeConfig, EvaluationConfig
from fewshot.data import NAMES, open_split, write_glyphs
from fewshot.measure import check_episodes
from fewshot.run_config import FewShotConfig
from harness.config import DataConfig
from harness.data import load_splits
from harness.glyphs import CLASSES as GLYPHS
from tests import fewshot_inputs
from tests.fewshot_inputs import CLASSES, EACH, MAKERS, SPLITS

SCRIPTS = (
    "123456789",
    "ABCDEFGHJKLMNPQRSTUVWXYZ",
    "abdefghmnqrt",
    "ΓΔΘΛΞΠΣΦΨΩ",
    "βγδζλμξπσω",
    "БДЖИЦЧШЫЭЮЯЉѢ",
    "@#$%&?+§¶£¥€‡©",
)


@pytest.fixture
def few_glyphs(monkeypatch):
    monkeypatch.setattr(fewshot.data, "IMAGES_PER_CLASS", {"train": 2, "validation": 3, "test": 3})


def read(name, root, split="test", image_size=8):
    return open_split(name, root, split, download=False, image_size=image_size)


@pytest.mark.parametrize("name", MAKERS)
def test_reads_each_data_set(name, tmp_path):
    MAKERS[name](tmp_path)
    for split in SPLITS:
        opened = read(name, tmp_path, split)
        images, targets = fewshot_inputs.pixels(split)
        expected = sorted(
            (CLASSES[split][target], image.tobytes())
            for image, target in zip(images, targets, strict=True)
        )
        named = [name.replace("class ", "n0") for name in opened.classes]
        got = [(named[target], np.asarray(image).tobytes()) for image, target in opened]
        assert sorted(got) == expected
        assert opened.targets == [target for _, target in opened]
        assert set(opened.targets) == set(range(len(CLASSES[split])))
        assert all(image.mode == "RGB" for image, _ in opened)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("tiered-imagenet", TieredImagenet), ("fc100", FC100), ("cifarfs", CIFARFS)],
)
def test_the_images_are_learn2learns_in_its_order(name, theirs, tmp_path):
    MAKERS[name](tmp_path)
    images, labels = zip(*theirs(str(tmp_path), "validation"), strict=True)
    opened = read(name, tmp_path, "validation")
    for (image, _), pixels in zip(opened, images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(pixels))
    assert opened.targets == np.unique(labels, return_inverse=True)[1].tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_reads_mini_imagenet_of_any_pickle_protocol(tmp_path, protocol):
    fewshot_inputs.mini_imagenet(tmp_path, protocol)
    images, targets = fewshot_inputs.pixels("test")
    opened = read("mini-imagenet", tmp_path)
    np.testing.assert_array_equal([np.asarray(image) for image, _ in opened], images)
    assert opened.targets == targets.tolist()


def test_glyphs_are_read_by_learn2learn(tmp_path, few_glyphs):
    classes = []
    for split, count, each in (("train", 64, 2), ("validation", 16, 3), ("test", 20, 3)):
        opened = read("glyphs", tmp_path, split, image_size=12)
        theirs = MiniImagenet(str(tmp_path / "glyphs-12"), split)
        assert len(opened) == len(theirs) == count * each
        for (image, target), (pixels, label) in zip(opened, theirs, strict=True):
            assert image.size == (12, 12)
            np.testing.assert_array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())
            assert target == label
        assert set(Counter(opened.targets).values()) == {each}
        for script in SCRIPTS:
            assert set(script) & set(opened.classes)
        classes += opened.classes
    assert sorted(classes) == sorted(GLYPHS)


def test_glyphs_show_the_character_that_their_class_names(tmp_path, few_glyphs):
    """Compared to the same drawing of each of the 100 characters."""
    from harness.glyphs import _draw, _render

    opened = read("glyphs", tmp_path, "test", image_size=12)
    for index in (0, 1, 19, 20, 59):
        image, target = opened[index]
        drawn = {
            character: _render(character, _draw(np.random.default_rng([0, 2, index])), 12)[0]
            for character in GLYPHS
        }
        alike = [c for c, pixels in drawn.items() if (pixels == np.asarray(image)).all()]
        assert alike == [opened.classes[target]]


def test_glyphs_are_the_same_bits_each_time(tmp_path, few_glyphs):
    one, two = (write_glyphs(tmp_path / name, 8) for name in ("one", "two"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def killed_while(patch, call):
    """Runs a call in a process of its own, which ``patch`` has killed on the way."""
    process = multiprocessing.get_context("fork").Process(target=lambda: (patch(), call()))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_self(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def test_glyphs_whose_writing_was_killed_are_made_whole(tmp_path, few_glyphs):
    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[:5000])
        kill_self()

    def patch():
        Path.write_bytes = write_half

    killed_while(patch, lambda: write_glyphs(tmp_path / "killed", 8))
    left = [path.name for path in (tmp_path / "killed" / "glyphs-8").iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".tmp")
    whole = write_glyphs(tmp_path / "whole", 8)
    made = write_glyphs(tmp_path / "killed", 8)
    for path in whole.iterdir():
        assert path.read_bytes() == (made / path.name).read_bytes()


def test_broken_glyphs_are_told(tmp_path, few_glyphs):
    path = write_glyphs(tmp_path, 8) / "mini-imagenet-cache-train.pkl"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{path} is no whole pickle.* Delete it and start again"):
        read("glyphs", tmp_path)


@pytest.mark.parametrize("name", ["folder", "mini-imagenet", "tiered-imagenet"])
def test_a_class_in_two_splits_is_refused(name, tmp_path):
    MAKERS[name](tmp_path, classes={**CLASSES, "test": ["n07", "n03", "n09"]})
    for split in SPLITS:
        with pytest.raises(ValueError, match=r"classes that are both in train and in test: n03$"):
            read(name, tmp_path, split)


def test_a_class_of_cifarfs_or_fc100_in_two_splits_is_refused(tmp_path):
    fewshot_inputs.cifarfs(tmp_path)
    listing = tmp_path / "cifarfs/cifar100/splits/bertinetto/test.txt"
    listing.write_text(listing.read_text() + "n05\n")
    with pytest.raises(ValueError, match=r"both in validation and in test: n05$"):
        read("cifarfs", tmp_path)
    fewshot_inputs.fc100(tmp_path)
    shutil.copy(tmp_path / "FC100_train.pickle", tmp_path / "FC100_val.pickle")
    with pytest.raises(ValueError, match=r"in train and in validation: class 1, class 2, class 3"):
        read("fc100", tmp_path)


FILES = {
    "mini-imagenet": ("mini-imagenet-cache-validation.pkl", "mini-imagenet-cache-validation.pkl"),
    "tiered-imagenet": (
        "tiered-imagenet/train_images_png.pkl",
        "tiered-imagenet-train_images_png.pkl",
    ),
    "fc100": ("FC100_val.pickle", "fc100.zip"),
    "cifarfs": ("cifarfs/cifar100", "cifar100.zip"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(name, tmp_path):
    MAKERS[name](tmp_path)
    place, source = FILES[name]
    (tmp_path / place).rename(tmp_path / "elsewhere")
    url = f"https://zenodo.org/record/7978538/files/{source}"
    with pytest.raises(ValueError, match=rf"lacks .*{place}: --download fetches it, .*{url}"):
        read(name, tmp_path)


@pytest.mark.parametrize("name", ["mini-imagenet", "tiered-imagenet", "fc100"])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is no whole pickle"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), r"is a web page \(HTML\)"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "(has no '|is no list)"),
        (lambda path: path.write_bytes(pickle.dumps(os.getcwd)), "is not safe to open: it names"),
    ],
)
def test_a_broken_file_is_told(name, damage, told, tmp_path):
    MAKERS[name](tmp_path)
    place, source = FILES[name]
    damage(tmp_path / place)
    content = (tmp_path / place).read_bytes()
    match = rf"{tmp_path / place} {told}.*Delete it and let --download fetch.*{source}"
    with pytest.raises(ValueError, match=match):
        read(name, tmp_path, "train" if "train" in place else "test")
    assert (tmp_path / place).read_bytes() == content


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"class_dict": {"a": [0]}}, "has no 'image_data'"),
        ({"image_data": IMAGES}, "has no 'class_dict'"),
        ({"image_data": IMAGES / 255, "class_dict": {}}, "image_data is not uint8"),
        ({"image_data": IMAGES[..., 0], "class_dict": {}}, "image_data is not uint8"),
        ({"image_data": IMAGES, "class_dict": {}}, "class_dict is no dictionary of classes"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1], "b": [2, 4]}}, "each of the 4 images"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1], "b": [2]}}, "each of the 4 images"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1, 2], "b": [2, 3]}}, "to one class"),
        ({"image_data": IMAGES, "class_dict": {"a": [0, 1, 2, 3], "b": []}}, "class 'b' is no li"),
        ({"image_data": IMAGES, "class_dict": {"a": ["0"], "b": [2]}}, "class 'a' is no list of i"),
        ({"image_data": IMAGES, "class_dict": {1: [0, 1, 2, 3]}}, "names no classes"),
    ],
)
def test_mini_imagenets_layout_is_checked(content, told, tmp_path):
    fewshot_inputs.mini_imagenet(tmp_path)
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{path} .*{told}"):
        read("mini-imagenet", tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label_specific": [0, 0, 1, 3]}, r"label_specific is not in 0 \.\.\. 2"),
        ({"label_specific": [0.5]}, "label_specific is no list of integers"),
        ({"label_specific_str": ["a", "b", "a"]}, "names the class 'a' twice"),
        ({"label_specific": [0, 1, 2]}, "has 15 images, but its labels' file has 3"),
    ],
)
def test_tiered_imagenets_layout_is_checked(changes, told, tmp_path):
    fewshot_inputs.tiered_imagenet(tmp_path)
    path = tmp_path / "tiered-imagenet" / "test_labels.pkl"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **changes}))
    with pytest.raises(ValueError, match=told):
        read("tiered-imagenet", tmp_path)


def test_fc100s_layout_is_checked(tmp_path):
    fewshot_inputs.fc100(tmp_path)
    path = tmp_path / "FC100_test.pickle"
    path.write_bytes(pickle.dumps({"data": IMAGES, "labels": [90, 91]}))
    with pytest.raises(ValueError, match=rf"{path} has 4 images and 2 labels"):
        read("fc100", tmp_path)


def test_a_class_of_cifarfs_without_images_is_told(tmp_path):
    fewshot_inputs.cifarfs(tmp_path)
    shutil.rmtree(tmp_path / "cifarfs/cifar100/data/n08")
    with pytest.raises(ValueError, match=r"cifar100 has no images in data/n08, which test\.txt"):
        read("cifarfs", tmp_path, "train")


def test_a_folder_without_a_split_or_with_an_empty_class_is_told(tmp_path):
    fewshot_inputs.folder(tmp_path)
    (tmp_path / "validation" / "n99").mkdir()
    with pytest.raises(ValueError, match=r"class 'n99' has no images in .*/validation/n99"):
        read("folder", tmp_path)
    shutil.rmtree(tmp_path / "validation")
    with pytest.raises(ValueError, match=r"no folder validation or val or valid for the split"):
        read("folder", tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_may_have_another_name(tmp_path, name):
    fewshot_inputs.folder(tmp_path)
    (tmp_path / "validation").rename(tmp_path / name)
    assert read("folder", tmp_path, "validation").classes == CLASSES["validation"]


def test_hidden_copies_are_no_images(tmp_path):
    """They would put support images among the queries."""
    fewshot_inputs.folder(tmp_path)
    for image in [*(tmp_path / "test").glob("*/*.png")]:
        for copy in (
            image.parent / ".ipynb_checkpoints" / image.name,
            image.parent / f"._{image.name}",
        ):
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(image, copy)
    assert len(read("folder", tmp_path)) == EACH * len(CLASSES["test"])


def test_copies_are_counted_within_a_split_and_between_two(tmp_path, capsys):
    fewshot_inputs.folder(tmp_path)
    image = next((tmp_path / "test" / "n07").iterdir())
    shutil.copy(image, image.with_name("copy.png"))
    shutil.copy(image, tmp_path / "train" / "n01" / "taken.png")
    read("folder", tmp_path)
    said = capsys.readouterr().err
    assert "1 images of 'test' are copies of others: n07/" in said
    assert "2 images of 'test' are in 'train' too: " in said


def test_one_base_class_is_refused(tmp_path):
    fewshot_inputs.folder(tmp_path)
    for name in CLASSES["train"][1:]:
        shutil.rmtree(tmp_path / "train" / name)
    config = DataConfig(PREFIX + "folder", str(tmp_path), image_size=16)
    with pytest.raises(ValueError, match="has one class to train on, 'n01'"):
        load_splits(config, seed=0)


def test_a_class_that_episodes_lack_images_of_is_named(tmp_path):
    fewshot_inputs.folder(tmp_path)
    next((tmp_path / "test" / "n08").iterdir()).unlink()
    settings = {"ways": 2, "shots": 2, "queries": 3}
    run = FewShotConfig(
        "none",
        0,
        "cnn4_32",
        DataConfig(PREFIX + "folder", str(tmp_path), image_size=16),
        validation=EpisodeConfig(**settings),
    )
    evaluation = EvaluationConfig(ways=2, shots=(2,), queries=3, episodes=2)
    told = f"split 'test' of {tmp_path}: shots=2 and queries=3 take 5 .* class 'n08' has 4"
    with pytest.raises(ValueError, match=told):
        check_episodes(run, evaluation)


@pytest.mark.parametrize("name", ["folder", "tiered-imagenet"])
def test_a_broken_image_is_told(name, tmp_path):
    MAKERS[name](tmp_path)
    if name == "folder":
        path = next((tmp_path / "test" / "n07").iterdir())
        path.write_bytes(path.read_bytes()[:60])
        told = rf"{path} cannot be read: no whole image"
    else:
        path = tmp_path / "tiered-imagenet" / "test_images_png.pkl"
        images = pickle.loads(path.read_bytes())
        images[4] = images[4][:60]
        path.write_bytes(pickle.dumps(images))
        told = rf"{tmp_path}, image 4 cannot be read"
    with pytest.raises(ValueError, match=told):
        list(read(name, tmp_path))


def test_each_call_gives_an_object_of_its_own(tmp_path):
    fewshot_inputs.mini_imagenet(tmp_path)
    one, other = (read("mini-imagenet", tmp_path) for _ in range(2))
    one.transform = lambda image: torch.tensor(np.asarray(image)).sum()
    one.targets[0] = 99
    one.classes[0] = "other"
    assert one[1][0].dtype == torch.int64
    assert other.transform is None
    assert other.targets[0] != 99
    assert other.classes == CLASSES["test"]


@pytest.mark.parametrize("name", MAKERS)
def test_other_processes_can_load_it(name, tmp_path):
    MAKERS[name](tmp_path)
    opened = read(name, tmp_path)
    copied = pickle.loads(pickle.dumps(opened))
    opened.transform = np.asarray
    loaded = list(DataLoader(opened, batch_size=None, num_workers=1))
    for (image, target), (pixels, label) in zip(copied, loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert target == label


@pytest.mark.parametrize(
    ("name", "split", "told"),
    [
        ("omniglot", "test", f"dataset must be one of {', '.join(NAMES)}, got 'omniglot'"),
        ("glyphs", "val", "split must be one of train, validation, test, got 'val'"),
    ],
)
def test_an_unknown_name_is_refused(name, split, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        read(name, tmp_path, split)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"root must be a folder, got '.*file'"):
        read("glyphs", tmp_path / "file")
