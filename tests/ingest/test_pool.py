"""Records become rows exactly once, and every drop is counted: read = kept + dropped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.ingest.parse import Parsed
from curation.ingest.pool import accounting, merge_copies, parse_batch, settle
from curation.ingest.suites import build_suite_items
from curation.rows import RECORDS, ROWS, check, row_id
from curation.specs import FieldMap, Ingest
from storage.sources import read_batches

MESSY = Path(__file__).parents[2] / "../shared/data/messy"
ITEMS = build_suite_items("s", [Parsed("a b a b a b a", "x", None, None, "{}")], "ood", "judge", 1)


def pooled(batches, fields: FieldMap | None = None, world: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    known: set[str] = set()
    records, rows = [RECORDS.to_frame()], [ROWS.to_frame()]
    for file, items in batches:
        new = merge_copies(*parse_batch(items, "s", file, "mit", "train", fields or FieldMap(), world), known)
        known |= set(new[1]["row_id"])
        records.append(check("records", new[0]))
        rows.append(check("rows", new[1]))
    return pl.concat(records), pl.concat(rows)


def balanced(records: pl.DataFrame, rows: pl.DataFrame, ledger: pl.DataFrame) -> dict[str, int]:
    check("ledger", ledger)
    counts = accounting(records, ledger)
    assert counts["read"] == counts["kept"] + counts["dropped_as_records"] + counts["dropped_as_rows"]
    assert counts["kept"] == rows.height - ledger.height
    assert ledger["row_id"].is_unique().all() and set(ledger["row_id"]) <= set(rows["row_id"])
    assert rows["row_id"].is_unique().all()
    return counts


def test_ids_copies_and_normalised_text():
    raw = {"prompt": " Cafe\u0301 ", "response": "r", "label": 1, "url": "u"}
    batch = [
        (0, raw, None),
        (1, dict(raw), None),
        (2, {**raw, "label": 2}, None),
        (3, None, "blank"),
        (4, {}, None),
    ]
    records, rows = pooled([("f", batch)])
    name = row_id("s", " Cafe\u0301 ", "r", "1")
    assert records["reason"].to_list() == [None, "exact_copy", None, "blank", "missing_field"]
    assert records["row_id"].to_list()[:2] == [name, name]
    assert rows.row(0, named=True) == {
        "row_id": name, "world": 0, "source": "s", "split": "train", "prompt": "Café", "response": "r",
        "label": "1", "origin": "real", "parents": [], "licence": "mit", "n_chars": 6, "meta": '{"url": "u"}',
    }  # fmt: skip
    assert set(pooled([("f", batch)], world=1)[1]["row_id"]).isdisjoint(rows["row_id"])


def test_every_drop_has_one_line():
    texts = [
        "first text here",
        "FIRST text here!",
        "n/a",
        "\u200b",
        "x" * 60,
        "a b a b a b a",
        "kept as it is",
        "",
    ]
    records, rows = pooled([("f", [(i, {"prompt": t, "response": "r"}, None) for i, t in enumerate(texts)])])
    ledger = settle(rows, ITEMS, Ingest(max_chars=50))
    reasons = ["duplicate_normalized", "placeholder", "too_long", "contaminated_exact"]
    assert sorted(ledger["reason"]) == sorted(reasons)
    assert balanced(records, rows, ledger) == {
        "read": 8,
        "kept": 2,
        "dropped_as_records": 2,
        "dropped_as_rows": 4,
    }


TEXT = st.one_of(
    st.text("ab \u200b\r\n!é", max_size=12), st.text(max_size=8), st.just("a b a b a b a"), st.just("N/A")
)
VALUE = st.one_of(TEXT, st.none(), st.integers(), st.floats(), st.booleans(), st.lists(TEXT, max_size=2))
RECORD = st.dictionaries(
    st.sampled_from(["text", "prompt", "response", "label", "messages", "input", "z"]), VALUE
)
ITEM = st.one_of(
    st.tuples(RECORD, st.none()), st.tuples(st.none(), st.sampled_from(["blank", "unparsable", None]))
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ITEM, max_size=40), st.integers(1, 10))
def test_accounting_of_any_records_however_batched(found, size):
    items = [(i, record, reason) for i, (record, reason) in enumerate(found)]
    whole = pooled([("f", items)])
    cut = pooled([("f", items[i : i + size]) for i in range(0, len(items), size)])
    assert whole[0].equals(cut[0]) and whole[1].equals(cut[1])
    ledger = settle(whole[1], ITEMS, Ingest(max_chars=20, near_duplicate_jaccard=0.5))
    assert balanced(*whole, ledger)["read"] == len(items)


LINE = st.one_of(
    st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")),
    RECORD.map(lambda r: json.dumps(r).encode()),
    TEXT.map(lambda t: json.dumps({"text": t}, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b"[1]", b'{"text": "a', b'{"text": "\\ud800"}']),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, min_size=1, max_size=30), st.booleans())
def test_accounting_of_files(tmp_path, lines, packed):
    content = b"\n".join([b'{"text": "start"}', *lines, b'{"text": "end"}\n'])
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(content) if packed else content)
    records, rows = pooled((b.file, b.items) for b in read_batches(path, 7))
    assert records.height == len(lines) + 2
    assert balanced(records, rows, settle(rows, ITEMS, Ingest()))["read"] == len(lines) + 2


MESSY_FIELDS = {
    "shard-00.jsonl.gz": {},
    "shard-01.jsonl.gz": {"prompt": "content", "label": "y"},
    "export.jsonl": {"prompt": "data.body", "label": "target"},
    "table.csv": {"prompt": "Text", "label": "Label"},
    "legacy.csv.gz": {"prompt": "comment", "label": "class"},
    "warehouse.parquet": {"prompt": "document", "label": "category"},
    "crawl.txt": {},
}
EXPECTED = {
    "blank_line": "blank",
    "json_broken": "unparsable",
    "json_wrong_type": "not_an_object",
    "bad_utf8": "bad_utf8",
    "latin1_line": "bad_utf8",
    "csv_ragged": "ragged",
    "null_text": "missing_field",
    "very_long_line": "too_long",
}


@pytest.mark.skipif(not (MESSY / "truth.parquet").exists(), reason="the messy corpus is not here")
def test_messy_corpus():
    records, rows = [], []
    for name, fields in MESSY_FIELDS.items():
        batches = read_batches(MESSY / "raw" / name, 500)
        part = [parse_batch(b.items, name, b.file, None, "train", FieldMap(**fields), 0) for b in batches]
        known: set[str] = set()
        for pair in part:
            new = merge_copies(*pair, known)
            known |= set(new[1]["row_id"])
            records.append(new[0])
            rows.append(new[1])
    all_records, all_rows = pl.concat(records), pl.concat(rows)
    ledger = settle(all_rows, ITEMS, Ingest())
    assert balanced(all_records, all_rows, ledger)["read"] == 10825
    truth = pl.read_parquet(MESSY / "truth.parquet").with_columns(
        file=pl.col("file").str.strip_prefix("raw/"),
        position=pl.when(pl.col("file").str.contains("jsonl|txt"))
        .then(pl.col("line") - 1)
        .otherwise("record"),
    )
    seen = all_records.join(ledger.select("row_id", dropped="reason"), on="row_id", how="left")
    joined = truth.join(seen, on=["file", "position"], how="inner")
    assert joined.height == truth.height
    for kind, reason in EXPECTED.items():
        outcomes = joined.filter(pl.col("kind") == kind).select(pl.coalesce("reason", "dropped")).to_series()
        assert set(outcomes) == {reason}, kind
