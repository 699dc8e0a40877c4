"""A long-tailed pool and four suites of CLINC-150, with ten domains as labels and the 150 intents hidden.

Pool: of the 15 intents of a domain, 12 are in the pool, the one of rank r with 110·r^-1.2 rows (at least 3,
and never more than the 100 that the official train set has); 3 are absent. Suites, from the official
validation and test sets, no item in two of them: `id` follows the pool's frequencies, `tail` has as many
items of each intent of rank 5 to 12, `unseen` those of the absent intents, `sealed` a fifth of the items of
tail and absent intents. The seed draws ranks, absent intents and rows. `intent` is for reports; no method may
see it.
Out-of-scope queries are not used. Data: Larson et al. 2019, CC BY 3.0.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from prepare_common import Item, by_content, is_local, main, need, rank, read_copy, shuffled

HELP = (
    "clone https://github.com/clinc/oos-eval (data/data_full.json, data/domains.json), "
    "then: python infra/recipes/prepare_intents.py --source oos-eval"
)
POOLED_INTENTS = 12
FIRST_TAIL_RANK = 5
SEALED_SHARE = 0.2


def load(source: Path) -> tuple[list[Item], list[Item]]:
    """The official train rows, and validation and test rows together, out-of-scope rows left out."""
    if is_local(source):
        splits = [read_copy(source, split) for split in ("train", "id_dev", "id_test")]
        train, dev, test = ([item(r["text"], r["domain"], r["label"]) for r in rows] for rows in splits)
    else:
        full = json.loads(need(source / "data" / "data_full.json", HELP).read_text(encoding="utf-8"))
        domains = json.loads(need(source / "data" / "domains.json", HELP).read_text(encoding="utf-8"))
        domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
        train, dev, test = (
            [item(text, domain_of[intent], intent) for text, intent in full[split]]
            for split in ("train", "val", "test")
        )
    return train, dev + test


def item(text: str, domain: str, intent: str) -> Item:
    return {"text": text, "label": domain.removeprefix("clinc:"), "intent": intent}


def ranks(train: list[Item], seed: int) -> dict[str, int]:
    """The rank of each intent in its domain, from 1; above 12 it is absent from the pool."""
    intents: dict[str, set[str]] = defaultdict(set)
    for row in train:
        intents[row["label"]].add(row["intent"])
    ordered = (sorted(found, key=lambda intent: rank(seed, "rank", intent)) for found in intents.values())
    return {intent: position for found in ordered for position, intent in enumerate(found, 1)}


def pool_size(position: int) -> int:
    return max(3, round(110 * position**-1.2))


def prepare(source: Path, seed: int) -> dict[str, list[Item]]:
    """Rows of each file by its stem."""
    train, held_out = load(source)
    position = ranks(train, seed)
    by_intent: dict[str, list[Item]] = defaultdict(list)
    for row in shuffled(seed, "pool", train):
        if position[row["intent"]] <= POOLED_INTENTS:
            by_intent[row["intent"]].append(row)
    pool = {intent: rows[: pool_size(position[intent])] for intent, rows in by_intent.items()}
    tests: dict[str, list[Item]] = defaultdict(list)
    for row in shuffled(seed, "suites", held_out):
        tests[row["intent"]].append(row)
    files = {"pool": [row for rows in pool.values() for row in rows]} | suites(pool, tests, position)
    return {stem: by_content(rows) for stem, rows in files.items()}


def suites(
    pool: dict[str, list[Item]], tests: dict[str, list[Item]], position: dict[str, int]
) -> dict[str, list[Item]]:
    """Disjoint suites: sealed takes its share first, then id; tail has as many of each intent as remain."""
    rare = {intent: rows for intent, rows in tests.items() if position[intent] >= FIRST_TAIL_RANK}
    cuts = {intent: round(SEALED_SHARE * len(rows)) for intent, rows in rare.items()}
    items_a_row = min((len(tests[intent]) - cuts.get(intent, 0)) / len(rows) for intent, rows in pool.items())
    sealed, ids, tails, unseen = [], [], {}, []
    for intent, rows in sorted(tests.items()):
        cut = cuts.get(intent, 0)
        sealed += rows[:cut]
        if intent not in pool:
            unseen += rows[cut:]
            continue
        end = cut + max(1, round(items_a_row * len(pool[intent])))
        ids += rows[cut:end]
        if intent in rare:
            tails[intent] = rows[end:]
    each = min(len(rows) for rows in tails.values())
    return {
        "id": ids,
        "tail": [r for rows in tails.values() for r in rows[:each]],
        "unseen": unseen,
        "sealed": sealed,
    }


if __name__ == "__main__":
    sys.exit(main("intents", (__doc__ or "").splitlines()[0], prepare))
