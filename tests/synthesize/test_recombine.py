"""Recombination: known answers, properties, cost, and precision on SCAN by an interpreter of its own."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from curation.synthesize import recombine
from curation.synthesize.recombine import find_exchanges, generate

COPIES = Path(__file__).parents[2].parent / "shared" / "data" / "corpora"
ACTIONS = {"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP"}
TURNS = {"left": "I_TURN_LEFT", "right": "I_TURN_RIGHT"}


def frame(*pairs: tuple[str, str]) -> pl.DataFrame:
    columns = list(zip(*[(f"r{n}", *pair) for n, pair in enumerate(pairs)], strict=True)) or [(), (), ()]
    schema = {"row_id": pl.String, "prompt": pl.String, "response": pl.String}
    return pl.DataFrame(dict(zip(schema, map(list, columns), strict=True)), schema=schema)


def names(exchanges) -> set[str]:
    return {f"{e.leaves}→{e.enters}" for e in exchanges}


def scan_sentence(words: list[str]) -> list[str]:
    """The actions of a SCAN command (Lake and Baroni 2018, figure 6); ValueError when it has no reading."""
    for joint in ("and", "after"):
        if words.count("and") + words.count("after") == 1 and joint in words:
            at = words.index(joint)
            first, second = scan_repeated(words[:at]), scan_repeated(words[at + 1 :])
            return first + second if joint == "and" else second + first
    return scan_repeated(words)


def scan_repeated(words: list[str]) -> list[str]:
    times = {"twice": 2, "thrice": 3}.get(words[-1] if words else "", 0)
    return scan_verb(words[:-1]) * times if times else scan_verb(words)


def scan_verb(words: list[str]) -> list[str]:
    match words:
        case [verb] if verb in ACTIONS:
            return [ACTIONS[verb]]
        case [verb, *manner, side] if side in TURNS and (verb in ACTIONS or verb == "turn"):
            turn, action = [TURNS[side]], [ACTIONS[verb]] if verb in ACTIONS else []
            if manner in ([], ["opposite"], ["around"]):
                return {"": turn + action, "opposite": turn * 2 + action, "around": (turn + action) * 4}[
                    " ".join(manner)
                ]
    raise ValueError(f"not a SCAN command: {words}")


TOY = [
    (command, " ".join(scan_sentence(command.split(" "))))
    for verb in ("walk", "look", "run")
    for command in (
        verb,
        f"{verb} twice",
        f"{verb} thrice",
        f"{verb} and walk",
        f"look after {verb}",
        f"{verb} left",
        f"{verb} opposite right twice",
    )
]
JUMP = ("jump", "I_JUMP")


def test_known_answer() -> None:
    made = generate(frame(*TOY, JUMP), 7, 1000)
    verbs = ("walk", "look", "run")
    assert names(made.search.accepted) == {f"{a}→{b}" for a in verbs for b in (*verbs, "jump") if a != b}
    produced = {c.prompt: c.response for c in made.candidates}
    assert produced["jump twice"] == "I_JUMP I_JUMP"
    assert produced["look after jump"] == "I_JUMP I_LOOK"
    assert produced["jump opposite right twice"] == "I_TURN_RIGHT I_TURN_RIGHT I_JUMP" + (
        " I_TURN_RIGHT I_TURN_RIGHT I_JUMP"
    )
    assert all(response.split() == scan_sentence(prompt.split()) for prompt, response in produced.items())
    assert made.exhausted and len(made.candidates) == made.counts["made"] < 1000


def test_every_occurrence_is_exchanged() -> None:
    pairs = [("walk", "W"), JUMP, ("run", "R"), ("walk and walk", "W W"), ("run and run", "R R")]
    produced = {c.prompt: c.response for c in generate(frame(*pairs), 7, 99).candidates}
    assert produced == {"jump and jump": "I_JUMP I_JUMP"}


def test_parents_are_the_changed_row_and_a_row_with_the_entering_fragment() -> None:
    rows = frame(*TOY, JUMP)
    prompts = dict(rows.select("row_id", "prompt").iter_rows())
    for made in generate(rows, 7, 99).candidates:
        leaves, enters = made.exchange.split("→")
        changed, witness = made.parents
        assert prompts[changed].replace(leaves, enters) == made.prompt
        assert enters in prompts[witness].split(" ")


def test_two_word_fragments() -> None:
    places = ("new york", "oslo", "lima")
    codes = {"new york": "NYC", "oslo": "OSL", "lima": "LIM"}
    pairs = [(f"fly to {p}", f"GO {codes[p]}") for p in places]
    pairs += [(f"drive to {p} now", f"CAR {codes[p]} NOW") for p in places[1:]]
    produced = {c.prompt: c.response for c in generate(frame(*pairs), 7, 99).candidates}
    assert produced == {"drive to new york now": "CAR NYC NOW"}


def test_a_contradiction_refuses_the_exchange() -> None:
    pairs = [*TOY, ("leap", "I_LEAP"), ("leap twice", "I_LEAP"), ("leap thrice", "I_LEAP I_LEAP I_LEAP")]
    search = find_exchanges(frame(*pairs))
    refused = {f"{e.leaves}→{e.enters}": e for e in search.refused}
    assert "run→leap" in refused and refused["run→leap"].contradictions == 1
    assert refused["run→leap"].support == 2
    assert not any(e.enters == "leap" for e in search.accepted)


def test_a_word_must_occur_exactly_with_its_fragment() -> None:
    pairs = [*TOY, JUMP, ("hop", "I_JUMP")]
    assert not any(e.enters == "jump" for e in find_exchanges(frame(*pairs)).accepted)


def test_one_environment_is_too_thin_for_the_leaving_fragment() -> None:
    pairs = [
        ("capital of france ?", "Paris"),
        ("capital of chad ?", "Ndjamena"),
        ("town in france ?", "Paris now"),
    ]
    rows = frame(*pairs)
    assert names(find_exchanges(rows).refused) == {"france→chad"}
    assert names(find_exchanges(rows, min_environments=1).accepted) == {"france→chad"}
    assert generate(rows, 7, 9).candidates == []


def test_reasons_are_counted() -> None:
    made = generate(frame(*TOY, JUMP, ("hello", "hi")), 7, 1000, known_prompts={"jump twice"})
    assert "jump twice" not in {c.prompt for c in made.candidates}
    assert made.counts["no_exchange"] == 2  # jump itself is one row, so it never leaves; and hello
    assert made.counts["exists"] > 0 and made.counts["repeated"] > 0
    pairs = [("a x", "A X"), ("b x", "B X"), ("a y", "A Y"), ("b y", "wrong B"), ("a z", "A Z")]
    counts = generate(frame(*pairs), 7, 99).counts
    assert counts["contradicted"] == 5 and counts["made"] == 0


def test_weights_and_fragment_weights_steer() -> None:
    rows = frame(*TOY, JUMP)
    only_jump = generate(rows, 7, 99, fragment_weights={"walk": 0, "look": 0, "run": 0})
    assert {c.exchange.split("→")[1] for c in only_jump.candidates} == {"jump"}
    one = [float(prompt == "run thrice") for prompt in rows["prompt"]]
    assert [c.prompt for c in generate(rows, 7, 99, weights=one).candidates] == ["jump thrice"]
    firsts = [
        generate(rows, seed, 1, fragment_weights={"jump": 50}).candidates[0].exchange for seed in range(40)
    ]
    assert sum(name.endswith("jump") for name in firsts) >= 30


@pytest.mark.parametrize("weights", [[1.0], [-1.0] * 22, [float("nan")] * 22])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="22 finite numbers"):
        generate(frame(*TOY, JUMP), 7, 1, weights=weights)


def test_empty_and_label_only_rows() -> None:
    assert generate(frame(), 7, 5).candidates == []
    assert generate(frame(("a text", ""), ("", "alone")), 7, 5).exhausted


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_order_of_rows_never_matters(data: st.DataObject) -> None:
    rows = frame(*TOY, JUMP)
    order = data.draw(st.permutations(range(rows.height)))
    weights = [1.0 + n for n in range(rows.height)]
    seed, count = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 30))
    shuffled = generate(rows[order], seed, count, weights=[weights[n] for n in order])
    assert shuffled == generate(rows, seed, count, weights=weights)


WORDS = st.sampled_from(["a", "b", "c", "d", "e"])
ROW = st.tuples(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, min_size=1, max_size=4))


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, max_size=25), st.integers(0, 9))
def test_candidates_are_new_distinct_and_never_unchanged(pairs, seed: int) -> None:
    rows = frame(*[(" ".join(prompt), " ".join(response)) for prompt, response in pairs])
    made = generate(rows, seed, 20)
    prompts = [c.prompt for c in made.candidates]
    assert len(prompts) == len(set(prompts)) and set(prompts).isdisjoint(rows["prompt"])
    responses = dict(rows.select("row_id", "response").iter_rows())
    assert all(c.response != responses[c.parents[0]] for c in made.candidates)
    assert all(e.contradictions == 0 for e in made.search.accepted)
    assert made.exhausted or len(prompts) == 20


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 6), st.integers(2, 5), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 4))))
def test_a_word_for_word_language_is_never_mistranslated(verbs: int, places: int, holes) -> None:
    def translate(prompt: str) -> str:
        return " ".join(word.upper() for word in reversed(prompt.split(" ")))

    cells = [(v, p) for v in range(verbs) for p in range(places) if (v, p) not in holes]
    prompts = [f"verb{v} the place{p}" for v, p in cells]
    made = generate(frame(*[(prompt, translate(prompt)) for prompt in prompts]), 7, 99)
    assert all(c.response == translate(c.prompt) for c in made.candidates)


def test_ordinary_text_gives_nothing_and_costs_little() -> None:
    words = [f"w{n}" for n in range(4000)]
    pairs = []
    for n in range(20_000):
        prompt = " ".join(words[(n * 37 + k * k * 11) % 4000] for k in range(12 + n % 9))
        pairs.append((f"{prompt} ?", f"{words[(n * 101) % 4000]} said so {n % 53}"))
    assert generate(frame(*pairs), 7, 100).candidates == []


def test_many_partners_are_capped_and_counted() -> None:
    pairs = [(f"{verb} x{n}", f"{verb.upper()} X{n}") for verb in ("say", "shout") for n in range(10_000)]
    search = find_exchanges(frame(*pairs))
    assert search.counts["capped_environments"] == 2
    assert max(sum(e.leaves == "x0" for e in search.accepted), 1) <= recombine.MAX_PARTNERS


def test_checks_beyond_the_limit_are_counted_and_not_accepted(monkeypatch) -> None:
    rows = frame(*TOY, JUMP)
    monkeypatch.setattr(recombine, "MAX_CHECKS", 20)
    search = find_exchanges(rows)
    assert search.counts["unchecked"] == 7 and len(search.accepted) == 2


def scan_rows(name: str) -> pl.DataFrame:
    path = COPIES / name / "train.parquet"
    if not path.is_file():
        pytest.skip(f"no local copy of {name} beside the repository")
    return pl.read_parquet(path).select(row_id="id", prompt="prompt", response="response")


def is_right(candidate: recombine.Candidate) -> bool:
    try:
        return scan_sentence(candidate.prompt.split(" ")) == candidate.response.split(" ")
    except ValueError:
        return False


@pytest.mark.parametrize(
    "name", ["scan_addprim_jump", "scan_addprim_turn_left", "scan_template_around_right"]
)
def test_scan_precision_is_one(name: str) -> None:
    rows = scan_rows(name)
    for prompt, response in rows.select("prompt", "response").iter_rows():
        assert scan_sentence(prompt.split(" ")) == response.split(" ")
    made = generate(rows, 7, 100_000)
    wrong = [candidate for candidate in made.candidates if not is_right(candidate)]
    assert made.exhausted and len(made.candidates) > 1000 and wrong == []


def test_scan_finds_what_is_exchangeable_and_brings_jump_everywhere() -> None:
    made = generate(scan_rows("scan_addprim_jump"), 7, 100_000)
    verbs = ("walk", "look", "run")
    expected = {f"{a}→{b}" for a in verbs for b in (*verbs, "jump") if a != b} | {"left→right", "right→left"}
    assert names(made.search.accepted) == expected
    jumps = {c.prompt for c in made.candidates if "jump" in c.prompt.split(" ")}
    test = set(pl.read_parquet(COPIES / "scan_addprim_jump" / "ood_test__addprim_jump.parquet")["prompt"])
    assert jumps <= test
    assert len(jumps) / len(test) > 0.99
