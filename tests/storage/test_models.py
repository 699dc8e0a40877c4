"""Weights: the same bytes for the same tensors, and never a pickle."""

import pickle

import pytest
import torch

from curation.errors import DataError
from storage.models import bytes_to_tensors, tensors_to_bytes


def test_round_trip_and_equal_bytes() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {"b": base.T, "a": torch.tensor([1, 2]), "half": base.half(), "shared": base, "again": base}
    data = tensors_to_bytes(tensors)
    back = bytes_to_tensors(data)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) and back[k].dtype == tensors[k].dtype for k in tensors)
    assert data == tensors_to_bytes(dict(reversed(tensors.items()))) == tensors_to_bytes(back)


def test_a_pickle_is_refused() -> None:
    with pytest.raises(DataError, match="nothing was loaded"):
        bytes_to_tensors(pickle.dumps({"a": 1}))
