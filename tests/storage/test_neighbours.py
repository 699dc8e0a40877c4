"""Nearest rows equal brute force; vectors read from pages equal those of pyarrow; an index is never trusted blindly."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from curation.errors import DataError, UserError
from curation.rows import SUITE_ITEMS, features_schema
from storage import shards
from storage.artifacts import Lake, Ref
from storage.neighbours import exact_search, nearest_rows, place_of
from storage.vector_index import build_index, index_folder, open_index
from storage.vectors import all_cosines, floats, group_vectors, groups_of, pages_of, read_rows
from tests.storage.lakes import frame, rows

D = 100
MANIFEST = {"spec": {}, "code_version": "1", "parents": []}


def vectors(n: int, d: int = D, seed: int = 0) -> np.ndarray:
    """Rows around a few centres, of any length; the first has no direction."""
    r = np.random.Generator(np.random.Philox(seed))
    centres = 2 * r.standard_normal((5, d))
    x = centres[r.integers(0, 5, n)] + r.standard_normal((n, d))
    x *= r.uniform(0.1, 3, (n, 1))
    x[0] = 0
    return x.astype(np.float16)


def feature_frame(ids: list[str], proxies: list[str], x: np.ndarray) -> pl.DataFrame:
    columns = {
        "row_id": ids,
        "proxy": proxies,
        "feature": pl.Series(x, dtype=pl.Array(pl.Float16, x.shape[1])),
    }
    empty = {name: [None] * len(ids) for name in ("norm", "nll", "el2n", "correct", "n_tokens")}
    return pl.DataFrame({**columns, **empty}, schema=features_schema(x.shape[1]))


def publish(lake: Lake, kind: str, fp: str, shard: dict[str, dict[str, pl.DataFrame]]) -> Ref:
    with lake.draft(kind, "x", fp * 12, MANIFEST) as draft:
        for key, tables in shard.items():
            draft.write_shard(key, tables)
        return draft.publish()


def id_of(i: int) -> str:
    return f"aa{i:05d}"


N, X = 600, vectors(600)
PROXIES = ["p"] * 400 + ["other"] * 200


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    item = frame(SUITE_ITEMS, [{"suite": "s", "item_id": id_of(7), "prompt": "sealed", "response": "secret"}])
    publish(
        lake,
        "ingest",
        "a",
        {"all": {"rows": rows(N).with_columns(row_id=pl.Series(map(id_of, range(N)))), "suite_items": item}},
    )
    parts = {
        f"rows-{s}": {
            "features": feature_frame(
                [id_of(i) for i in range(s, s + 150)], PROXIES[s : s + 150], X[s : s + 150]
            )
        }
        for s in range(0, N, 150)
    }
    publish(lake, "score", "b", parts)
    return lake


REF = Ref("score", "x", "b" * 12)


def brute(i: int, k: int, x: np.ndarray = X) -> list[str]:
    z = x.astype(np.float64)
    norms = np.linalg.norm(z, axis=1)
    cosine = np.divide(z @ z[i], norms * norms[i], out=np.full(len(z), -9.0), where=norms > 0)
    hidden = [j for j in range(len(z)) if PROXIES[j] != PROXIES[i] or j in (i, 7) or norms[j] == 0]
    cosine[hidden] = -9
    return [id_of(int(j)) for j in np.argsort(-cosine, kind="stable")[:k] if cosine[j] > -9]


@pytest.mark.parametrize("i", [3, 120, 399, 450])
def test_both_ways_equal_brute_force_within_the_proxy(lake: Lake, i: int) -> None:
    exact = nearest_rows(lake, id_of(i), k=8, exact=True)
    assert exact["row_id"].to_list() == brute(i, 8)
    assert set(exact["proxy"]) == {PROXIES[i]}
    build_index(lake, REF, "features")
    indexed = nearest_rows(lake, id_of(i), k=8)
    assert indexed.equals(exact)
    assert indexed["prompt"][0].startswith("question ")


def test_items_of_suites_and_rows_without_direction_are_nobodys_neighbours(lake: Lake) -> None:
    build_index(lake, REF, "features")
    for exact in (True, False):
        found = nearest_rows(lake, id_of(3), k=10_000, exact=exact)
        assert len(found) == 400 - 3  # itself, the item, the zero
        assert not {id_of(3), id_of(7), id_of(0)} & set(found["row_id"])
    with pytest.raises(UserError, match="zero: it has no direction"):
        nearest_rows(lake, id_of(0))


def test_what_is_asked_wrongly_says_what_there_is(lake: Lake) -> None:
    with pytest.raises(UserError, match=r"it has: p$"):
        nearest_rows(lake, id_of(3), proxy="scorer")
    with pytest.raises(UserError, match="spaces: gradient, embedding"):
        nearest_rows(lake, id_of(3), space="latent")
    with pytest.raises(UserError, match="only a proxy of kind head embeds"):
        nearest_rows(lake, id_of(3), space="embedding")
    with pytest.raises(UserError, match="no row aa99999"):
        nearest_rows(lake, "aa99999")
    with pytest.raises(UserError, match="more than one row begins with"):
        nearest_rows(lake, "aa0000")
    with pytest.raises(UserError, match="1 row or more"):
        nearest_rows(lake, id_of(3), k=0)


def test_the_newest_run_and_the_named_proxy_are_chosen(lake: Lake) -> None:
    ids = [id_of(i) for i in range(40)]
    newer = publish(
        lake, "score", "c", {"all": {"features": feature_frame(ids, ["q"] * 40, vectors(40, 16, 9))}}
    )
    steps = [[{"stage": "score", "artifact": str(ref)}] for ref in (REF, newer)]
    lake.save_run("1", {"started": "1", "artifacts": {}, "steps": steps[0]})
    lake.save_run("2", {"started": "2", "artifacts": {}, "steps": steps[1]})
    assert place_of(lake, id_of(3)).ref == newer and len(place_of(lake, id_of(3)).vector) == 16
    assert place_of(lake, id_of(3), proxy="p").ref == REF
    longer = feature_frame(ids, ["proxy-1"] * 40, vectors(40, 16, 9))
    publish(lake, "score", "e", {"all": {"features": longer}})
    assert place_of(lake, id_of(3), proxy="p").ref == REF  # its name exactly
    assert place_of(lake, id_of(3), proxy="pro").proxy == "proxy-1"
    another = longer.with_columns(proxy=pl.lit("proxy-2"))
    publish(lake, "score", "f", {"all": {"features": another}})
    with pytest.raises(UserError, match=r"more than one proxy begins.*proxy-1, proxy-2$"):
        place_of(lake, id_of(3), proxy="pro")
    assert place_of(lake, id_of(300)).ref == REF  # the newer run has not scored it
    assert set(nearest_rows(lake, id_of(3), k=99)["artifact"]) == {str(newer)}


@pytest.mark.parametrize(
    "name", ["about.json", "codes.npy", "centre.npy", "ids.npy", "owners.npy", "pages.npy"]
)
@pytest.mark.parametrize("how", ["gone", "cut", "changed", "zeroed"])
def test_a_damaged_index_is_named_and_not_used(lake: Lake, name: str, how: str) -> None:
    exact = nearest_rows(lake, id_of(3), exact=True)
    path = build_index(lake, REF, "features") / name
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        damaged = {
            "cut": data[:-3],
            "changed": b"\x00" * 9 + data[9:],
            "zeroed": data[:128] + bytes(len(data) - 128),
        }
        path.write_bytes(damaged[how])
    with pytest.warns(UserWarning, match="cannot be used.*searched exactly.*--build"):
        assert nearest_rows(lake, id_of(3)).equals(exact)
    build_index(lake, REF, "features")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nearest_rows(lake, id_of(3)).equals(exact)


def test_one_infinite_vector_harms_nobody_else(lake: Lake) -> None:
    x = X.copy()
    x[1], x[2] = np.inf, np.nan
    ids = [id_of(i) for i in range(N)]
    ref = publish(lake, "score", "d", {"all": {"features": feature_frame(ids, ["odd"] * N, x)}})
    build_index(lake, ref, "features")
    index = open_index(lake, ref, "features")
    assert index and np.isfinite(faiss.vector_to_array(index.codes.center)).all()
    exact = nearest_rows(lake, id_of(3), proxy="odd", exact=True)
    assert nearest_rows(lake, id_of(3), proxy="odd").equals(exact) and len(exact) == 10
    with pytest.raises(UserError, match="not finite: it has no direction"):
        nearest_rows(lake, id_of(1), proxy="odd")


def test_a_damaged_artifact_hides_no_row_of_another(lake: Lake) -> None:
    ids = [id_of(i) for i in range(40)]
    other = publish(lake, "score", "d", {"all": {"features": feature_frame(ids, ["q"] * 40, vectors(40))}})
    whole = nearest_rows(lake, id_of(3), proxy="p")
    lake.paths(other, "features")[0].unlink()
    with pytest.warns(UserWarning, match=f"{other} is damaged"):
        assert nearest_rows(lake, id_of(3), proxy="p").equals(whole)


def test_an_index_of_other_vectors_is_never_used(lake: Lake) -> None:
    build_index(lake, REF, "features")
    ids = [id_of(i) for i in range(N)]
    other = publish(
        lake, "score", "d", {"all": {"features": feature_frame(ids, PROXIES, vectors(N, seed=5))}}
    )
    assert open_index(lake, other, "features") is None
    shutil.copytree(index_folder(lake, REF, "features"), index_folder(lake, other, "features"))
    with pytest.raises(DataError, match="of other vectors"):
        open_index(lake, other, "features")


@pytest.mark.parametrize(
    ("n", "d", "group"), [(1, 8, 64), (700, 384, 256), (3000, 1024, 65_536), (999, 7, 100)]
)
def test_pages_hold_what_pyarrow_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, d: int, group: int
) -> None:
    monkeypatch.setattr(shards, "VECTORS_A_GROUP", group)
    x = vectors(n, d, 3)
    path = tmp_path / "a.parquet"
    shards.write_parquet(path, feature_frame([id_of(i) for i in range(n)], ["p"] * n, x))
    assert pages_of(path) is not None
    read = np.concatenate([group_vectors(path, g) for g in range(groups_of(path))])
    assert np.array_equal(read, x) and groups_of(path) == -(-n // group)
    pages = np.column_stack([np.zeros((len(pages_of(path)), 2), int), pages_of(path)[:, 1:]])  # type: ignore[index, arg-type]
    pages[1:, 1] = np.cumsum(pages[:-1, 3])
    some = np.unique(np.linspace(0, n - 1, 9).astype(int))
    assert np.array_equal(read_rows([path], pages, some, d), x[some])
    assert np.array_equal(floats(x), x.astype(np.float32))


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zstd"},
        {"data_page_version": "2.0"},
        {"use_byte_stream_split": ["feature.list.element"], "use_dictionary": False},
    ],
)
def test_files_of_another_layout_are_read_by_pyarrow(tmp_path: Path, how: dict) -> None:
    x = vectors(300)
    table = feature_frame([id_of(i) for i in range(300)], ["p"] * 300, x).to_arrow()
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **{"compression": "none", "use_dictionary": ["row_id"], **how})
    assert pages_of(path) is None and np.array_equal(group_vectors(path, 0), x)
    assert np.isnan(all_cosines([path], x[5].astype(np.float32))[0])


def test_odd_page_headers_are_left_to_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shards.write_parquet(path, feature_frame([id_of(i) for i in range(300)], ["p"] * 300, vectors(300)))
    data, begin = path.read_bytes(), feature_page(path)
    for seed in range(200):
        r = np.random.Generator(np.random.Philox(seed))
        odd = bytearray(data)
        odd[begin + r.integers(0, 40)] = r.integers(0, 256)
        path.write_bytes(odd)
        pages = pages_of(path)
        assert pages is None or pages[:, 2].sum() == 300 * D
    for fill in (b"\xff", b"\x1c", b"\x88"):
        path.write_bytes(data[:begin] + fill * 50_000 + data[begin + 50_000 :])
        assert pages_of(path) is None


def feature_page(path: Path) -> int:
    chunk = pq.read_metadata(path).row_group(0)
    columns = (chunk.column(i) for i in range(chunk.num_columns))
    return next(c.data_page_offset for c in columns if c.path_in_schema.startswith("feature."))


def test_other_numbers_than_float16_are_left_to_pyarrow(tmp_path: Path) -> None:
    x = vectors(300)
    frame = feature_frame([id_of(i) for i in range(300)], ["p"] * 300, x)
    path = tmp_path / "a.parquet"
    shards.write_parquet(
        path, frame.with_columns(pl.col("feature").cast(pl.Array(pl.Int16, D), strict=False))
    )
    assert pages_of(path) is None


def test_a_compressed_artifact_says_how_to_search_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.vector_index.pages_of", lambda _: None)
    with pytest.raises(DataError, match="--exact"):
        build_index(lake, REF, "features")
    assert not index_folder(lake, REF, "features").exists()
    assert not list(lake.root.glob("index/**/*.building"))


@pytest.mark.parametrize("how", ["gone", "cut", "overwritten"])
def test_a_damaged_artifact_is_named(lake: Lake, how: str) -> None:
    path = lake.paths(REF, "features")[1]
    data = path.read_bytes()
    place = place_of(lake, id_of(3))
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-100] if how == "cut" else data[:4] + b"\xff" * 3000 + data[3004:])
    with pytest.raises(DataError, match=f"{REF}"):
        exact_search(lake, place, 3)
