"""Verified candidate rows from the embedded corpus's own generator."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from curation.randomness import generator
from curation.world import World, mutate, solve

MAX_DRAWS = 50


def embedded_candidates(
    world: World,
    prompts: list[str],
    row_ids: list[str],
    weights: np.ndarray | None,
    count: int,
    seed: int,
    *purpose: object,
    known_prompts: Collection[str] = (),
) -> tuple[list[tuple[str, str, str]], dict[str, int]]:
    """`count` new (prompt, response, parent row id), each checked by the exact verifier, and counts by reason.

    Parents are drawn by `weights`, or uniformly (untargeted). Refused: parents that are no sentence of the
    grammar, prompts that exist already, answers that the verifier does not confirm.
    """
    rng = generator(seed, "generate", *purpose)
    known = {*prompts, *known_prompts}
    made: list[tuple[str, str, str]] = []
    counts = {"no_variant": 0, "exists": 0, "refuted": 0}
    for _ in range(MAX_DRAWS * count):
        if len(made) == count:
            break
        parent = (
            int(rng.choice(len(prompts), p=weights))
            if weights is not None
            else int(rng.integers(len(prompts)))
        )
        row = mutate(world, prompts[parent], rng)
        if row is None:
            counts["no_variant"] += 1
        elif row[0] in known:
            counts["exists"] += 1
        elif solve(row[0]) != row[1]:
            counts["refuted"] += 1
        else:
            known.add(row[0])
            made.append((*row, row_ids[parent]))
    return made, counts
