"""From per-item outcomes to what the judge reads: accuracies of arms, paired differences, crossed cells."""

from __future__ import annotations

import numpy as np
import polars as pl


def by_model(outcomes: pl.DataFrame, models: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """One line a model and suite: arm, replicate, suite, distribution, accuracy and p_correct in points, n items."""
    kinds = items.select("suite", "distribution").unique()
    return (
        outcomes.join(models.select("model", "arm", "replicate"), on="model")
        .join(kinds, on="suite")
        .group_by("arm", "replicate", "suite", "distribution")
        .agg(
            (pl.col("correct").mean() * 100).alias("accuracy"),
            (pl.col("p_correct").mean() * 100).alias("p_correct"),
            pl.len().alias("items"),
        )
        .sort("arm", "replicate", "suite")
    )


def with_means(summary: pl.DataFrame) -> pl.DataFrame:
    """The same with `ood_mean` and `id_mean` as further suites: equal weights over the suites of a distribution."""
    means = (
        summary.group_by("arm", "replicate", "distribution")
        .agg(pl.col("accuracy").mean(), pl.col("p_correct").mean(), pl.col("items").sum())
        .with_columns((pl.col("distribution") + "_mean").alias("suite"))
        .select(summary.columns)
    )
    return pl.concat([summary, means]).sort("arm", "replicate", "suite")


def paired(summary: pl.DataFrame, arm: str, control: str, suite: str, metric: str) -> np.ndarray:
    """(n,) differences arm - control in points, by replicate, of the replicates that have both."""
    lines = summary.filter(pl.col("suite") == suite)
    a = lines.filter(pl.col("arm") == arm).select("replicate", pl.col(metric).alias("a"))
    b = lines.filter(pl.col("arm") == control).select("replicate", pl.col(metric).alias("b"))
    both = a.join(b, on="replicate").sort("replicate")
    return (both["a"] - both["b"]).to_numpy()


def crossed_cells(
    outcomes: pl.DataFrame, models: pl.DataFrame, items: pl.DataFrame, arm: str, control: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """(n, m) mean OOD differences in points by replicate and item cluster, and (m,) weights of the clusters.

    Weights give every OOD suite the same total, as the endpoint does.
    """
    value = pl.col("correct").cast(pl.Float64) if metric == "accuracy" else pl.col("p_correct")
    ood = items.filter(pl.col("distribution") == "ood").select("suite", "item_id", "cluster")
    per_suite = ood.group_by("suite").len().rename({"len": "suite_items"})
    lines = (
        outcomes.with_columns((value * 100).alias("v"))
        .join(
            models.filter(pl.col("arm").is_in([arm, control])).select("model", "arm", "replicate"), on="model"
        )
        .join(ood, on=["suite", "item_id"])
        .join(per_suite, on="suite")
        .with_columns(pl.concat_str("suite", "cluster", separator="/").alias("cell"))
    )
    cells = lines.group_by("cell", "replicate", "arm").agg(
        pl.col("v").mean(), (1 / pl.col("suite_items")).sum().alias("w")
    )
    wide = cells.pivot(on="arm", index=["cell", "replicate"], values="v").sort("cell", "replicate")
    weights = cells.filter(pl.col("arm") == arm).group_by("cell").agg(pl.col("w").mean()).sort("cell")
    table = (
        wide.with_columns((pl.col(arm) - pl.col(control)).alias("d"))
        .pivot(on="replicate", index="cell", values="d")
        .sort("cell")
    )
    return table.drop("cell").to_numpy().T, weights["w"].to_numpy()
