"""Counter-based randomness: every draw is named, so order, shards and machines never change it."""

from __future__ import annotations

import hashlib

import numpy as np


def key_of(seed: int, *purpose: object) -> int:
    """A 63-bit key for one purpose, e.g. `key_of(7, "control", round, replicate)`."""
    text = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A Philox generator for one purpose; the same numbers on every machine and in any order of calls."""
    return np.random.Generator(np.random.Philox(key_of(seed, *purpose)))
