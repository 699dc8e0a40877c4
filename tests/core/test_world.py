"""The embedded corpus: exact answers for every region, and nothing of the suites in the pool."""

from __future__ import annotations

import json

import numpy as np
import pytest

from curation.randomness import generator
from curation.world import (
    FILLERS,
    LETTERS,
    SKILLS,
    SUITES,
    World,
    make_world,
    mutate,
    pool_records,
    region_of,
    solve,
    suite_rows,
    write_row,
)

ALL_REGIONS = [
    (skill, *arguments) for skill, (_, all_arguments) in SKILLS.items() for arguments in all_arguments
]


@pytest.fixture(scope="module", params=[0, 5])
def world(request) -> World:
    return make_world(7, request.param)


def records(world: World, rows: int) -> list[dict[str, str]]:
    found = []
    for line in pool_records(world, rows):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("mora tisu replace a c b a d a e", "b c d c e"),
        ("swap a b a b c", "b a c"),
        ("x set 2 h a b c", "a h c"),
        ("mask a a b a", "_ b _"),
        ("fill c a b", "c c"),
        ("reverse a b c", "c b a"),
        ("one two three copy a b", "a b"),
        ("replace a a b", None),
        ("swap b a c", None),
        ("reverse", None),
        ("copy a mora", None),
        ("copy ab", None),
        ("mora tisu a b", None),
        ("copy reverse a b", None),
        ("set 6 a b c d e f", None),
        ("", None),
        ("mask z a", None),
    ],
)
def test_answers(prompt: str, answer: str | None) -> None:
    assert solve(prompt) == answer


def independent_answer(region: tuple[str, ...], letters: list[str]) -> list[str]:
    match region:
        case ("replace", a, b):
            return [b if x == a else x for x in letters]
        case ("swap", a, b):
            return [{a: b, b: a}.get(x, x) for x in letters]
        case ("set", at, c):
            return [c if i == int(at) else x for i, x in enumerate(letters, start=1)]
        case ("mask", c):
            return ["_" if x == c else x for x in letters]
        case ("fill", c):
            return [c for _ in letters]
        case ("reverse",):
            return letters[::-1]
        case _:
            return letters


def test_every_region_makes_rows_that_the_verifier_confirms() -> None:
    rng = generator(1, "round trip")
    for region in ALL_REGIONS:
        for _ in range(3):
            prompt, answer = write_row(rng, region)
            words = prompt.split()
            assert solve(prompt) == answer
            assert region_of(prompt) == region
            assert answer.split() == independent_answer(region, words[-5:])
            assert all(w in FILLERS for w in words[:2])
            if region[0] in ("replace", "swap", "mask"):
                assert region[1] in words[-5:]


def test_fillers_letters_and_skills_are_different_words() -> None:
    assert len(set(FILLERS)) == 200
    assert not set(FILLERS) & (set(SKILLS) | set(LETTERS))


def test_regions_of_a_world_are_split_without_overlap(world: World) -> None:
    parts = [set(world.seen), set(world.held_out), set(world.sealed)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(ALL_REGIONS)
    assert set().union(*parts) == set(ALL_REGIONS)
    assert all(parts)
    assert {r[0] for r in world.seen} == set(SKILLS)  # every skill is in the pool
    assert world.probability.sum() == pytest.approx(1)
    assert len(world.probability) == len(world.seen)
    assert len(world.sealed) / len(world.held_out + world.sealed) == pytest.approx(0.3, abs=0.02)


def test_worlds_differ_and_are_the_same_every_time(world: World) -> None:
    again, other = make_world(7, world.index), make_world(8, world.index)
    assert (again.seen, again.held_out, again.sealed) == (world.seen, world.held_out, world.sealed)
    assert np.array_equal(again.probability, world.probability)
    assert other.held_out != world.held_out
    assert pool_records(world, 30) == pool_records(again, 30)
    assert pool_records(world, 30) != pool_records(other, 30)
    assert pool_records(world, 30) == pool_records(world, 60)[: len(pool_records(world, 30))]


def test_the_pool_has_seen_regions_only(world: World) -> None:
    away = set(world.held_out) | set(world.sealed)
    regions = [region_of(r["prompt"]) for r in records(world, 1500)]
    assert None not in regions
    assert not away & set(regions)
    top = max(set(regions), key=regions.count)
    share = world.probability[world.seen.index(top)]
    assert regions.count(top) / len(regions) == pytest.approx(
        share, abs=4 * np.sqrt(share * (1 - share) / 1500) + 0.02
    )


def test_the_pool_has_the_stated_dirt(world: World) -> None:
    n = 4000
    lines = pool_records(world, n)
    found = records(world, n)
    empty = sum(not r["response"] for r in found)
    wrong = sum(bool(r["response"]) and solve(r["prompt"]) != r["response"] for r in found)
    copies = len(lines) - len(set(lines))
    for count, share in (
        (len(lines) - len(found), 0.01),
        (empty, 0.01),
        (copies, 0.03),
        (len(lines) - n, 0.08),
    ):
        assert count == pytest.approx(share * n, abs=5 * np.sqrt(share * n))
    assert wrong == pytest.approx(0.0212 * n, abs=5 * np.sqrt(0.0212 * n))  # copies of wrong rows are wrong


@pytest.mark.parametrize("suite", SUITES)
def test_suites_hold_what_they_say(world: World, suite: str) -> None:
    items = suite_rows(world, suite, "judge", 1, 300)
    allowed = {"held_out": world.held_out, "sealed": world.sealed}.get(suite, world.seen)
    assert len(items) == 300
    for prompt, response, cluster in items:
        assert solve(prompt) == response
        region = region_of(prompt)
        assert region in allowed
        assert cluster == " ".join(region)
    if suite == "rare":  # uniform over skills
        counts = [sum(c.split()[0] == s for _, _, c in items) for s in SKILLS]
        assert max(counts) < 2.5 * min(counts)


@pytest.mark.parametrize("suite", SUITES)
def test_uses_and_rounds_share_items_by_chance_only(world: World, suite: str) -> None:
    uses = [("steer", 1), ("judge", 1), ("judge", 2), ("sealed", 0)]
    drawn = [{p for p, _, _ in suite_rows(world, suite, use, round, 400)} for use, round in uses]
    assert suite_rows(world, suite, *uses[0], 400) == suite_rows(world, suite, *uses[0], 400)
    pool = {r["prompt"] for r in records(world, 400)}
    for i, a in enumerate([*drawn, pool]):
        for b in [*drawn, pool][i + 1 :]:
            assert len(a & b) <= 4  # the two commonest words with the same letters of the same region


def test_variants_are_verified_and_never_leave_the_pool_s_regions(world: World) -> None:
    rng = generator(2, "variants")
    parents = [p for p, _ in (write_row(rng, r) for r in world.seen)]
    kept = 0
    for prompt in parents * 5:
        made = mutate(world, prompt, rng)
        assert made is not None
        assert solve(made[0]) == made[1]
        assert region_of(made[0]) in world.seen
        assert region_of(made[0])[0] == region_of(prompt)[0]
        kept += region_of(made[0]) == region_of(prompt)
    n = 5 * len(parents)
    assert 0.7 < kept / n < 0.85  # a quarter draws its arguments anew, sometimes the same
    assert mutate(world, "no sentence of the grammar", rng) is None
