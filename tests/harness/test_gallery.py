import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.measures.gallery import save_gallery
from harness.run_config import RunConfig
from harness.train import checkpoint_path, train

CPU = torch.device("cpu")
PEERS = ("mixup", "cutmix", "saliencymix", "puzzlemix", "sage")
TINY = RunConfig(
    "none",
    seed=0,
    data=DataConfig(train_size=100, image_size=16, batch_size=50),
    schedule=ScheduleConfig(epochs=1),
)


def test_shows_one_row_a_pair_and_one_column_a_method(tmp_path):
    sizes = []
    for pairs in (2, 5):
        path = save_gallery(TINY, PEERS, tmp_path, pairs, CPU)
        assert path == tmp_path / "gallery.png"
        with Image.open(path) as picture:
            sizes.append(picture.size)
            pixels = np.asarray(picture.convert("RGB"))
        # Ten columns of cells, each with something in it.
        for cell in np.array_split(pixels[40:], 10, axis=1):
            assert cell.std() > 10
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > 2 * sizes[0][1]


def test_needs_enough_images_before_it_trains(tmp_path):
    with pytest.raises(ValueError, match=r"pairs=101 takes 202 images, the split has 200"):
        save_gallery(TINY, PEERS, tmp_path, 101, CPU)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_a_finished_run_that_is_gone_or_broken_is_named(tmp_path):
    train(TINY, tmp_path, CPU)
    checkpoint = checkpoint_path(TINY, tmp_path)
    checkpoint.write_bytes(b"half of")
    with pytest.raises(ValueError, match=rf"{checkpoint} is broken .*: train in another folder"):
        save_gallery(TINY, PEERS, tmp_path, 2, CPU)
    checkpoint.unlink()
    with pytest.raises(ValueError, match=f"no checkpoint {checkpoint}"):
        save_gallery(TINY, PEERS, tmp_path, 2, CPU)
