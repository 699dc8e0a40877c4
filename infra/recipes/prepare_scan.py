"""The SCAN add-primitive split for `jump`: a pool that shows `jump` only alone, and three suites.

Pool: the official train commands (their many copies of `jump` included) but for 753 distinct ones, drawn by
content hash, that become the suite `id`; `jump` itself stays in the pool. Of the official test commands 1,000
are drawn by content hash: 800 are the suite `jump`, 200 are `sealed`; the others are written nowhere, so that
a generator is free to make them. A folder of Parquet copies has an ID test of its own, cut from train by a
draw that is not recorded: it is put back first, so that both forms of the source give the same files.
Data: Lake and Baroni 2018, BSD.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prepare_common import Item, by_content, is_local, main, need, read_copy, shuffled

HELP = (
    "clone https://github.com/brendenlake/SCAN (add_prim_split/tasks_{train,test}_addprim_jump.txt), "
    "then: python infra/recipes/prepare_scan.py --source SCAN"
)
ID_ITEMS, JUMP_ITEMS, SEALED_ITEMS = 753, 800, 200
PRIMITIVE = "jump"


def load(source: Path) -> tuple[list[Item], list[Item]]:
    """The official train and test commands, copies included."""
    if is_local(source):
        splits = [
            [*read_copy(source, "train"), *read_copy(source, "id_test")],
            read_copy(source, "ood_test__addprim_jump"),
        ]
        train, test = ([{"prompt": r["prompt"], "response": r["response"]} for r in rows] for rows in splits)
        return train, test
    folder = source / "add_prim_split"
    train, test = (
        read_tasks(need(folder / f"tasks_{split}_addprim_jump.txt", HELP)) for split in ("train", "test")
    )
    return train, test


def read_tasks(path: Path) -> list[Item]:
    """Rows of one official file: a line is `IN: <command> OUT: <actions>`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.removeprefix("IN: ").split(" OUT: ") for line in lines if line.strip())
    return [{"prompt": command.strip(), "response": actions.strip()} for command, actions in pairs]


def prepare(source: Path, seed: int) -> dict[str, list[Item]]:
    """Rows of each file by its stem."""
    train, test = load(source)
    distinct = {row["prompt"]: row for row in train if row["prompt"] != PRIMITIVE}
    ids = shuffled(seed, "id", distinct.values())[:ID_ITEMS]
    held_out = {row["prompt"] for row in ids}
    pool = [row for row in train if row["prompt"] not in held_out]
    kept = shuffled(seed, "jump", test)
    files = {
        "pool": pool,
        "id": ids,
        "jump": kept[:JUMP_ITEMS],
        "sealed": kept[JUMP_ITEMS : JUMP_ITEMS + SEALED_ITEMS],
    }
    return {stem: by_content(rows) for stem, rows in files.items()}


if __name__ == "__main__":
    sys.exit(main("scan", (__doc__ or "").splitlines()[0], prepare))
