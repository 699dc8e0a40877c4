"""A lake of any size with the shape of a real one: every table through the storage API, the same bytes each time.

A part is 20,000 rows. Every part and every round's ledger is a shard of its own, so memory does not grow with the lake.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from curation.logdet import unit_rows
from curation.randomness import generator
from curation.rows import TABLES, features_schema
from storage.artifacts import Lake, Ref, fingerprint
from storage.layout import pretty_json
from storage.shards import read_json, write_parquet, write_shard

SEED, PART, LEDGER_PARTS = 7, 20_000, 10
NAME, RUN, PROXY = "bench", "20260101T000000-bench-0001", "scorer-bench"
PLANTED = 'The kestrel said: "naïve zanzibar",\nand left.'
REASONS = {  # of the rounds' ledger lines: reason -> (decision, threshold)
    "truncated": ("flag", 64.0),
    "thin_region": ("flag", 0.2),
    "high_loss": ("flag", 4.0),
    "low_agreement": ("flag", 0.5),
    "masked_turn": ("mask", 1.0),
    "near_duplicate": ("drop", 0.8),
    "ngram_overlap": ("drop", 1.0),
    "zero_gradient": ("flag", 0.0),
}
DROPS = ("duplicate_normalized", "near_duplicate", "too_short", "contaminated")


@dataclass(frozen=True)
class Size:
    """What the lake holds; `lines` are ledger lines of all rounds together."""

    rows: int
    lines: int
    rounds: int = 25
    dimensions: int = 1024


FULL = Size(1_000_000, 50_000_000)
QUICK = Size(100_000, 5_000_000)


def ensure(home: Path, size: Size, say: Callable[[str], None]) -> Path:
    """The lake of this size in `home`: the one that lies there when nothing it depends on changed, or a new one."""
    stamp, want = home / "made.json", {"size": asdict(size), "format": _format()}
    if stamp.exists() and read_json(stamp) == want:
        return home / "lake"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    begun = time.perf_counter()
    make(home / "lake", size, say)
    stamp.write_bytes(pretty_json(want))
    say(f"lake made in {time.perf_counter() - begun:.0f} s")
    return home / "lake"


def _format() -> str:
    """Changes with this file and with the bytes that the store writes."""
    ids = row_ids("format", 70_000)
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8)
    with tempfile.TemporaryDirectory() as folder:
        for table, frame in (("ledger", ledger_lines(ids, 70_000, 0)), ("features", vectors(ids[:64], 8, 0))):
            write_parquet(Path(folder) / f"{table}.parquet", frame)
            digest.update((Path(folder) / f"{table}.parquet").read_bytes())
    return digest.hexdigest()


def make(root: Path, size: Size, say: Callable[[str], None]) -> None:
    """A run of so many rounds: ingest, base, scores and flags, synthetic rows, arms, outcomes, three versions."""
    lake, steps = Lake(root), []
    parts = range(size.rows // PART)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:

        def stage(kind: str, round: int, jobs: dict[str, tuple], parents: Iterable[Ref] = ()) -> Ref:
            begun, fp = time.time(), fingerprint(kind, "bench", {"round": round}, [])
            manifest = {"spec": {"round": round}, "code_version": f"{kind}_v1", "stage": kind}
            manifest["parents"] = [str(parent) for parent in parents]
            with lake.draft(kind, NAME, fp, manifest) as draft:
                futures = [
                    pool.submit(_shard, draft.work_path, key, work, args)
                    for key, (work, *args) in jobs.items()
                ]
                for future in futures:
                    future.result()
                ref = draft.publish()
            seconds = round_to(time.time() - begun)
            steps.append({"stage": kind, "round": round, "phase": "", "artifact": str(ref), "reused": False})
            lake.add_cost(RUN, {"stage": kind, "round": round, "seconds": seconds, "tokens": 0, "money": 0.0})
            if round < 2:
                say(f"  {ref}: {seconds} s")
            return ref

        pools = stage(
            "ingest",
            0,
            {f"file-{p:03d}-00000": (ingested, p) for p in parts} | {"settled": (settled, len(parts))},
        )
        base = stage("base", 0, {"all": (kept_of, len(parts))}, [pools])
        score = base
        for n in range(1, size.rounds + 1):
            groups = range(0, len(parts), LEDGER_PARTS)
            each = size.lines // size.rounds // len(groups)
            jobs = {f"flags-{g:03d}": (flags, g, min(g + LEDGER_PARTS, len(parts)), each, n) for g in groups}
            if n == 1:
                jobs |= {f"rows-00-{p:03d}": (scored, p, size.dimensions) for p in parts}
            score = stage("score", n, jobs, [base])
        for n in (1, 2):
            stage("synthesize", n, {"all": (synthetic, n, size.rows)}, [base, score])
            stage("select", n, {f"arms-{p:03d}": (selected, p, n) for p in parts}, [score])
            stage("evaluate", n, {"all": (evaluated, n)}, [score])
    publish_versions(lake, len(parts), size.rows, str(pools))
    lake.save_run(
        RUN,
        {
            "recipe": NAME,
            "recipe_hash": "0" * 12,
            "state": "completed",
            "started": "2026-01-01T00:00:00+00:00",
            "artifacts": {step["stage"]: step["artifact"] for step in steps},
            "steps": steps,
        },
    )


def round_to(seconds: float) -> float:
    return float(f"{seconds:.2g}")


def _shard(work: Path, key: str, tables: Callable[..., dict[str, pl.DataFrame]], args: list) -> None:
    write_shard(work, key, tables(*args))


def publish_versions(lake: Lake, parts: int, rows: int, evidence: str) -> None:
    """@v1 of the kept rows; @v2 and @v3 each with a tenth of the rows before exchanged for synthetic ones."""
    frame = pl.concat([rows_of(p).filter(~dropped(p)) for p in range(parts)])
    for version in (1, 2, 3):
        if version > 1:
            stays = generator(SEED, "stays", version).random(len(frame)) >= 0.1
            frame = pl.concat([frame.filter(stays), synthetic(version - 1, rows)["rows"]])
        content = hashlib.blake2b("".join(frame["row_id"]).encode(), digest_size=16).hexdigest()
        parent, tokens = (version - 1 or None), int(frame["n_chars"].sum() // 4)
        lake.publish_dataset(NAME, frame, "coverage", parent, "publish", evidence, tokens, content)


def row_ids(*purpose: object) -> pl.Series:
    """Random ids, 32 hex digits each; the last part of the purpose is how many."""
    n = int(purpose[-1])  # type: ignore[call-overload]
    text = generator(SEED, "ids", *purpose).bytes(16 * n).hex().encode()
    offsets = pa.py_buffer(np.arange(0, 32 * n + 1, 32, dtype=np.int64))
    return pl.from_arrow(pa.LargeStringArray.from_buffers(n, offsets, pa.py_buffer(text)))  # type: ignore[return-value]


@lru_cache(maxsize=1)
def sentences() -> pl.Series:
    """100,000 sentences of made-up words by Zipf's law; the last is planted, a hundredth has other letters."""
    rng = generator(SEED, "sentences")
    sounds = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ai", "or", "en")]
    words = np.array(["".join(rng.choice(sounds, n)) for n in rng.integers(1, 5, 20_000)])
    share = 1 / (np.arange(len(words)) + 3.0)
    drawn = words[rng.choice(len(words), 1_200_000, p=share / share.sum())]
    ends = np.cumsum(rng.integers(8, 15, 99_999))
    made = [" ".join(drawn[end - 8 : end]) + "." for end in ends]
    made[::100] = [f'{text} "Ça va", 東京, {i}:\n\tnaïve.' for i, text in enumerate(made[::100])]
    return pl.Series([*made, PLANTED])


