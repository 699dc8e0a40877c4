"""Where new rows are needed: regions that are thin and where the steer suites fail."""

from __future__ import annotations

import numpy as np
import polars as pl


def parent_weights(regions: pl.DataFrame, region_table: pl.DataFrame) -> np.ndarray:
    """(n,) probabilities of the rows of `regions` as parents: steer error of their region over its size.

    One scale of both tables. A region without steer items has the mean error of the others. When nothing fails,
    regions (not rows) are alike. A row without a region (−1) is no parent, unless no row has one: then all are alike.
    """
    table = region_table.sort("region")
    error = table["steer_error"].to_numpy().astype(np.float64)
    known = error[~np.isnan(error)]
    error = np.where(np.isnan(error), known.mean() if len(known) else 1.0, error)
    each = dict(zip(table["region"], (error + 0.01) / np.maximum(table["size"].to_numpy(), 1), strict=True))
    weight = np.array([each[r] if r >= 0 else 0.0 for r in regions["region"]])
    return weight / weight.sum() if weight.any() else np.full(len(weight), 1 / max(len(weight), 1))
