"""Model weights as bytes and back, in safetensors: no pickle, and the same bytes for the same tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from curation.errors import DataError


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The tensors as one safetensors file; bytes depend on names, types, shapes and values only."""
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    return save(plain)


def bytes_to_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file, on the CPU, by name; `DataError` when it is none."""
    try:
        return load(data)
    except SafetensorError as error:
        raise DataError(
            f"these {len(data)} bytes are no safetensors file ({error}); nothing was loaded"
        ) from error
