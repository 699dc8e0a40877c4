"""While writers publish and catalogs are swapped, no query of another process fails or sees half of anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lakes import ingested, rows

from storage.artifacts import Lake
from storage.catalog import build_catalog

TESTS, REPO = Path(__file__).parent, Path(__file__).parents[2]
SECONDS, QUERIES, READERS = 60, 1000, 4
LIMIT_SECONDS = 600  # of a machine so busy that a minute is not enough for a thousand queries

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[3])
from lakes import ingested, rows, scores
from storage.artifacts import Lake
from storage.catalog import build_catalog
lake, me, n, end = Lake(sys.argv[1]), int(sys.argv[2]), 0, time.time() + float(sys.argv[4])
while time.time() < end:
    n += 1
    with lake.draft("ingest" if n % 2 else "score", "x", f"{me * 10**6 + n:012x}", {"stage": "long run"}) as draft:
        for key in ("a", "b", "c"):
            draft.write_shard(key, ingested() if n % 2 else {"scores": scores(50 + n)})
            time.sleep(0.01)
        ref = draft.publish()
    if n % 5 == 0:
        lake.publish_dataset(f"w{me}", rows(10 + n), "base", None, "base", "", 1, str(n))
    lake.add_cost(f"w{me}", {"stage": "ingest", "seconds": 1.0})
    steps = [{"stage": "ingest", "round": 0, "phase": "", "artifact": str(ref), "reused": False}] if n % 2 else []
    lake.save_run(f"w{me}", {"started": str(me), "state": "running", "artifacts": {"ingest": str(ref)} if n % 2 else {}, "steps": steps})
    if n % 3 == 0:
        build_catalog(lake)
print(n)
"""

# Each query says a pair of numbers that are equal in every state of the lake.
READER = """
import json, sys, time
import duckdb
from storage.artifacts import Lake
from storage.catalog import catalog_path, query
QUERIES = [
    "select (select coalesce(sum(rows), 0) from artifacts where kind = 'score'), (select count(*) from scores)",
    "select (select sum(rows) from datasets), (select count(*) from dataset_rows)",
    "select max(read), max(kept) + sum(dropped) from accounting where source = 'tickets'",
    "select count(distinct artifact) * 30, sum(dropped) + max(kept) * count(distinct artifact) from accounting_all where source = 'tickets'",
    "select (select sum(json_extract(tables, '$.ledger')::int) from artifacts where kind = 'ingest'), (select count(*) from ledger)",
    "select count(*), count(distinct row_id) from curated('w1')",
]
lake, plain, least = Lake(sys.argv[1], create=False), sys.argv[2] == "plain", int(sys.argv[4])
end = time.time() + float(sys.argv[3])
asked, faults, seen = 0, [], set()
while time.time() < end or asked < least:
    sql = QUERIES[asked % len(QUERIES)]
    try:
        if plain:
            with duckdb.connect(catalog_path(lake), read_only=True, config={"threads": 1}) as connection:
                one, two = connection.execute(sql).fetchall()[0]
        else:
            one, two = query(lake, sql).row(0)
        seen.add((asked % len(QUERIES), one))
        if one != two or one is None:
            faults.append(f"{sql}: {one} and {two}")
    except Exception as error:
        faults.append(f"{sql}: {type(error).__name__} {error}")
    asked += 1
print(json.dumps({"asked": asked, "faults": faults[:5], "states": len(seen)}))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_thousand_queries_while_a_long_run_writes(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    with lake.draft("ingest", "x", "0" * 12, {}) as draft:
        for key in ("a", "b", "c"):
            draft.write_shard(key, ingested())
        draft.publish()
    lake.publish_dataset("w1", rows(5), "base", None, "base", "", 1, "first")
    build_catalog(lake)
    writers = [start(WRITER, lake.root, me, TESTS, SECONDS) for me in (1, 2)]
    kinds = ("plain", "query") * (READERS // 2)
    readers = [start(READER, lake.root, kind, SECONDS, QUERIES // READERS) for kind in kinds]
    told = [process.communicate(timeout=LIMIT_SECONDS) for process in readers]
    made = [process.communicate(timeout=LIMIT_SECONDS) for process in writers]
    assert [p.returncode for p in writers + readers] == [0] * 6, [err for _, err in made + told]
    found = [json.loads(out) for out, _ in told]
    assert [fault for one in found for fault in one["faults"]] == [], found
    assert sum(one["asked"] for one in found) >= QUERIES, found
    assert max(one["states"] for one in found) > 9  # the lake was seen to grow
    assert min(int(out) for out, _ in made) > 5