def texts(rng: np.random.Generator, n: int, count: int) -> pl.Series:
    """n texts of so many sentences."""
    pool = sentences()
    drawn = [pool.gather(rng.integers(0, len(pool), n)).alias(str(i)) for i in range(count)]
    return pl.DataFrame(drawn).select(pl.concat_str(pl.all(), separator=" ")).to_series()


def rows_of(part: int | str, n: int = PART, parents: pl.Series | None = None) -> pl.DataFrame:
    """`rows` of a part, in the order of its file; synthetic ones when they have parents."""
    rng = generator(SEED, "text", part)
    frame = pl.DataFrame(
        {
            "row_id": row_ids(part, n),
            "world": np.zeros(n, np.int32),
            "source": ["pool" if parents is None else "synthetic"] * n,
            "split": ["train"] * n,
            "prompt": texts(rng, n, 2),
            "response": texts(rng, n, 5),
            "label": pl.Series([f"topic-{i:02d}" for i in range(50)]).gather(rng.integers(0, 50, n)),
            "origin": ["real" if parents is None else "synthetic"] * n,
            "parents": pl.Series([[]] * n, dtype=pl.List(pl.String)) if parents is None else parents,
            "licence": ["CC-BY-4.0"] * n,
            "n_chars": np.zeros(n, np.int64),
            "meta": pl.Series([f'{{"line": {i}}}' for i in range(n)]),
        },
    )
    chars = (pl.col("prompt").str.len_chars() + pl.col("response").str.len_chars() + 1).cast(pl.Int64)
    return frame.with_columns(n_chars=chars).cast(TABLES["rows"])  # type: ignore[arg-type]


