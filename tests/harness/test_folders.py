"""Folders as people have them: what is a split, a class and an image, and what is refused."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from torch.utils.data import DataLoader

import harness.check
from harness.check import check_folder, describe, same_images
from harness.commands import Check
from harness.config import DataConfig
from harness.data import fingerprint, load_splits
from harness.folders import (
    FolderImages,
    as_mode,
    find_split,
    image_extensions,
    natural_order,
    open_tar,
    read_folder,
    read_image,
)
from harness.loader import make_loader

ROOT = Path(__file__).parents[2]
PLAIN = {"interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}


def picture(path, seed=0, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng([seed, *map(ord, str(path))]).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Two splits of three classes, 4 and 2 images each."""
    for split, count in (("train", 4), ("validation", 2)):
        for name, index in itertools.product(("ant", "bee", "cat"), range(count)):
            picture(tmp_path / split / name / f"{index}.png")
    return tmp_path


def config(root, **changes):
    return DataConfig("folder", str(root), image_size=16, batch_size=6, **changes)


def sizes(splits):
    return len(splits.train), len(splits.validation)


class TestClasses:
    def test_images_lie_at_any_depth_of_their_class(self, root):
        for split in ("train", "validation"):
            picture(root / split / "bee" / "monday" / "morning" / "9.png")
        splits = load_splits(config(root), seed=0)
        assert splits.classes == ["ant", "bee", "cat"]
        assert sizes(splits) == (13, 7)
        assert splits.train.targets.count(1) == 5

    def test_hidden_names_are_not_there(self, root):
        before = load_splits(config(root), seed=0).train.files
        for place in ("train/.ipynb_checkpoints", "train/ant/.ipynb_checkpoints"):
            picture(root / place / "0-checkpoint.png")
        picture(root / "train" / "ant" / "._0.png")
        (root / "train" / ".DS_Store").touch()
        splits = load_splits(config(root), seed=0)
        assert splits.classes == ["ant", "bee", "cat"]
        assert splits.train.files == before
        assert splits.notes == []

    def test_stray_files_are_named_and_make_no_class(self, root, capsys):
        picture(root / "train" / "group photo.png")
        (root / "validation" / "ant" / "notes.txt").write_text("ants")
        splits = load_splits(config(root), seed=0)
        assert splits.classes == ["ant", "bee", "cat"]
        assert splits.notes == [
            "1 files of 'train' are no image of a class: group photo.png",
            "1 files of 'validation' are no image of a class: ant/notes.txt",
        ]
        assert "group photo.png" in capsys.readouterr().err

    def test_every_format_that_pillow_reads_is_an_image(self, root):
        formats = ["bmp", "gif", "jpg", "ppm", "tif", "tga"]
        formats += ["webp"] * features.check("webp")
        for split, extension in itertools.product(("train", "validation"), formats):
            picture(root / split / "dog" / f"a.{extension.upper()}")
        splits = load_splits(config(root), seed=0)
        assert splits.classes == ["ant", "bee", "cat", "dog"]
        assert splits.train.targets.count(3) == len(formats)
        assert not {".txt", ".mpg", ".h5", ".pdf"} & image_extensions()

    @given(st.lists(st.text("aAbB01²٣é_", min_size=1, max_size=4), unique=True, min_size=2))
    def test_the_order_of_names_is_total(self, names):
        for name, following in itertools.pairwise(sorted(names, key=natural_order)):
            assert natural_order(name) < natural_order(following)

    def test_numbers_are_ordered_by_their_value(self):
        assert sorted(["b10", "b9", "B1", "a2"], key=natural_order) == ["a2", "B1", "b9", "b10"]

    def test_classes_do_not_follow_the_hash_seed(self, tmp_path):
        for split, name in itertools.product(("train", "val"), ("A", "a", "B", "b")):
            picture(tmp_path / split / name / "0.png")
        program = (
            "from harness.data import DataConfig, fingerprint, load_splits\n"
            f"config = DataConfig('folder', {str(tmp_path)!r})\n"
            "print(load_splits(config, 0).classes, fingerprint(config))"
        )
        said = set()
        for seed in ("0", "1"):
            call = [sys.executable, "-c", program]
            environment = os.environ | {"PYTHONHASHSEED": seed}
            said.add(subprocess.check_output(call, cwd=ROOT, env=environment, text=True))
        assert len(said) == 1
        assert "['A', 'a', 'B', 'b']" in said.pop()

    @pytest.mark.parametrize(("has", "lacks"), [("train", "validation"), ("validation", "train")])
    def test_a_class_that_one_split_lacks_is_named(self, root, has, lacks):
        shutil.rmtree(root / lacks / "bee")
        told = f"{root / has} has classes that {root / lacks} lacks: bee"
        with pytest.raises(ValueError, match=told):
            load_splits(config(root), seed=0)

    def test_a_class_without_images_is_named_with_its_folder(self, root):
        for file in (root / "train" / "bee").iterdir():
            file.unlink()
        told = f"class 'bee' has no images in {root / 'train' / 'bee'}"
        with pytest.raises(ValueError, match=told):
            load_splits(config(root), seed=0)

    def test_a_class_with_too_few_images_is_named(self, root):
        (root / "train" / "cat" / "3.png").unlink()
        told = f"takes 4 images of each class, but class 'cat' of split 'train' in {root} has 3"
        with pytest.raises(ValueError, match=told):
            load_splits(config(root, train_size=12), seed=0)

    def test_one_class_is_refused(self, root):
        for split, name in itertools.product(("train", "validation"), ("bee", "cat")):
            shutil.rmtree(root / split / name)
        with pytest.raises(ValueError, match="has one class to train on, 'ant'"):
            load_splits(config(root), seed=0)

    def test_names_that_are_no_utf8_can_be_written_down(self, root):
        for split in ("train", "validation"):
            picture(root / split / "dog" / "0.png")
            os.rename(root / split / "dog", os.fsencode(root / split) + b"/caf\xe9")
        assert load_splits(config(root), seed=0).classes[2].encode() == b"caf\\xe9"

    def test_accents_are_the_same_however_they_are_written(self, root):
        picture(root / "train" / "caf\N{LATIN SMALL LETTER E WITH ACUTE}" / "0.png")
        picture(root / "validation" / "cafe\N{COMBINING ACUTE ACCENT}" / "0.png")
        assert len(load_splits(config(root), seed=0).classes) == 4

    def test_a_link_to_the_folder_above_is_not_followed_for_ever(self, root):
        (root / "train" / "ant" / "loop").symlink_to(root / "train")
        assert len(load_splits(config(root), seed=0).train) == 12


