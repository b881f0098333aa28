import numpy as np
import pytest

from harness.glyphs import CLASSES, FACES, Glyphs


def test_at_least_100_distinct_classes():
    assert len(CLASSES) >= 100
    assert len(set(CLASSES)) == len(CLASSES)
    assert len(set(FACES)) == len(FACES) >= 10


def test_the_same_seed_gives_the_same_bits():
    one, same, other = (Glyphs(samples=150, size=24, seed=seed) for seed in (3, 3, 4))
    assert one.images.tobytes() == same.images.tobytes()
    assert one.masks.tobytes() == same.masks.tobytes()
    assert one.targets == same.targets
    assert one.images.tobytes() != other.images.tobytes()


def test_more_samples_begin_with_the_same_ones():
    assert (Glyphs(samples=5).images == Glyphs(samples=9).images[:5]).all()


def test_the_splits_have_no_image_in_common():
    images = [
        i.tobytes() for split in ("train", "validation", "test") for i in Glyphs(split, 200).images
    ]
    assert len(set(images)) == 600


@pytest.mark.parametrize("size", [8, 32, 61])
def test_the_mask_is_where_the_character_is(size):
    """Off the mask a pixel is the photograph's; on it, one colour that stands out."""
    data = Glyphs(samples=100, size=size, seed=1)
    assert data.images.shape == (100, size, size, 3)
    assert data.masks.shape == (100, size, size)
    contrasts = []
    for image, mask in zip(data.images.astype(float), data.masks, strict=True):
        assert 0 < (mask > 0).mean() < 0.75
        solid = image[mask == 255]
        if len(solid):
            assert np.ptp(solid, axis=0).max() <= 1
            around = image[mask == 0].mean(axis=0)
            contrasts.append(np.abs(solid[0] - around).max())
    assert np.median(contrasts) > 60


def test_every_class_comes_equally_often():
    assert (
        np.unique(Glyphs(samples=300, size=8).targets, return_counts=True)[1].tolist() == [3] * 100
    )


def test_an_item_is_a_picture_and_its_class():
    data = Glyphs(samples=3, size=16)
    image, target = data[2]
    assert image.size == (16, 16)
    assert image.mode == "RGB"
    assert target == 2


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"split": "val"}, "split must be one of train, validation, test, got 'val'"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"size": 4}, "size must be at least 8 pixels, got 4"),
    ],
)
def test_bad_input(kwargs, text):
    with pytest.raises(ValueError, match=text):
        Glyphs(**kwargs)


def test_takes_the_first_so_many_classes():
    few = Glyphs("train", 12, 16, seed=3, classes=4)
    assert few.classes == list(CLASSES[:4])
    assert few.targets == [0, 1, 2, 3] * 3
    # An image is drawn by its place in the split: the first four are those of all classes.
    np.testing.assert_array_equal(few.images[:4], Glyphs("train", 4, 16, seed=3).images)


@pytest.mark.parametrize("classes", [1, 101])
def test_a_number_of_classes_that_there_is_not_is_refused(classes):
    with pytest.raises(ValueError, match=rf"classes must be in \[2, 100\], got {classes}"):
        Glyphs("train", 4, 16, classes=classes)


def test_takes_the_characters_that_are_named():
    some = Glyphs("train", 6, 16, seed=3, classes=("Б", "A", "7"))
    assert some.classes == ["Б", "A", "7"]
    assert some.targets == [0, 1, 2] * 2
    named = Glyphs("train", 6, 16, seed=3, classes=CLASSES[:4])
    np.testing.assert_array_equal(named.images, Glyphs("train", 6, 16, seed=3, classes=4).images)
    assert (some.images != named.images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("classes", [("A",), ("A", "B", "A"), ("A", "0")])
def test_characters_that_are_no_two_different_glyphs_are_refused(classes):
    with pytest.raises(ValueError, match="classes must be two or more different glyphs, got"):
        Glyphs("train", 4, 16, classes=classes)
