"""Evaluation suites: stable items, duplicates out, steer and judge apart by whole clusters."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import polars as pl

from curation.ingest.keys import KEY_COLUMNS, keys_of
from curation.ingest.near import near_twins
from curation.ingest.normalize import normalize
from curation.ingest.parse import Parsed, map_record
from curation.ingest.pool import Item
from curation.randomness import generator
from curation.rows import SUITE_ITEMS, row_id
from curation.specs import FieldMap

CLUSTER_JACCARD = 0.8


def parse_suite(items: Iterable[Item], fields: FieldMap) -> tuple[list[Parsed], dict[str, int]]:
    """The suite's parsed records, and how many were refused for which reason."""
    parsed: list[Parsed] = []
    refused: Counter[str] = Counter()
    for _, record, reason in items:
        outcome = reason or "unparsable" if record is None else map_record(record, fields)
        if isinstance(outcome, str):
            refused[outcome] += 1
        else:
            parsed.append(outcome)
    return parsed, dict(refused)


def from_rows(rows: pl.DataFrame) -> list[Parsed]:
    """Rows of the pool as a suite's parsed records, for suites that are held out."""
    columns = rows.select("prompt", "response", "label", "meta")
    return [
        Parsed(prompt, response, label, None, meta) for prompt, response, label, meta in columns.iter_rows()
    ]


def build_suite_items(
    name: str,
    parsed: Sequence[Parsed],
    distribution: str,
    use: str,
    seed: int,
    world: int = 0,
    round: int = 0,
) -> pl.DataFrame:
    """SUITE_ITEMS of one suite, sorted by item_id; the same for any order of the records.

    `item_id` hashes the normalised item, `suite_hash` all of them. The cluster is the one given, else the
    near-duplicate group. `steer+judge` halves the suite by whole clusters, the larger ones placed first.
    """
    items = _distinct(parsed, world)
    digest = hashlib.blake2b("\n".join(items["item_id"]).encode(), digest_size=16).hexdigest()
    items = items.with_columns(cluster=pl.Series(_clusters(items), dtype=pl.String))
    if use == "steer+judge":
        uses = _halves(items["cluster"].to_list(), seed, name, world)
    else:
        uses = [use] * items.height
    return items.with_columns(
        suite=pl.lit(name),
        suite_hash=pl.lit(digest),
        distribution=pl.lit(distribution),
        use=pl.Series(uses, dtype=pl.String),
        round=pl.lit(round, pl.Int32),
    ).select(SUITE_ITEMS.names())


def _distinct(parsed: Sequence[Parsed], world: int) -> pl.DataFrame:
    """The items once each, by their match keys; of equal ones the smallest id stays."""
    found = []
    for item in parsed:
        prompt, response = normalize(item.prompt), normalize(item.response)
        label = normalize(item.label) or None if item.label is not None else None
        if (item.prompt and not prompt) or not (prompt or response):
            continue
        found.append((row_id("suite", prompt, response, label), world, item.cluster, prompt, response, label))
    schema = {c: SUITE_ITEMS[c] for c in ("item_id", "world", "cluster", "prompt", "response", "label")}
    items = pl.DataFrame(found, schema=schema, orient="row").sort(
        "item_id", pl.col("cluster"), nulls_last=True
    )
    items = items.unique("item_id", keep="first", maintain_order=True)
    first = keys_of(items, "item_id").select(pl.col("item_id").first().over(KEY_COLUMNS) == pl.col("item_id"))
    return items.filter(first.to_series())


def _clusters(items: pl.DataFrame) -> list[str]:
    """Each item's cluster as given, else the id of the first item that its text is a near-duplicate of."""
    texts = keys_of(items, "item_id")["text_key"].to_list()
    names = items["item_id"].to_list()
    twins = near_twins(texts, [0] * len(texts), CLUSTER_JACCARD)
    return [
        given if given is not None else names[twins[i][0] if i in twins else i]
        for i, given in enumerate(items["cluster"])
    ]


def _halves(clusters: list[str], seed: int, name: str, world: int) -> list[str]:
    """`steer` or `judge` for each item: clusters in random order, larger ones first, to the smaller half."""
    sizes = Counter(clusters)
    names = sorted(sizes)
    ranks = generator(seed, "suite split", name, world).permutation(len(names))
    held = {"steer": 0, "judge": 0}
    side: dict[str, str] = {}
    for _, _, cluster in sorted((-sizes[c], int(rank), c) for c, rank in zip(names, ranks, strict=True)):
        side[cluster] = "judge" if held["judge"] < held["steer"] else "steer"
        held[side[cluster]] += sizes[cluster]
    return [side[cluster] for cluster in clusters]


def overlap(items: pl.DataFrame, rows: pl.DataFrame) -> dict[str, float]:
    """Suite -> share of its items whose text is in the pool of their world, whatever the answer."""
    keyed = keys_of(items, "item_id").with_columns(suite=items["suite"])
    there = keys_of(rows).select("world", "text_key").unique().with_columns(found=pl.lit(True))
    shares = (
        keyed.join(there, on=["world", "text_key"], how="left")
        .group_by("suite")
        .agg(pl.col("found").fill_null(False).mean())
        .sort("suite")
    )
    return dict(shares.iter_rows())