class TestSplits:
    @pytest.mark.parametrize("name", ["val", "valid", "test", "Val"])
    def test_validation_is_found_by_its_other_names(self, root, name):
        (root / "validation").rename(root / name)
        splits = load_splits(config(root), seed=0)
        assert sizes(splits) == (12, 6)
        assert splits.notes == [f"measured on the folder {name!r}"]

    def test_more_than_one_candidate_has_to_be_chosen(self, root):
        shutil.copytree(root / "validation", root / "test")
        assert sizes(load_splits(config(root, val_split="test"), seed=0)) == (12, 6)
        (root / "validation").rename(root / "val")
        with pytest.raises(ValueError, match="more than one that may stand for it: test, val"):
            load_splits(config(root), seed=0)

    def test_the_root_is_no_split(self, root):
        for folder in (root, root / "train"):
            shutil.rmtree(root / "validation", ignore_errors=True)
            with pytest.raises(ValueError, match=r"no folder (validation or|train for)"):
                load_splits(config(folder), seed=0)

    def test_a_split_that_was_asked_for_by_another_name_must_be_there(self, root):
        with pytest.raises(ValueError, match=r"no folder nosuch for .* has train, validation"):
            load_splits(config(root, val_split="nosuch"), seed=0)

    def test_one_folder_cannot_be_both_splits(self, root):
        (root / "test").symlink_to(root / "train")
        for name in ("train", "test"):
            with pytest.raises(ValueError, match="measure on images that were not trained on"):
                load_splits(config(root, val_split=name), seed=0)

    def test_a_linked_image_cannot_be_in_both(self, root):
        (root / "validation" / "ant" / "9.png").symlink_to(root / "train" / "ant" / "3.png")
        with pytest.raises(ValueError, match=r"validation/ant/9.png is .*train/ant/3.png"):
            load_splits(config(root), seed=0)

    def test_the_same_images_in_both_are_counted(self, root):
        shutil.copy(root / "train" / "ant" / "3.png", root / "validation" / "ant" / "9.png")
        shutil.copy(root / "train" / "ant" / "3.png", root / "validation" / "bee" / "8.png")
        (note,) = load_splits(config(root), seed=0).notes[:1]
        told = "2 of 8 images of 'validation' are in 'train' too: ant/9.png, bee/8.png"
        assert note == told

    @given(st.lists(st.binary(max_size=3), max_size=8), st.lists(st.binary(max_size=3), max_size=8))
    def test_the_same_images_are_those_with_the_same_bytes(self, tmp_path_factory, one, other):
        root = tmp_path_factory.mktemp("same")
        folders = []
        for name, contents in (("one", one), ("other", other)):
            for index, content in enumerate([*contents, name.encode()]):
                file = root / name / "class" / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(5000 * b"-" + content)
            folders.append(read_folder(root / name))
        found = [int(file.stem) for file in same_images(*folders)]
        assert found == [index for index, content in enumerate(other) if content in one]

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere': there is no such folder"):
            find_split(tmp_path / "nowhere", "train")

    @pytest.mark.parametrize(
        ("name", "meant"),
        [("cifar10", "torch/cifar10"), ("foldr", "folder"), ("torch/mnst", "torch/mnist")],
    )
    def test_a_name_that_is_not_known_is_refused_with_the_nearest(self, root, name, meant):
        with pytest.raises(ValueError, match=rf"got '{name}': did you mean '{meant}'\?"):
            load_splits(DataConfig(name, str(root)), seed=0)

    def test_tar_files_have_the_classes_of_their_folders(self, root):
        picture(root / "train" / "bee" / "monday" / "9.png")
        picture(root / "train" / ".hidden" / "9.png")
        folder = read_folder(root / "train")
        for packed in (root / "train", root):
            subprocess.check_call(
                [
                    "tar",
                    "cf",
                    root / "train.tar",
                    "-C",
                    packed,
                    *(["."] if packed != root else ["train"]),
                ]
            )
            opened = open_tar(root, "train")
            counts = [opened.reader.targets.count(target) for target in range(3)]
            assert counts == [folder.targets.count(target) for target in range(3)] == [4, 5, 4]
            image, target = opened[0]
            assert (image.size, target) == ((20, 20), 0)
        with pytest.raises(ValueError, match=r"has no validation.tar"):
            load_splits(DataConfig("tar", str(root)), seed=0)


