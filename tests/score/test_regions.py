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
from curation.score.regions import default_regions, distinctive_terms, map_regions
from curation.strategies import spherical_kmeans

SIZES = [40, 25, 9, 4]
WORDS = ["apple", "boat", "cloud", "drum"]
WRONG = [0.0, 0.5, 1.0]  # share of wrong steer items of the first three clusters; the last has none


@pytest.fixture(scope="module")
def planted():
    rng = generator(1, "planted regions")
    cluster = rng.permutation(np.repeat(np.arange(4), SIZES))
    z = unit_rows(np.eye(8)[cluster] + 0.03 * rng.standard_normal((len(cluster), 8)))
    texts = [f"the {WORDS[c]} number {i % 7}" for i, c in enumerate(cluster)]
    at = np.repeat([0, 1, 2], 4)
    steer = unit_rows(np.eye(8)[at] + 0.03 * rng.standard_normal((12, 8)))
    wrong = np.concatenate([np.arange(4) < 4 * share for share in WRONG])
    # random starting points may leave a cluster without one: the first seed that finds all four
    seed = next(
        s for s in range(99) if len(set(zip(cluster, spherical_kmeans(z, 4, s)[1], strict=True))) == 4
    )
    ids = [f"r{i}" for i in range(len(z))]
    rows, table, near = map_regions("p", ids, texts, z, cluster.astype(float), steer, wrong, 4, seed)
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
    assert len(without[2]) == 0
    assert without[1]["steer_error"].null_count() == len(without[1]) == default_regions(len(z))


def test_distinctive_terms() -> None:
    texts = ["set the lamp", "set the door", "fill the lamp", "fill the cup", "fill the door"]
    cluster = np.array([0, 0, 1, 1, 1])
    assert distinctive_terms(texts, cluster, 0).split()[0] == "set"
    assert distinctive_terms(texts, cluster, 1).split()[0] == "fill"
    assert "the" not in distinctive_terms(texts, cluster, 0).split()
    assert distinctive_terms(texts, np.zeros(5, int), 0) == ""  # nothing sets all apart from all
    assert distinctive_terms(texts, cluster, 7) == ""
    assert len(distinctive_terms(texts, cluster, 1, terms=1).split()) == 1


@given(st.integers(0, 10**6))
def test_the_number_of_regions_grows_with_the_root(n: int) -> None:
    assert 8 <= default_regions(n) <= 256
    assert default_regions(n) <= default_regions(n + 100)
    if 40 <= n <= 30_000:
        assert default_regions(n) == pytest.approx((2 * n) ** 0.5, abs=1)
