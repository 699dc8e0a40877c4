"""Names that last: references, fingerprints, safe path parts."""

import hashlib
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from curation.errors import UserError
from storage import shards
from storage.layout import Ref, checked_name, entry_name, fingerprint


@pytest.mark.parametrize(
    "text", ["ingest/tickets@0123456789ab", "dataset/my-set@v12", "a/b.c_d@ffffffffffff"]
)
def test_reference_survives_text(text: str) -> None:
    assert str(Ref.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "a/b",
        "a@b",
        "a/b@xyz",
        "a/../b@0123456789ab",
        "dataset/x@0123456789ab",
        "a/b@v1",
        "../a/b@v1",
        "a/b@v0",
    ],
)
def test_no_reference(text: str) -> None:
    with pytest.raises(UserError):
        Ref.parse(text)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "-rf", ".hidden", "é", "x" * 121, "a\n", "a\0"]
)
def test_hostile_names_never_become_paths(name: str) -> None:
    with pytest.raises(UserError):
        checked_name("name", name)


def test_any_key_is_a_safe_file_name() -> None:
    for key in ["a/b", "..", ".x", "ü 1", "a%b"]:
        name = entry_name(key)
        assert "/" not in name and not name.startswith(".")
    assert len({entry_name(key) for key in ["a/b", "a%2Fb", "a_b", "..", "%2E."]}) == 5


def test_fingerprint_is_fixed_for_ever() -> None:
    assert fingerprint("ingest", "1", {"b": [1, 2.5, None], "a": "ü"}, ["x"]) == "dcb33529d33d"


def test_texts_that_differ_have_no_large_dictionary(tmp_path: Path) -> None:
    """A reader of one row unpacks the whole dictionary."""
    words = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    frame = pl.DataFrame({"row_id": words, "label": words[:10] * 2000})
    shards.write_parquet(tmp_path / "t.parquet", frame)
    assert shards.read_parquet([tmp_path / "t.parquet"]).equals(frame)
    group = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
    ids, labels = group.column(0), group.column(1)
    assert (
        ids.data_page_offset - ids.dictionary_page_offset < 2 * shards.PAGE_BYTES < ids.total_compressed_size
    )
    assert labels.total_compressed_size < 4096


def test_fingerprint_sees_values_not_spelling() -> None:
    one = fingerprint("s", "1", {"a": 1, "b": (1, 2)}, ["x", "y"])
    assert one == fingerprint("s", "1", {"b": [1, 2], "a": 1}, ["x", "y"])
    others = [("s", "2", {"a": 1, "b": [1, 2]}, ["x", "y"]), ("s", "1", {"a": 1, "b": [2, 1]}, ["x", "y"])]
    others += [("s", "1", {"a": 1, "b": [1, 2]}, ["y", "x"]), ("t", "1", {"a": 1, "b": [1, 2]}, ["x", "y"])]
    assert one not in {fingerprint(*other) for other in others}


def test_fingerprint_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError):
        fingerprint("s", "1", {"a": float("nan")}, [])
    with pytest.raises(TypeError):
        fingerprint("s", "1", {"a": {1, 2}}, [])
