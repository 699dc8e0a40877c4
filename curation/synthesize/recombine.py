"""New text-to-text rows made from old ones, by exchanging fragments that the corpus shows to be exchangeable.

After good-enough compositional augmentation (Andreas 2020, arXiv:1904.09545), with the corpus itself as the
verifier. A fragment is one or two prompt words; *its word* is a response word that occurs in exactly the rows
whose prompts have the fragment. The exchange `a→b` (with words `A→B`) is proposed when two rows have the same
prompt but for `a`/`b` (the whole prompt counts) and the same response but for `A`/`B`. It is accepted when
applying it to every row that has `a` contradicts no row of the pool, and when `a` was exchanged rightly in at
least `min_environments` different rows, whatever the partner. Words are what single spaces separate, so text
is never reformatted.

Limit: what the pool never shows cannot contradict. If capitals are all that it says of a country, "largest
city" is answered with the capital; a higher `min_environments` asks for more evidence.

Cost: linear in the words of the pool; environments are built only for fragments that have a word, and caps on
prompt length, partners and checks bound the rest. `Search.counts` says when a cap cut something.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from curation.errors import UserError
from curation.randomness import generator

MASK = "\x00"
MAX_PROMPT_WORDS = 64  # longer prompts are in no environment
MAX_PARTNERS = 32  # proposed to a fragment in one environment
MAX_CHECKS = 1_000_000  # rows looked at in all verifications


@dataclass(frozen=True)
class Exchange:
    """One directed exchange and how many rows of the pool confirm and contradict it."""

    leaves: str
    enters: str
    word_out: str
    word_in: str
    witness: str  # id of a row that has the entering fragment
    support: int
    contradictions: int


@dataclass(frozen=True)
class Search:
    """The exchanges of a pool: accepted, and refused (contradicted by a row, or else seen too little).

    `counts`: `rows`, `lexicon` (fragments that have a word), and what the caps cut: `long_prompts`,
    `capped_environments`, `unchecked` (proposals, neither accepted nor refused).
    """

    accepted: tuple[Exchange, ...]
    refused: tuple[Exchange, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class Candidate:
    """One new row; its parents are the changed row and a row that has the entering fragment."""

    prompt: str
    response: str
    parents: tuple[str, ...]
    exchange: str


@dataclass(frozen=True)
class Recombined:
    """Candidates in the order drawn, and why other draws and rows gave none.

    `counts`: draws that were `made`, whose prompt `exists` in the pool, or was `repeated`; and rows to which
    `no_exchange` applies, or only `contradicted` ones. `exhausted`: all draws gave fewer than `count`.
    """

    candidates: list[Candidate]
    counts: dict[str, int]
    exhausted: bool
    search: Search


@dataclass(frozen=True)
class _Pool:
    order: list[int]  # position of each kept row in the caller's frame
    ids: list[str]
    prompts: list[list[str]]
    responses: list[list[str]]
    answers: dict[str, set[str]]  # prompt -> its responses


_Pair = tuple[str, str, str, str]  # leaves, enters, word out, word in
_Lexicon = dict[str, tuple[frozenset[str], list[int]]]  # fragment -> its words, the rows that have it


def find_exchanges(rows: pl.DataFrame, max_fragment_words: int = 2, min_environments: int = 2) -> Search:
    """The exchanges of `rows` (columns row_id, prompt, response); the same for any order of rows."""
    pool = _read(rows)
    lexicon = _lexicon(pool, max_fragment_words)
    witnesses, capped = _propose(pool, _environments(pool, lexicon), lexicon)
    right: dict[str, set[int]] = defaultdict(set)
    checked, checks = [], 0
    for pair in sorted(witnesses):
        holders = lexicon[pair[0]][1]
        checks += len(holders)
        if checks <= MAX_CHECKS:
            confirmed, contradictions = _verify(pool, holders, pair)
            right[pair[0]] |= set() if contradictions else confirmed
            checked.append(Exchange(*pair, pool.ids[witnesses[pair]], len(confirmed), contradictions))
    counts = {"rows": len(pool.ids), "lexicon": len(lexicon), "capped_environments": capped}
    counts["long_prompts"] = sum(len(words) > MAX_PROMPT_WORDS for words in pool.prompts)
    counts["unchecked"] = len(witnesses) - len(checked)
    sound = {e for e in checked if not e.contradictions and len(right[e.leaves]) >= min_environments}
    refused = tuple(e for e in checked if e not in sound)
    return Search(tuple(e for e in checked if e in sound), refused, counts)


def generate(
    rows: pl.DataFrame,
    seed: int,
    count: int,
    weights: Sequence[float] | None = None,
    known_prompts: Collection[str] = (),
    fragment_weights: Mapping[str, float] | None = None,
    search: Search | None = None,
) -> Recombined:
    """Up to `count` new rows whose prompts are all different, and in neither `rows` nor `known_prompts`.

    A parent is drawn by `weights` (one a row of `rows`; default uniform), then one of the accepted exchanges
    that apply to it, by the `fragment_weights` of the fragment that enters (default 1; 0 forbids it); no draw
    is made twice. The same for any order of rows. Pass the `search` of the same rows to save its time.
    """
    pool = _read(rows)
    given = np.ones(rows.height) if weights is None else np.asarray(weights, float)
    if given.shape != (rows.height,) or not np.all(np.isfinite(given) & (given >= 0)):
        raise UserError(f"weights must be {rows.height} finite numbers, none negative: one a row")
    search = find_exchanges(rows) if search is None else search
    draws, chances, counts = _draws(pool, search, given[pool.order], fragment_weights or {})
    counts |= {"exists": 0, "repeated": 0}
    known, produced = set(known_prompts), set()
    candidates: list[Candidate] = []
    # Exponential races give the order of draws by weight without replacement (Efraimidis and Spirakis 2006).
    arrivals = generator(seed, "recombine", "draws").exponential(size=len(draws)) / chances
    for draw in np.argsort(arrivals, kind="stable"):
        if len(candidates) >= count:
            break
        row, exchange = draws[draw][0], search.accepted[draws[draw][1]]
        prompt = " ".join(_substitute(pool.prompts[row], exchange.leaves, exchange.enters))
        if prompt in pool.answers or prompt in known:
            counts["exists"] += 1
        elif prompt in produced:
            counts["repeated"] += 1
        else:
            produced.add(prompt)
            response = " ".join(_substitute(pool.responses[row], exchange.word_out, exchange.word_in))
            name = f"{exchange.leaves}→{exchange.enters}"
            candidates.append(Candidate(prompt, response, (pool.ids[row], exchange.witness), name))
    counts["made"] = len(candidates)
    return Recombined(candidates, counts, len(candidates) < count, search)


def _read(rows: pl.DataFrame) -> _Pool:
    """The distinct rows that have a prompt and a response, ordered by row_id."""
    names = ("row_id", "prompt", "response")
    frame = rows.select(names).with_row_index("position").sort(names)
    frame = frame.filter(pl.col("prompt") != "", pl.col("response") != "")
    frame = frame.unique(["prompt", "response"], keep="first", maintain_order=True)
    answers: dict[str, set[str]] = defaultdict(set)
    for prompt, response in frame.select("prompt", "response").iter_rows():
        answers[prompt].add(response)
    prompts, responses = ([text.split(" ") for text in frame[name]] for name in names[1:])
    return _Pool(frame["position"].to_list(), frame["row_id"].to_list(), prompts, responses, dict(answers))


def _fragments(words: list[str], longest: int) -> set[str]:
    """The distinct fragments of a prompt; none has an empty word, a line break or a tab."""
    windows = (words[i : i + size] for size in range(1, longest + 1) for i in range(len(words) - size + 1))
    return {" ".join(window) for window in windows if all(word and word.isprintable() for word in window)}


def _lexicon(pool: _Pool, longest: int) -> _Lexicon:
    """The fragments that have a word: a response word in exactly the same rows.

    Sets of rows are compared by the exclusive or of one random 64-bit number a row (Zobrist hashing).
    """
    numbers = generator(0, "recombine", "signatures").integers(2**64, size=len(pool.ids), dtype=np.uint64)
    signature: dict[str, int] = defaultdict(int)
    word_signature: dict[str, int] = defaultdict(int)
    for words, response, number in zip(pool.prompts, pool.responses, numbers.tolist(), strict=True):
        for fragment in _fragments(words, longest):
            signature[fragment] ^= number
        for word in set(response):
            word_signature[word] ^= number
    words_of: dict[int, list[str]] = defaultdict(list)
    for word, value in word_signature.items():
        if word and word.isprintable():
            words_of[value].append(word)
    lexicon = {f: (frozenset(words_of[value]), []) for f, value in signature.items() if value in words_of}
    for row, words in enumerate(pool.prompts):
        for fragment in _fragments(words, longest) & lexicon.keys():
            lexicon[fragment][1].append(row)
    return lexicon


def _environments(pool: _Pool, lexicon: _Lexicon) -> dict[str, dict[str, int]]:
    """Masked prompt -> fragment that filled it -> a row; a fragment of one row only joins those of others."""
    found: dict[str, dict[str, int]] = {}
    for fragment in sorted(lexicon, key=lambda f: (len(lexicon[f][1]) < 2, f)):
        holders = lexicon[fragment][1]
        for row in holders:
            if len(pool.prompts[row]) <= MAX_PROMPT_WORDS:
                key = " ".join(_substitute(pool.prompts[row], fragment, MASK))
                fillers = found.setdefault(key, {}) if len(holders) > 1 else found.get(key, {})
                fillers.setdefault(fragment, row)
    return found


def _propose(
    pool: _Pool, environments: dict[str, dict[str, int]], lexicon: _Lexicon
) -> tuple[dict[_Pair, int], int]:
    """Pairs whose responses differ by their words only, each with a row of the entering one, and caps."""
    witnesses: dict[_Pair, int] = {}
    capped = 0
    for key in sorted(environments):
        fillers = environments[key]
        fragments = sorted(fillers)
        ring, reach = fragments * 2, min(MAX_PARTNERS, len(fragments) - 1)
        capped += reach < len(fragments) - 1
        for i, leaves in enumerate(fragments):
            if len(lexicon[leaves][1]) < 2:
                continue
            for enters in ring[i + 1 : i + 1 + reach]:
                change = _one_word(pool.responses[fillers[leaves]], pool.responses[fillers[enters]])
                if not change or set(leaves.split(" ")) & set(enters.split(" ")):
                    continue
                if change[0] in lexicon[leaves][0] and change[1] in lexicon[enters][0]:
                    witnesses.setdefault((leaves, enters, *change), fillers[enters])
    return witnesses, capped


def _one_word(before: list[str], after: list[str]) -> tuple[str, str] | None:
    """The one substitution of a word, in all its places, that turns one response into the other; or None."""
    changes = {(x, y) for x, y in zip(before, after, strict=False) if x != y}
    if len(changes) != 1:
        return None
    (change,) = changes
    return change if _substitute(before, *change) == after else None


def _verify(pool: _Pool, holders: list[int], pair: _Pair) -> tuple[set[int], int]:
    """The rows where the exchange gives a row of the pool, and how often it gives a wrong response."""
    leaves, enters, word_out, word_in = pair
    confirmed, contradictions = set(), 0
    for row in holders:
        real = pool.answers.get(" ".join(_substitute(pool.prompts[row], leaves, enters)))
        if real and " ".join(_substitute(pool.responses[row], word_out, word_in)) in real:
            confirmed.add(row)
        elif real:
            contradictions += 1
    return confirmed, contradictions


def _substitute(words: list[str], old: str, new: str) -> list[str]:
    """The words with every occurrence of the fragment `old`, from the left, replaced by `new`."""
    if " " not in old and " " not in new:
        return [new if word == old else word for word in words]
    pattern, out, i = old.split(" "), [], 0
    while i < len(words):
        hit = words[i : i + len(pattern)] == pattern
        out += new.split(" ") if hit else words[i : i + 1]
        i += len(pattern) if hit else 1
    return out


def _draws(
    pool: _Pool, search: Search, weights: np.ndarray, fragment_weights: Mapping[str, float]
) -> tuple[list[tuple[int, int]], np.ndarray, dict[str, int]]:
    """Every draw (row, number of the accepted exchange), its weight; and rows without one, by reason."""
    longest = max((len(e.leaves.split(" ")) for e in (*search.accepted, *search.refused)), default=0)
    by_fragment: dict[str, list[int]] = defaultdict(list)
    for number, exchange in enumerate(search.accepted):
        if fragment_weights.get(exchange.enters, 1.0) > 0:
            by_fragment[exchange.leaves].append(number)
    contradicted = {e.leaves for e in search.refused if e.contradictions}
    draws, chances = [], []
    counts = {"no_exchange": 0, "contradicted": 0}
    for row, words in enumerate(pool.prompts):
        fragments = _fragments(words, longest) if longest else set()
        numbers = sorted(n for f in fragments for n in by_fragment.get(f, ()))
        if not numbers:
            counts["no_exchange" if contradicted.isdisjoint(fragments) else "contradicted"] += 1
        elif weights[row] > 0:
            shares = np.array([fragment_weights.get(search.accepted[n].enters, 1.0) for n in numbers])
            draws += [(row, n) for n in numbers]
            chances += (weights[row] * shares / shares.sum()).tolist()
    return draws, np.array(chances), counts
