"""Candidates of the embedded generator: verified, new, from the pool's regions, and from the parents that are meant."""

from __future__ import annotations

import numpy as np
import pytest

from curation.randomness import generator
from curation.synthesize.generate import MAX_DRAWS, embedded_candidates
from curation.world import make_world, region_of, solve, write_row


@pytest.fixture(scope="module")
def pool():
    world = make_world(3, 1)
    rng = generator(3, "parents")
    regions = [world.seen[i] for i in rng.choice(len(world.seen), 200, p=world.probability)]
    prompts = [write_row(rng, r)[0] for r in regions]
    return world, [*prompts, "this is junk"], [f"r{i}" for i in range(201)]


def test_candidates_are_verified_new_and_of_seen_regions(pool) -> None:
    world, prompts, ids = pool
    made, counts = embedded_candidates(world, prompts, ids, None, 500, 7, "a")
    away = set(world.held_out) | set(world.sealed)
    assert len(made) == len({p for p, _, _ in made}) == 500
    assert not {p for p, _, _ in made} & set(prompts)
    parents = dict(zip(ids, prompts, strict=True))
    for prompt, response, parent in made:
        assert solve(prompt) == response
        assert region_of(prompt) not in away
        assert region_of(prompt) in world.seen
        assert region_of(prompt)[0] == region_of(parents[parent])[0]
    assert counts["refuted"] == 0
    assert counts["no_variant"] > 0  # junk has no variants


def test_the_same_names_give_the_same_candidates(pool) -> None:
    world, prompts, ids = pool
    first = embedded_candidates(world, prompts, ids, None, 40, 7, "a", 1)
    assert first == embedded_candidates(world, prompts, ids, None, 40, 7, "a", 1)
    assert first != embedded_candidates(world, prompts, ids, None, 40, 7, "a", 2)
    assert first != embedded_candidates(world, prompts, ids, None, 40, 8, "a", 1)


def test_parents_are_drawn_by_weight(pool) -> None:
    world, prompts, ids = pool
    weights = np.zeros(len(ids))
    weights[[3, 5]] = 0.75, 0.25
    made, _ = embedded_candidates(world, prompts, ids, weights, 400, 7)
    parents = [parent for _, _, parent in made]
    assert set(parents) == {"r3", "r5"}
    assert parents.count("r3") == pytest.approx(300, abs=5 * np.sqrt(400 * 0.75 * 0.25))


def test_junk_alone_ends_and_says_so(pool) -> None:
    world, _, _ = pool
    made, counts = embedded_candidates(world, ["junk"], ["r0"], None, 3, 7)
    assert made == []
    assert counts == {"no_variant": 3 * MAX_DRAWS, "exists": 0, "refuted": 0}
