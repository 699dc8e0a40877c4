"""From features to tables: scores of rows, diversity of sets, flags in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from curation.rows import DIVERSITY, LEDGER, SCORES
from curation.score.contributions import contributions
from curation.score.difficulty import length_correlation, length_residual
from curation.score.diversity import Diversity, Moments, diversity_by, row_alignment
from curation.score.gradients import RowGradients
from curation.score.influence import (
    BLOCK_ROWS,
    LESS,
    LESS_WHITENED,
    TRAK,
    LessCheckpoint,
    TrakCheckpoint,
    gram,
    in_blocks,
    less_influence,
    margins,
    trak_influence,
    whitener,
)

MOST_GROUPS = 256
NAME_CHARS = 80  # of a source or label in the name of a set
METRICS = (
    "g_vendi",
    "g_vendi_q2",
    "g_vendi_inf",
    "g_vendi_centred",
    "ceiling",
    "top_share",
    "m_coherence",
    "m_coherence_unit",
)


def gradients_in_blocks(z: np.ndarray, norm: np.ndarray) -> Iterator[np.ndarray]:
    """Unit features (n, d) at rest times the rows' norms, float32, block by block: sketches of their gradients."""
    for start in range(0, len(z), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        yield z[part].astype(np.float32) * np.nan_to_num(norm[part, None]).astype(np.float32)


def gradient_scores(frame: pl.DataFrame, z: np.ndarray, state: Moments) -> dict[str, np.ndarray]:
    """Scorer -> (n,) values that the `features` table alone gives; z (n, d) are its features, `state` their moments."""
    nll, norm, tokens = (frame[name].to_numpy() for name in ("nll", "norm", "n_tokens"))
    alignment = [row_alignment(block, state) for block in gradients_in_blocks(z, norm)]
    lost = ~np.isfinite(norm) | (norm <= 0)  # flagged in the ledger, never scored
    return {
        "nll_v1": nll,
        "el2n_v1": frame["el2n"].to_numpy(),
        "grad_norm_v1": np.where(lost, np.nan, norm),
        "alignment_v1": np.where(lost, np.nan, np.concatenate([np.zeros(0), *alignment])),
        "contribution_v1": np.where(lost, np.nan, contributions(z, state)),
        "nll_residual_v1": length_residual(nll, tokens),
    }


def influence_scores(
    frame: pl.DataFrame, z: np.ndarray, steer: RowGradients, suites: list[str], whitened: bool
) -> dict[str, np.ndarray]:
    """Scorer -> (n,) influence of rows on the steer suites (the largest over suites): LESS and TRAK."""
    usable = np.isfinite(steer.feature).all(1) & (np.linalg.norm(steer.feature, axis=1) > 0)
    if not usable.any() or not (np.linalg.norm(z.astype(np.float32), axis=1) > 0).any():
        return {}
    groups, norm, nll = np.array(suites), frame["norm"].to_numpy(), frame["nll"].to_numpy()

    def outputs() -> Iterator[np.ndarray]:
        for start, block in zip(range(0, len(z), BLOCK_ROWS), gradients_in_blocks(z, norm), strict=True):
            yield margins(block, nll[start : start + BLOCK_ROWS])[0]

    found = {LESS: less_influence([LessCheckpoint(in_blocks(z), steer.feature)], groups).score}
    if whitened:
        second = gram(gradients_in_blocks(z, norm))
        at = LessCheckpoint(gradients_in_blocks(z, norm), steer.feature, whitener=whitener(second))
        found[LESS_WHITENED] = less_influence([at], groups).score
    second = gram(outputs())
    if second.any():
        at_suite, weight = margins(steer.feature, steer.nll)[0], 1 - np.exp(-nll)
        found[TRAK] = trak_influence([TrakCheckpoint(outputs(), at_suite, second, weight)], groups).score
    return found


def score_frame(ids: list[str], proxy: str, columns: dict[str, np.ndarray]) -> pl.DataFrame:
    """The `scores` table: one line a row and scorer; a score that a row has not is left out."""
    parts = [
        pl.DataFrame(
            {"row_id": ids, "proxy": [proxy] * len(ids), "scorer": [name] * len(ids), "value": value},
            schema=SCORES,
        ).filter(pl.col("value").is_not_nan())
        for name, value in columns.items()
    ]
    return pl.concat([SCORES.to_frame(), *parts])


def flag_frame(frame: pl.DataFrame, round: int) -> pl.DataFrame:
    """Ledger flags of rows whose gradient is zero or not finite, or nearly zero beside the median."""
    norm = frame["norm"].to_numpy()
    finite = norm[np.isfinite(norm)]
    floor = 1e-6 * float(np.median(finite)) if len(finite) else 0.0
    bad = np.flatnonzero(~np.isfinite(norm) | (norm <= floor))
    ids = frame["row_id"]
    return pl.DataFrame(
        [
            (
                ids[int(i)],
                "score",
                round,
                "flag",
                "no_gradient" if np.isfinite(norm[i]) else "gradient_not_finite",
                float(norm[i]) if np.isfinite(norm[i]) else None,
                floor,
                None,
            )
            for i in bad
        ],
        schema=LEDGER,
        orient="row",
    )


def note_frame(notes: pl.DataFrame, round: int) -> pl.DataFrame:
    """Ledger flags of rows that the proxy read in part or not at all (row_id, reason, value: their tokens)."""
    return notes.select(
        "row_id",
        pl.lit("score").alias("stage"),
        pl.lit(round, pl.Int32).alias("round"),
        pl.lit("flag").alias("decision"),
        "reason",
        "value",
        pl.lit(None, pl.Float64).alias("threshold"),
        pl.lit(None, pl.String).alias("twin"),
    )


def diversity_frame(
    round: int, world: int, proxy: str, role: str, sets: dict[str, Diversity]
) -> pl.DataFrame:
    """The `diversity` table of named sets of rows: G-Vendi of several orders, its ceiling, m-coherence."""
    return _lines(round, world, proxy, role, sets.items(), METRICS)


def group_frame(
    round: int, world: int, proxy: str, z: np.ndarray, groups: dict[str, list[object]]
) -> pl.DataFrame:
    """The `diversity` table of every source, label and region with at least two rows, z (n, d) being unit features.

    A column with one value or more than 256 has none; coherence needs lengths, which unit features have lost.
    """
    parts = []
    for column, values in groups.items():
        names = sorted({v for v in values if v is not None}, key=str)
        if not 1 < len(names) <= MOST_GROUPS:
            continue
        code = {name: i for i, name in enumerate(names)}
        found = diversity_by(z, np.array([code.get(v, -1) for v in values]))
        shown = (str(name)[:NAME_CHARS] for name in names)
        named = (
            (f"{column}:{name}", found[i]) for i, name in enumerate(shown) if i in found and found[i].n > 1
        )
        parts.append(_lines(round, world, proxy, "scorer", named, METRICS[:-2]))
    return pl.concat([DIVERSITY.to_frame(), *parts])


def _lines(
    round: int,
    world: int,
    proxy: str,
    role: str,
    sets: Iterable[tuple[str, Diversity]],
    metrics: tuple[str, ...],
) -> pl.DataFrame:
    lines = [
        (round, world, proxy, role, name, metric, float(getattr(found, metric)), found.n)
        for name, found in sets
        for metric in metrics
    ]
    return pl.DataFrame(lines, schema=DIVERSITY, orient="row")


def length_frame(
    round: int, world: int, proxy: str, columns: dict[str, np.ndarray], n_tokens: np.ndarray
) -> pl.DataFrame:
    """The `diversity` table's lines on length: Spearman correlation of every score with the row's tokens."""
    lines = []
    for name, value in columns.items():
        known = np.isfinite(value)
        if known.sum() > 2:
            r = length_correlation(value[known], n_tokens[known])
            if np.isfinite(r):
                lines.append(
                    (round, world, proxy, "scorer", name, "length_correlation", float(r), int(known.sum()))
                )
    return pl.DataFrame(lines, schema=DIVERSITY, orient="row")
