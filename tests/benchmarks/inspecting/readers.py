"""Readers while writers publish: what went wrong, and how many questions were answered meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import duckdb
import polars as pl
from inspecting.lake import NAME, ledger_lines, row_ids, rows_of, sentences

from storage.artifacts import Lake, fingerprint
from storage.catalog import build_catalog, catalog_path, query

READERS, WRITERS = 4, 2
TORN = (
    "select a.artifact, (a.tables->>'rows')::bigint as published, count(r.artifact) as seen "
    "from artifacts a join rows r using (artifact) where a.damage is null group by all having published != seen"
)


def contend(root: Path, seconds: float) -> dict[str, float]:
    """Questions, publications and errors of so many seconds, on a lake that shares the files of `root`."""
    copy = root.with_name("contended")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        root, copy, copy_function=os.link, ignore=shutil.ignore_patterns("*.duckdb", "index", "work")
    )
    build_catalog(Lake(copy))
    context = multiprocessing.get_context("spawn")
    told, start = context.Queue(), context.Barrier(WRITERS + READERS)
    jobs = [(_write, i) for i in range(WRITERS)] + [(_read, i) for i in range(READERS)]
    people = [context.Process(target=job, args=(str(copy), i, start, seconds, told)) for job, i in jobs]
    for person in people:
        person.start()
    notes = [told.get() for _ in people]
    for person in people:
        person.join()
    shutil.rmtree(copy)
    errors = [line for _, _, wrong in notes for line in wrong]
    for line in errors[:5]:
        print(f"  {line}")
    return {
        "questions": sum(n for who, n, _ in notes if who == "reader"),
        "published": sum(n for who, n, _ in notes if who == "writer"),
        "errors": len(errors),
    }


def _write(root: str, which: int, start: Barrier, seconds: float, told: multiprocessing.Queue) -> None:
    lake, done, wrong = Lake(root), 0, []
    ids = row_ids("writer", which, 500)
    sentences()
    start.wait()
    until = time.time() + seconds
    while time.time() < until:
        fp = fingerprint("written", "bench", {"writer": which, "n": done}, [])
        try:
            with lake.draft("written", NAME, fp, {"stage": "written"}) as draft:
                draft.write_shard("a", {"rows": rows_of(f"{which}-{done}-a", 200)})
                draft.write_shard(
                    "b", {"rows": rows_of(f"{which}-{done}-b", 300), "ledger": ledger_lines(ids, 500, 1)}
                )
                draft.publish()
            lake.save_run(f"writer-{which}", {"state": "running", "n": done, "artifacts": {}, "steps": []})
            done += 1
        except Exception as error:
            wrong.append(f"writer {which}: {type(error).__name__}: {error}")
        time.sleep(0.2)
    told.put(("writer", done, wrong))


def _read(root: str, which: int, start: Barrier, seconds: float, told: multiprocessing.Queue) -> None:
    lake, done, wrong = Lake(root), 0, []
    ask = (_through_gradus, _through_duckdb)[which % 2]
    start.wait()
    until = time.time() + seconds
    while time.time() < until:
        try:
            wrong += [f"reader {which}: torn: {row}" for row in ask(lake).rows()]
            done += 1
        except Exception as error:
            wrong.append(f"reader {which}: {type(error).__name__}: {error}")
    told.put(("reader", done, wrong))


def _through_gradus(lake: Lake) -> pl.DataFrame:
    return query(lake, TORN)


def _through_duckdb(lake: Lake) -> pl.DataFrame:
    with duckdb.connect(catalog_path(lake), read_only=True, config={"threads": 2}) as connection:
        return pl.DataFrame(connection.sql(TORN).to_arrow_table())
