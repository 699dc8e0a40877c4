"""Writes the lake of the kill test: three artifacts, each made from the last, three versions."""

import sys

import polars as pl

from curation.rows import ROWS, SCORES
from storage.artifacts import Lake, fingerprint
from storage.catalog import build_catalog


def rows(start: int, n: int) -> pl.DataFrame:
    texts = [f"text {i} " * 20 for i in range(start, start + n)]
    frame = pl.DataFrame({"row_id": [f"{i:05d}" for i in range(start, start + n)], "prompt": texts})
    return frame.select(
        *(
            pl.col(name) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in ROWS.items()
        )
    )


def main(root: str) -> None:
    lake, parents = Lake(root), []
    for stage in ("ingest", "score", "select"):
        fp = fingerprint(stage, "1", {"n": 300}, parents)
        with lake.draft(stage, "kill", fp, {"stage": stage, "parents": parents}) as draft:
            for i in range(6):
                frame = rows(300 * i, 300)
                scores = frame.select("row_id", proxy=pl.lit("p"), scorer=pl.lit("s_v1"), value=pl.lit(1.5))
                tables = {"rows": frame, "scores": scores.match_to_schema(SCORES)}
                draft.write_shard(f"{i:03d}", tables, {f"{i}.bin": bytes(5000)})
            parents = [str(draft.publish({"rows": 1800}))]
        before = len(lake.dataset_versions("kill"))
        lake.publish_dataset("kill", rows(0, 300), "base", None, "publish", "", before, parents[0])
        lake.spend_alpha("kill", "judge", 0, len(stage), 0.05, stage)
        lake.open_sealed("kill", stage, "k")
        lake.save_run("run", {"state": stage, "text": "x" * 5000})
        build_catalog(lake)


if __name__ == "__main__":
    main(sys.argv[1])
