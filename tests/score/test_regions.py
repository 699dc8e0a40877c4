"""The map of gradient space on planted clusters."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.logdet import unit_rows
from curation.randomness import generator
from curation.rows import check
from curation.score.density import knn_density
from curation.score.regions import default_regions, fine_regions, map_regions

SIZES = [40, 25, 9, 4]
WORDS = ["apple", "boat", "cloud", "drum"]
WRONG = [0.0, 0.5, 1.0]  # share of wrong steer items of the first three clusters; the last has none


@pytest.fixture(scope="module")
def planted():
    rng = generator(1, "planted regions")
    cluster = rng.permutation(np.repeat(np.arange(4), SIZES))
    z = unit_rows(np.eye(8)[cluster] + 0.005 * rng.standard_normal((len(cluster), 8)))
    texts = [f"the {WORDS[c]} number {i % 7}" for i, c in enumerate(cluster)]
    at = np.repeat([0, 1, 2], 4)
    steer = unit_rows(np.eye(8)[at] + 0.005 * rng.standard_normal((12, 8)))
    wrong = np.concatenate([np.arange(4) < 4 * share for share in WRONG])
    seed = 3
    ids = [f"r{i}" for i in range(len(z))]
    rows, table, near, _ = map_regions("p", ids, texts, z, cluster.astype(float), steer, wrong, 4, seed)
    return cluster, at, rows, table, near, (ids, texts, z, steer, wrong, seed)


def test_the_frames_fit_their_contracts(planted) -> None:
    _, _, rows, table, _, _ = planted
    check("regions", rows)
    check("region_table", table)
    assert table["region"].to_list() == [0, 1, 2, 3]
    assert table["share"].sum() == pytest.approx(1)


def test_regions_are_the_planted_clusters(planted) -> None:
    cluster, at, rows, table, near, _ = planted
    name = {int(r): int(c) for r, c in zip(rows["region"], cluster, strict=True)}
    assert len(name) == 4
    for line in table.iter_rows(named=True):
        c = name[line["region"]]
        assert line["size"] == SIZES[c]
        assert line["thin"] == (SIZES[c] < np.median(SIZES))  # below the median: the two small ones
        assert line["mean_nll"] == pytest.approx(c)
        assert line["steer_error"] == (WRONG[c] if c < 3 else None)
        assert line["terms"].split()[0] == WORDS[c]
        assert line["density"] > 0.98
        members = rows.filter(pl.col("region") == line["region"])
        nearest = members.sort("distance", "row_id")["distance"].head(3).to_list()
        shown = rows.filter(pl.col("row_id").is_in(line["exemplars"]))
        assert sorted(shown["distance"].to_list()) == pytest.approx(nearest)
        assert set(shown["region"]) == {line["region"]}
    assert [name[int(r)] for r in near] == at.tolist()


def test_the_map_is_the_same_every_time_and_needs_no_steer_items(planted) -> None:
    _, _, rows, table, _, (ids, texts, z, steer, wrong, seed) = planted
    nll = np.zeros(len(z))
    again = map_regions(
        "p", ids, texts, z, table["mean_nll"].to_numpy()[rows["region"].to_numpy()], steer, wrong, 4, seed
    )
    assert again[0].equals(rows)
    without = map_regions("p", ids, texts, z, nll, steer[:0], wrong[:0], None, seed)
    assert len(without.steer_region) == 0
    assert without[1]["steer_error"].null_count() == len(without[1]) == default_regions(len(z))


def test_density_is_that_of_the_rows(planted) -> None:
    _, _, rows, table, _, (ids, texts, z, steer, wrong, seed) = planted
    found = map_regions("p", ids, texts, z, np.zeros(len(z)), steer, wrong, 4, seed)
    np.testing.assert_allclose(found.density, knn_density(z, 1))
    each = pl.DataFrame({"region": rows["region"], "density": found.density}).group_by("region").mean()
    assert table["knn_density"].to_list() == pytest.approx(each.sort("region")["density"].to_list())


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_row_without_a_direction_is_in_no_region(planted, bad: float) -> None:
    cluster, _, rows, table, near, (ids, texts, z, steer, wrong, seed) = planted
    spoilt, lost = np.concatenate([z, [[bad] * 8]]), [*ids, "lost"]
    at_steer, missed = np.concatenate([steer, [[bad] * 8]]), np.append(wrong, True)
    nll = np.append(cluster.astype(float), np.nan)
    found = map_regions("p", lost, [*texts, "unheard"], spoilt, nll, at_steer, missed, 4, seed)
    check("regions", found.rows)
    assert found.rows.row(-1) == ("lost", "p", "coarse", -1, None)
    assert found.rows.head(-1).drop("distance").equals(rows.drop("distance"))
    assert found.steer_region.tolist() == [*near.tolist(), -1] and np.isnan(found.density[-1])
    known = ["size", "steer_error", "mean_nll", "terms", "thin", "exemplars"]
    assert found.table.select(known).equals(table.select(known))
    assert found.table["share"].sum() == pytest.approx(len(z) / len(spoilt))
    nothing = map_regions("p", ["lost"], ["x"], spoilt[-1:], nll[-1:], at_steer, missed, 4, seed)
    assert nothing.table.is_empty() and nothing.rows["region"].to_list() == [-1]
    check("region_table", nothing.table)


def test_regions_keep_their_numbers_in_the_next_round(planted) -> None:
    _, _, rows, table, _, (ids, texts, z, steer, wrong, seed) = planted
    turned = np.roll(z, 3, axis=1)[::-1]  # another gradient space, and the rows in another order
    args = ("p", ids[::-1], texts[::-1], turned, np.zeros(len(z)), np.roll(steer, 3, axis=1), wrong, 4)
    before = rows.with_columns(pl.col("region").replace({2: 9}).cast(pl.Int32))
    long_ago = rows.head(1).with_columns(region=pl.lit(77, pl.Int32))
    found = map_regions(*args, seed + 1, [long_ago, before])
    assert found.rows.sort("row_id")["region"].equals(before.sort("row_id")["region"])
    assert found.table["region"].to_list() == [0, 1, 3, 9]
    assert found.table["carried"].to_list() == [1.0] * 4
    names = dict(table.select("region", "terms").iter_rows())
    assert dict(found.table.select("region", "terms").iter_rows()) == {
        9 if r == 2 else r: t for r, t in names.items()
    }
    assert set(found.steer_region) <= {0, 1, 3, 9}
    strangers = before.with_columns(row_id=pl.lit("another ") + pl.col("row_id"))
    fresh = map_regions(*args, seed + 1, [long_ago, strangers]).table
    assert fresh["region"].to_list() == [78, 79, 80, 81] and fresh["carried"].null_count() == 4


def test_many_rows_have_a_fine_scale_too() -> None:
    rng = generator(1, "fine")
    group = rng.integers(200, size=2000)
    z = unit_rows(rng.standard_normal((200, 32))[group] + 0.3 * rng.standard_normal((2000, 32)))
    ids = [f"r{i}" for i in range(2000)]
    found = map_regions(
        "p", ids, [f"group {g}" for g in group], z, np.zeros(2000), z[:0], np.zeros(0, bool), None, 1
    )
    check("regions", found.rows)
    check("region_table", found.table)
    sizes = dict(found.table.group_by("scale").len().iter_rows())
    assert sizes == {"coarse": default_regions(2000), "fine": fine_regions(2000, 63)}
    for scale in sizes:
        assert found.rows.filter(pl.col("scale") == scale)["row_id"].to_list() == ids
        assert found.table.filter(pl.col("scale") == scale)["size"].sum() == 2000
    assert fine_regions(500, 32) is None and fine_regions(10**6, 256) == 1024


@given(st.integers(0, 10**6))
def test_the_number_of_regions_grows_with_the_root(n: int) -> None:
    assert 8 <= default_regions(n) <= 256
    assert default_regions(n) <= default_regions(n + 100)
    if 40 <= n <= 30_000:
        assert default_regions(n) == pytest.approx((2 * n) ** 0.5, abs=1)
