"""The embedded corpus: seeded worlds of small text-to-text skills with exact verifiers.

A row reads `<two filler words> <skill> <arguments> <letters>` and its answer is the rewritten letters, e.g.
`mora tisu replace a c b a d a e` -> `b c d c e`. A *region* is a skill with its arguments. A world
draws its own Zipf law over skills and over each skill's arguments, so that a few regions dominate and many are
rare; a part of the argument combinations never occurs in the pool and makes the out-of-distribution suites
(METHODS: only-if test-beds; measured settings of the embedded corpus).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import numpy as np

from curation.randomness import generator

LETTERS = "abcdefgh"
N_LETTERS_IN_ROW = 5
N_FILLERS_IN_ROW = 2
ZIPF_SKILLS = 1.3
ZIPF_ARGUMENTS = 1.3
ZIPF_FILLERS = 1.0
RESAMPLE = 0.25  # chance that a variant draws its arguments anew
SHARE_HELD_OUT = 0.35
SHARE_SEALED = 0.3  # of the held-out combinations
FILLERS = tuple(
    a + b
    for a, b in itertools.islice(
        itertools.product([c + v for c in "mtkvnlsrp" for v in "aiou"], ["ra", "su", "la", "no", "pe", "mi"]),
        200,
    )
)

Region = tuple[str, ...]


def _replace(x: str, a: str, b: str) -> str:
    return x.replace(a, b)


def _swap(x: str, a: str, b: str) -> str:
    return x.translate(str.maketrans(a + b, b + a))


def _set(x: str, position: str, c: str) -> str:
    i = int(position) - 1
    return x[:i] + c + x[i + 1 :]


def _mask(x: str, c: str) -> str:
    return x.replace(c, "_")


def _fill(x: str, c: str) -> str:
    return c * len(x)


def _reverse(x: str) -> str:
    return x[::-1]


def _copy(x: str) -> str:
    return x


_ORDERED_PAIRS = [(a, b) for a in LETTERS for b in LETTERS if a != b]
SKILLS = {
    "replace": (_replace, _ORDERED_PAIRS),
    "swap": (_swap, [(a, b) for a, b in _ORDERED_PAIRS if a < b]),
    "set": (_set, [(str(p + 1), c) for p in range(N_LETTERS_IN_ROW) for c in LETTERS]),
    "mask": (_mask, [(c,) for c in LETTERS]),
    "fill": (_fill, [(c,) for c in LETTERS]),
    "reverse": (_reverse, [()]),
    "copy": (_copy, [()]),
}


@dataclass(frozen=True)
class World:
    """One world's laws: regions seen in the pool with their probabilities, and the regions never seen."""

    seed: int
    index: int
    seen: tuple[Region, ...]
    probability: np.ndarray
    held_out: tuple[Region, ...]
    sealed: tuple[Region, ...]


def make_world(seed: int, index: int) -> World:
    """World number `index` of the corpus with this seed."""
    rng = generator(seed, "world", index)
    skills = [str(s) for s in rng.permutation(list(SKILLS))]
    seen: list[Region] = []
    weight: list[float] = []
    away: list[Region] = []
    for rank, skill in enumerate(skills, start=1):
        arguments = SKILLS[skill][1]
        order = [arguments[i] for i in rng.permutation(len(arguments))]
        n_away = int(SHARE_HELD_OUT * len(order))
        away += [(skill, *a) for a in order[:n_away]]
        kept = order[n_away:]
        law = np.arange(1, len(kept) + 1) ** -ZIPF_ARGUMENTS
        seen += [(skill, *a) for a in kept]
        weight += list(rank**-ZIPF_SKILLS * law / law.sum())
    order = rng.permutation(len(away))
    n_sealed = int(SHARE_SEALED * len(away))
    sealed = tuple(away[i] for i in order[:n_sealed])
    held_out = tuple(away[i] for i in order[n_sealed:])
    p = np.asarray(weight)
    return World(seed, index, tuple(seen), p / p.sum(), held_out, sealed)


def solve(prompt: str) -> str | None:
    """The exact answer to a prompt, or None when it is not a sentence of the grammar (the verifier)."""
    words = prompt.split()
    skills = [i for i, w in enumerate(words) if w in SKILLS]
    if len(skills) != 1:
        return None
    at = skills[0]
    function, arguments = SKILLS[words[at]]
    n_arguments = len(arguments[0])
    given = tuple(words[at + 1 : at + 1 + n_arguments])
    letters = words[at + 1 + n_arguments :]
    if given not in arguments or not letters or any(w not in LETTERS or len(w) != 1 for w in letters):
        return None
    return " ".join(function("".join(letters), *given))