def dropped(part: int) -> np.ndarray:
    """Which rows of a part ingest drops: four in a hundred."""
    return generator(SEED, "dropped", part).random(PART) < 0.04


def ingested(part: int) -> dict[str, pl.DataFrame]:
    """Records of a file: its rows, and one in twenty that is an exact copy of one of them."""
    rows = rows_of(part)
    copies = generator(SEED, "copies", part).integers(0, PART, PART // 20)
    ids = pl.concat([rows["row_id"], rows["row_id"].gather(copies)])
    reason = pl.concat(
        [pl.repeat(None, PART, dtype=pl.String, eager=True), pl.Series(["exact_copy"] * len(copies))]
    )
    records = pl.DataFrame(
        {
            "source": ["pool"] * len(ids),
            "file": [f"pool-{part:03d}.jsonl"] * len(ids),
            "position": np.arange(len(ids)),
            "row_id": ids,
            "reason": reason,
        },
        schema=TABLES["records"],
    )
    return {"rows": rows, "records": records}


def settled(parts: int) -> dict[str, pl.DataFrame]:
    """Ingest's ledger: a line for each dropped row; and some suite items."""
    ids = pl.concat([row_ids(p, PART).filter(dropped(p)) for p in range(parts)])
    rng, n, items = generator(SEED, "settled"), len(ids), 2_000
    ledger = pl.DataFrame(
        {
            "row_id": ids,
            "stage": ["ingest"] * n,
            "round": np.zeros(n, np.int32),
            "decision": ["drop"] * n,
            "reason": pl.Series(DROPS).gather(rng.integers(0, len(DROPS), n)),
            "value": rng.random(n),
            "threshold": [0.8] * n,
            "twin": [None] * n,
        },
        schema=TABLES["ledger"],
    )
    suite = {
        "suite": "new",
        "suite_hash": "0" * 32,
        "distribution": "ood",
        "use": "judge",
        "world": 0,
        "round": 0,
    }
    suite_items = pl.DataFrame(
        {**{k: [v] * items for k, v in suite.items()}, "item_id": row_ids("items", items)}
        | {"cluster": ["c"] * items, "prompt": texts(rng, items, 2), "response": ["yes"] * items}
        | {"label": ["topic-00"] * items},
        schema=TABLES["suite_items"],
    )
    return {"ledger": ledger, "suite_items": suite_items}


def kept_of(parts: int) -> dict[str, pl.DataFrame]:
    """The pool without the dropped rows."""
    return {"rows": pl.concat([rows_of(p).filter(~dropped(p)) for p in range(parts)])}


def ledger_lines(ids: pl.Series, n: int, round: int, *purpose: object) -> pl.DataFrame:
    """n lines on these rows, in the rows' order; reasons by Zipf's law, a twin in one of five."""
    rng = generator(SEED, "ledger", round, *purpose)
    share = 1 / (np.arange(len(REASONS)) + 1.0)
    reason = rng.choice(len(REASONS), n, p=share / share.sum())
    twin = ids.gather(rng.integers(0, len(ids), n))
    return pl.DataFrame(
        {
            "row_id": ids.gather(np.sort(rng.integers(0, len(ids), n))),
            "stage": pl.repeat("score", n, eager=True),
            "round": np.full(n, round, np.int32),
            "decision": pl.Series([d for d, _ in REASONS.values()]).gather(reason),
            "reason": pl.Series(list(REASONS)).gather(reason),
            "value": rng.random(n).round(4),
            "threshold": np.array([t for _, t in REASONS.values()])[reason],
            "twin": pl.DataFrame({"twin": twin, "has": rng.random(n) < 0.2}).select(
                pl.when("has").then("twin")
            )["twin"],
        },
        schema=TABLES["ledger"],
    )


def flags(first: int, last: int, n: int, round: int) -> dict[str, pl.DataFrame]:
    """n ledger lines of a round on the rows of some parts."""
    ids = pl.concat([row_ids(p, PART) for p in range(first, last)])
    return {"ledger": ledger_lines(ids, n, round, first)}


@lru_cache(maxsize=1)
def _directions(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = generator(SEED, "directions", d)
    share = 1 / np.arange(1, 501)
    basis = rng.standard_normal((128, d), dtype=np.float32) / np.float32(np.sqrt(d))
    basis *= np.arange(1, 129, dtype=np.float32)[:, None] ** -0.5
    return rng.standard_normal((500, 128), dtype=np.float32), basis, share / share.sum()


def vectors(ids: pl.Series, d: int, part: int) -> pl.DataFrame:
    """`features`: 500 clusters of Zipf sizes in 128 directions of falling weight, and noise in all d."""
    rng, n = generator(SEED, "vectors", part), len(ids)
    centres, basis, share = _directions(d)
    place = centres[rng.choice(500, n, p=share)] + 0.6 * rng.standard_normal((n, 128), dtype=np.float32)
    x = place @ basis + rng.standard_normal((n, d), dtype=np.float32) * np.float32(0.5 / np.sqrt(d))
    nothing = {name: [None] * n for name in ("el2n", "correct")}
    return pl.DataFrame(
        {"row_id": ids, "proxy": [PROXY] * n, "feature": unit_rows(x).astype(np.float16)}
        | {"norm": rng.random(n) + 0.5, "nll": rng.random(n) * 4, **nothing}
        | {"n_tokens": rng.integers(20, 200, n)},
        schema=features_schema(d),
    )


def scored(part: int, d: int) -> dict[str, pl.DataFrame]:
    """Features, four scores and two regions of each row of a part."""
    ids, rng = row_ids(part, PART), generator(SEED, "scored", part)
    features = vectors(ids, d, part)
    scores = [
        pl.DataFrame(
            {"row_id": ids, "proxy": [PROXY] * PART, "scorer": [scorer] * PART, "value": rng.random(PART)},
            schema=TABLES["scores"],
        )
        for scorer in ("norm_v1", "nll_v1", "density_v1", "steer_error_v1")
    ]
    regions = [
        pl.DataFrame(
            {"row_id": ids, "proxy": [PROXY] * PART, "scale": [scale] * PART}
            | {"region": rng.integers(0, count, PART, np.int32), "distance": rng.random(PART)},
            schema=TABLES["regions"],
        )
        for scale, count in (("coarse", 60), ("fine", 500))
    ]
    return {"features": features, "scores": pl.concat(scores), "regions": pl.concat(regions)}


def synthetic(round: int, rows: int) -> dict[str, pl.DataFrame]:
    """A tenth as many new rows as there are kept ones, each with two parents; and their ledger lines."""
    n, rng = int(rows * 0.096), generator(SEED, "parents", round)
    pool = pl.concat([row_ids(p, PART) for p in range(3)])
    pairs = pl.DataFrame([pool.gather(rng.integers(0, len(pool), n)).alias(k) for k in "ab"])
    made = rows_of(f"synthetic-{round}", n, pairs.select(pl.concat_list("a", "b")).to_series())
    ledger = ledger_lines(made["row_id"], n, round, "add").with_columns(
        stage=pl.lit("synthesize"), decision=pl.lit("add"), reason=pl.lit("accepted")
    )
    return {"rows": made, "ledger": ledger}


def selected(part: int, round: int) -> dict[str, pl.DataFrame]:
    """A third of the rows of a part for each of two arms and two replicates."""
    ids = row_ids(part, PART)
    frames = []
    for arm in ("candidate", "random"):
        for replicate in (0, 1):
            rng = generator(SEED, "selected", part, round, arm, replicate)
            chosen = ids.filter(rng.random(PART) < 1 / 3)
            n = len(chosen)
            frames.append(
                pl.DataFrame(
                    {"row_id": chosen, "round": [round] * n, "phase": ["confirm"] * n, "arm": [arm] * n}
                    | {"replicate": [replicate] * n, "rank": part * PART + rng.permutation(n)},
                    schema=TABLES["selections"],
                )
            )
    return {"selections": pl.concat(frames)}


def evaluated(round: int) -> dict[str, pl.DataFrame]:
    """Models of both arms, their outcomes on the suite, one comparison, one decision."""
    items, rng = row_ids("items", 2_000), generator(SEED, "evaluated", round)
    names = [(f"r{round}-{arm}-{i}", arm, i) for arm in ("candidate", "random") for i in (0, 1)]
    models = [
        [name, "compared", round, "confirm", arm, i, "base", 300_000, 1_000, 10**7, i, 1.0]
        for name, arm, i in names
    ]
    outcomes = [
        pl.DataFrame(
            {"model": [name] * len(items), "suite": ["new"] * len(items), "item_id": items}
            | {"correct": rng.random(len(items)) < 0.6, "p_correct": rng.random(len(items))}
            | {"nll": rng.random(len(items))},
            schema=TABLES["outcomes"],
        )
        for name, _, _ in names
    ]
    found = [round, "confirm", "candidate", "random", "ood_mean", "accuracy", 2.5, 0.5, 4.5, 0.01, 2, 2.0]
    decision = [NAME, round, "publish", "beat every control", "coverage", 0.05, 0.01, None, "{}"]
    return {
        "models": pl.DataFrame(models, schema=TABLES["models"], orient="row"),
        "outcomes": pl.concat(outcomes),
        "comparisons": pl.DataFrame([found], schema=TABLES["comparisons"], orient="row"),
        "decisions": pl.DataFrame([decision], schema=TABLES["decisions"], orient="row"),
    }