class TestGeometry:
    @pytest.mark.parametrize("size", [(40, 120), (120, 40)])
    @pytest.mark.parametrize("mode", ["squash", "center", "border"])
    def test_training_and_validation_show_the_same_part(self, tmp_path, size, mode):
        """A bright bar at the end of the longer side, in training without flips and padding."""
        for split in ("train", "validation"):
            for index, name in enumerate(("one", "two")):
                image = np.zeros((size[1], size[0], 3), np.uint8)
                end = image[-30:] if size[1] > size[0] else image[:, -30:]
                end[:] = 255 - index
                path = tmp_path / split / name / "0.png"
                path.parent.mkdir(parents=True)
                Image.fromarray(image).save(path)
        settings = DataConfig("folder", str(tmp_path), image_size=32, batch_size=2, crop_mode=mode)
        splits = load_splits(settings, seed=0)
        ((validation, _),) = make_loader(
            settings, splits.validation, PLAIN, torch.device("cpu"), None
        )
        seen = (validation > 0.9).any()
        assert seen == (mode != "center")
        shares = []
        for seed in range(8):
            torch.manual_seed(seed)
            loader = make_loader(settings, splits.train, PLAIN, torch.device("cpu"), 0.0)
            for images, _ in loader:
                shares += (images > 0.9).flatten(1).any(1).tolist()
        assert np.mean(shares) == (1.0 if seen else 0.0)

    def test_a_square_image_of_the_right_size_is_shown_as_it_is(self, root):
        settings = config(root)
        splits = load_splits(settings, seed=0)
        for file in splits.validation.files:
            picture(file, seed=1, size=(16, 16))
        loader = make_loader(settings, splits.validation, PLAIN, torch.device("cpu"), None)
        images = torch.cat([images for images, _ in loader])
        read = [np.asarray(Image.open(file)) for file in splits.validation.files]
        expected = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(images, expected)


