import warnings

import torch
from torch.utils.data import TensorDataset


def test_learn2learn_is_built_and_imports():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gym's, which it imports
        import learn2learn
        from learn2learn.data import MetaDataset

    assert learn2learn.__version__ == "0.2.0"
    data = MetaDataset(TensorDataset(torch.zeros(3), torch.tensor([0, 1, 1])))  # compiled code
    assert data.labels_to_indices[1] == [1, 2]