def region_of(prompt: str) -> Region | None:
    """The region (skill and arguments) of a prompt, or None when it is not a sentence of the grammar."""
    if solve(prompt) is None:
        return None
    words = prompt.split()
    at = next(i for i, w in enumerate(words) if w in SKILLS)
    return tuple(words[at : at + 1 + len(SKILLS[words[at]][1][0])])


def _fillers(rng: np.random.Generator) -> list[str]:
    law = np.arange(1, len(FILLERS) + 1) ** -ZIPF_FILLERS
    return [FILLERS[i] for i in rng.choice(len(FILLERS), N_FILLERS_IN_ROW, p=law / law.sum())]


def _letters(rng: np.random.Generator, region: Region) -> list[str]:
    x = [LETTERS[i] for i in rng.integers(len(LETTERS), size=N_LETTERS_IN_ROW)]
    if region[0] in ("replace", "swap", "mask") and region[1] not in x:
        x[rng.integers(len(x))] = region[1]  # the letter acted upon is there, else the row is a copy
    return x


def write_row(rng: np.random.Generator, region: Region) -> tuple[str, str]:
    """A fresh (prompt, response) of a region: new filler words, new letters."""
    prompt = " ".join([*_fillers(rng), *region, *_letters(rng, region)])
    answer = solve(prompt)
    assert answer is not None
    return prompt, answer


def pool_records(world: World, rows: int) -> list[str]:
    """The world's raw corpus as JSON lines: `rows` clean rows plus duplicates, junk and mislabelled ones.

    Of every 100 clean rows 2 are mislabelled; beside them come 3 exact copies, 3 near-duplicates (one filler
    word changed), 1 empty answer and 1 line that is not JSON.
    """
    rng = generator(world.seed, "pool", world.index)
    lines: list[str] = []
    for k in range(rows):
        prompt, response = write_row(rng, world.seen[rng.choice(len(world.seen), p=world.probability)])
        if rng.random() < 0.02:
            response = " ".join(rng.permutation(list(LETTERS))[:N_LETTERS_IN_ROW])
        lines.append(json.dumps({"prompt": prompt, "response": response}))
        chance = rng.random()
        if chance < 0.03:
            lines.append(lines[-1])
        elif chance < 0.06:
            words = prompt.split()
            words[int(rng.integers(N_FILLERS_IN_ROW))] = FILLERS[int(rng.integers(len(FILLERS)))]
            lines.append(json.dumps({"prompt": " ".join(words), "response": response}))
        elif chance < 0.07:
            lines.append(json.dumps({"prompt": prompt + " " + LETTERS[k % 8], "response": ""}))
        elif chance < 0.08:
            lines.append('{"prompt": "' + prompt)
    return lines


SUITES = {"id": "id", "rare": "ood", "held_out": "ood", "sealed": "ood"}


def suite_rows(world: World, suite: str, use: str, round: int, items: int) -> list[tuple[str, str, str]]:
    """Items of a suite as (prompt, response, cluster): fresh ones for every use and round; cluster = region."""
    rng = generator(world.seed, "suite", world.index, suite, use, round)
    drawn: list[Region]
    if suite == "id":
        drawn = [world.seen[i] for i in rng.choice(len(world.seen), items, p=world.probability)]
    elif suite == "rare":  # uniform over skills, then over the seen arguments
        by_skill = {s: [r for r in world.seen if r[0] == s] for s in SKILLS}
        drawn = []
        for _ in range(items):
            regions = by_skill[str(rng.choice(list(SKILLS)))]
            drawn.append(regions[rng.integers(len(regions))])
    else:
        regions = list(world.held_out if suite == "held_out" else world.sealed)
        drawn = [regions[i] for i in rng.integers(len(regions), size=items)]
    return [(*write_row(rng, r), " ".join(r)) for r in drawn]


def mutate(world: World, prompt: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A verified variant of a pool row: fresh letters, arguments kept or (a quarter of the time) drawn anew.

    Argument combinations held out of the pool are never drawn: the generator knows the grammar of the pool,
    not the suites. None when the row is not a sentence of the grammar (junk has no variants).
    """
    region = region_of(prompt)
    if region is None:
        return None
    if rng.random() < RESAMPLE:
        same_skill = [r for r in world.seen if r[0] == region[0]]
        region = same_skill[rng.integers(len(same_skill))]
    return write_row(rng, region)