class TestPixels:
    def test_sixteen_bits_are_scaled(self):
        values = np.array([[0, 257, 32768, 65535]], np.uint16)
        read = np.asarray(as_mode(Image.fromarray(values), "L"))
        assert read.tolist() == [[0, 1, 128, 255]]

    def test_sixteen_bits_of_a_file_look_like_eight(self, tmp_path):
        eight = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
        for extension in ("png", "tif"):
            Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / f"a.{extension}")
            read = np.asarray(read_image(tmp_path / f"a.{extension}", "RGB"))
            assert (read == eight[..., None]).all()

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_pixels_of_no_known_range_are_refused_by_name(self, root, dtype):
        path = root / "train" / "ant" / "deep.tif"
        Image.fromarray(np.ones((8, 8), dtype)).save(path)
        with pytest.raises(ValueError, match=f"{path} has pixels of mode"):
            load_splits(config(root), seed=0)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
    def test_every_mode_becomes_the_one_that_is_asked_for(self, root, mode, channels):
        extension = "tif" if mode == "CMYK" else "png"
        for split in ("train", "validation"):
            picture(root / split / "ant" / f"other.{extension}", mode=mode)
        settings = config(root, in_chans=channels)
        model_config = PLAIN | {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        splits = load_splits(settings, seed=0)
        for dataset, hflip in ((splits.train, 0.5), (splits.validation, None)):
            loader = make_loader(settings, dataset, model_config, torch.device("cpu"), hflip)
            for images, _ in loader:
                assert images.shape[1:] == (channels, 16, 16)

    def test_of_many_images_the_right_one_is_named(self, root, monkeypatch):
        monkeypatch.setattr(harness.check, "_HEADERS_AT_MOST", 6)  # every second file of twelve
        path = root / "train" / "bee" / "2.tif"
        (root / "train" / "bee" / "2.png").unlink()
        Image.fromarray(np.ones((8, 8), np.float32)).save(path)
        with pytest.raises(ValueError, match=f"{path} has pixels of mode 'F'"):
            load_splits(config(root), seed=0)

    def test_an_orientation_is_counted_and_not_applied(self, root):
        path = root / "train" / "ant" / "turned.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (20, 10)).save(path, exif=exif)
        splits = load_splits(config(root), seed=0)
        assert "1 images of 'train' have an EXIF orientation" in splits.notes[0]
        assert read_image(path, "RGB").size == (20, 10)


class TestBrokenImages:
    @pytest.fixture
    def broken(self, root):
        for split in ("train", "validation"):
            file = picture(root / split / "ant" / "1.jpg", size=(64, 64))
            file.write_bytes(file.read_bytes()[:-300])
        return root

    def test_one_in_validation_is_refused_before_training(self, broken):
        with pytest.raises(
            ValueError, match=r"validation/ant/1.jpg cannot be read: no whole image"
        ):
            load_splits(config(broken), seed=0)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_one_in_training_is_replaced_named_and_counted(self, broken, workers, capfd):
        (broken / "validation" / "ant" / "1.jpg").unlink()
        splits = load_splits(config(broken, train_size=12), seed=0)
        splits.train.transform = np.asarray
        for _ in range(2):
            batches = list(DataLoader(splits.train, batch_size=None, num_workers=workers))
            assert len(batches) == 12
        tried = any("ant/1.jpg" in str(splits.train.dataset.files[i]) for i in splits.train.indices)
        assert splits.broken == tried
        assert capfd.readouterr().err.count("1.jpg cannot be read") == tried

    def test_a_folder_of_nothing_else_ends(self, tmp_path):
        (tmp_path / "ant").mkdir()
        (tmp_path / "ant" / "0.png").write_bytes(b"no picture")
        images = FolderImages(read_folder(tmp_path), "RGB", replace=True)
        with pytest.raises(ValueError, match="none of 1 images can be read"):
            images[0]


class TestCheck:
    def test_says_what_a_folder_holds(self, root, capsys):
        picture(root / "train" / "bee" / "wide.jpg", size=(40, 10))
        (root / "train" / "bee" / "list.txt").touch()
        (root / "train" / ".hidden").touch()
        Check(root)()
        said = capsys.readouterr().out
        assert "| bee | 5 | 2 |" in said
        assert "| **all** | 13 | 6 |" in said
        assert "| train | 20 to 40 | 10 to 20 | 8 | 12 PNG, 1 JPEG | 13 RGB | 1 .txt | 1 |" in said
        assert "1 remarks" in said

    def test_is_what_the_commands_check(self, root):
        shutil.rmtree(root / "validation" / "cat")
        refused = []
        for call in (Check(root), lambda: load_splits(config(root), 0)):
            with pytest.raises(ValueError, match="lacks: cat") as error:
                call()
            refused.append(str(error.value))
        with pytest.raises(ValueError, match="lacks: cat"):
            fingerprint(config(root))
        assert refused[0] == refused[1]

    def test_opens_each_image_once_and_those_to_measure_on_once_more(self, root, monkeypatch):
        opened = []
        read = Image.open
        monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or read(file))
        checked = check_folder(root, "train", "validation", "RGB")
        describe([checked.train, checked.validation])
        assert check_folder(root, "train", "validation", "RGB") is checked
        assert sorted(opened) == sorted(checked.train.files + 2 * checked.validation.files)

    def test_describes_copies(self, root):
        shutil.copy(root / "train" / "ant" / "0.png", root / "train" / "cat" / "7.png")
        checked = check_folder(root, "train", "validation", "RGB")
        assert checked.notes == ["1 images of 'train' are copies of others: cat/7.png"]
        assert "| cat | 5 | 2 |" in describe([checked.train, checked.validation])
