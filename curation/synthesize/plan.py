"""Where new rows are needed: regions that are thin and where the steer suites fail."""

from __future__ import annotations

import numpy as np
import polars as pl


def parent_weights(regions: pl.DataFrame, region_table: pl.DataFrame) -> np.ndarray:
    """(n,) probabilities of the rows of `regions` as parents: steer error of their region over its size.

    A region without steer items has the mean error of the others. When nothing fails, regions (not rows) are alike.
    """
    table = region_table.sort("region")
    error = table["steer_error"].to_numpy().astype(np.float64)
    known = error[~np.isnan(error)]
    error = np.where(np.isnan(error), known.mean() if len(known) else 1.0, error)
    weight = ((error + 0.01) / np.maximum(table["size"].to_numpy(), 1))[regions["region"].to_numpy()]
    return weight / weight.sum()
