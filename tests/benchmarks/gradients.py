"""Per-row gradient features: this engine beside every competitor, on the same model and rows, in one run.

The first call makes `.bench/peers`, an environment of its own for the competitors (once; needs the network), and
trains each model briefly; both are kept. Then all competitors take turns in rounds on one core (CPU seconds) and on
two (wall seconds). `share` is the limit's seconds over a competitor's, round by round, the median of rounds; the
limit is the stock forward and the activation-gradient backward of the same batches with the weights frozen and a
fused loss, in fp32 and without any features. Fidelity is against each row's exact gradient of the hidden linear
layers, computed alone. Memory is the peak above the process at rest.

The last line is JSON of the first model on one core: limit_ratio and bf16_limit_ratio (our speed over the fp32
limit's), peer_ratio (our speed over the fastest peer's at equal precision, the smaller of the precisions),
bytes_ratio (its bytes a row over ours), batch1_ratio (our speed over the published way's), cosine_gap (ideal minus
ours at d = 1024) and gvendi_1m_seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from peers import environment  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--quick", action="store_true", help="one model, one core, shorter rows: under 5 minutes, not 40"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="qwen, gpt2, minilm, embedded, or a local Hugging Face folder; repeat for more (default: all; quick: qwen)",
    )
    parser.add_argument(
        "--corpus", type=Path, help=".jsonl or .txt (default: Python's own documentation and source)"
    )
    parser.add_argument("--rows", type=int, help="rows a model (default: 96; quick: 64)")
    parser.add_argument("--rounds", type=int, help="rounds (default: 5; quick: 3)")
    parser.add_argument("--widths", action="store_true", help="this engine at other fold widths too")
    parser.add_argument(
        "--max-batch-tokens", type=int, help="padded tokens of a batch (default: the engine's for the model)"
    )
    parser.add_argument(
        "--only", help="only competitors whose name contains one of these words, split by commas"
    )
    parser.add_argument(
        "--no-peers", action="store_true", help="this Python and this project's own rows only"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.worker:
        return work(args, **json.loads(args.worker))
    started = time.perf_counter()
    if args.no_peers:
        os.environ.update(environment.SETTINGS, PYTHONPATH=str(environment.ROOT))
    else:
        environment.enter(__file__, sys.argv[1:])
    names = args.model or (["qwen"] if args.quick else ["qwen", "gpt2", "minilm", "embedded"])
    first: list[dict] = []
    for name in names:
        for threads in (1,) if args.quick else (1, 2):
            found = run_worker(args, name, threads, main=not first)
            first = first or found
    figures = summary(first)
    figures["gvendi_1m_seconds"] = gvendi_seconds()
    figures["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(figures))
    return 0


def run_worker(args: argparse.Namespace, name: str, threads: int, main: bool) -> list[dict]:
    """The rows of one model's table, measured by a process with that many threads from its start.

    The `main` table, which the last line is of, gets more rounds and time.
    """
    rounds = args.rounds or (5 if main and not args.quick else 3)
    seconds = 140 if args.quick else 420 if main else 150
    with tempfile.NamedTemporaryFile(suffix=".json") as told:
        order = {"name": name, "threads": threads, "rounds": rounds, "seconds": seconds, "path": told.name}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", json.dumps(order)]
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environ, check=True)
        found = json.loads(Path(told.name).read_text())
    print_table(found)
    return found["rows"]


def work(args: argparse.Namespace, name: str, threads: int, rounds: int, seconds: float, path: str) -> int:
    """One model measured in this process; the result goes to the file `path`."""
    import torch
    from peers.corpus import read_corpus
    from peers.models import make_case
    from peers.rounds import LIMIT, competitors, measure

    from curation.score.gradients import default_batch_tokens

    torch.set_num_threads(os.cpu_count() or 1)
    n = args.rows or (64 if args.quick else 96)
    steps = 25 if args.quick else 100
    most = 112 if args.quick else 200
    case = make_case(
        name, read_corpus(args.corpus), n, steps, most, args.max_batch_tokens or 0, environment.HOME
    )
    if not args.max_batch_tokens:
        case = replace(case, max_batch_tokens=default_batch_tokens(case.width, "cpu"))
    who = competitors(args.widths)
    if args.no_peers:
        who = [one for one in who if not one.peer and one.module != "published"]
    if args.only:
        words = [LIMIT, *args.only.split(",")]
        who = [one for one in who if any(word in one.name for word in words)]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        rows = measure(case, who, threads, rounds, 1 if args.quick else 2, seconds)
    size = sum(p.numel() for p in case.model.parameters())
    facts = {
        "model": case.name,
        "threads": threads,
        "n": n,
        "tokens": case.tokens,
        "size": size,
        "rows": rows,
    }
    Path(path).write_text(json.dumps(facts))
    return 0


def median(values: list[float]) -> float:
    """The middle value, nan when there is none."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2 if ordered else math.nan


def share(row: dict, limit: dict) -> float:
    """The limit's seconds over the row's, round by round."""
    return median([a / b for a, b in zip(limit["seconds"], row["seconds"], strict=False)])


def print_table(found: dict) -> None:
    """One model's table on one or two cores."""
    rows, n, tokens = found["rows"], found["n"], found["tokens"]
    limit = rows[0]
    clock = "CPU seconds" if found["threads"] == 1 else "wall seconds"
    print(
        f"\n{found['model']}: {found['size'] / 1e6:.1f} M parameters, {n} rows, {tokens} tokens, "
        f"{found['threads']} core(s), {clock}, {len(limit['seconds'])} rounds"
    )
    head = (
        "",
        "rows/s",
        "tokens/s",
        "share",
        "peak MB",
        "bytes/row",
        "d",
        "cosines",
        "G-Vendi",
        "rank",
        "purity",
        "nn10",
    )
    form = "{:<34}{:>8}{:>9}{:>7}{:>9}{:>11}{:>9}{:>9}{:>9}{:>7}{:>8}{:>6}  {}"
    print(form.format(*head, ""))
    for row in rows:
        if "fails" in row:
            print(f"{row['name']:<34}  fails: {row['fails'][:150]}")
            continue
        seconds = median(row["seconds"])
        cells = [
            _cell(n / seconds, ".1f"),
            _cell(tokens / seconds, ".0f"),
            _cell(share(row, limit), ".3f"),
            _cell(row.get("peak_mb"), ".0f"),
            _cell(row.get("bytes_a_row") or None, ".0f"),
            _cell(row.get("d"), ".0f"),
            _cell(row.get("pear"), ".4f"),
            _cell(row.get("gvendi_error"), "+.1%"),
            _cell(row.get("gvendi_rank"), ".3f"),
            _cell(row.get("purity"), ".2f"),
            _cell(row.get("nn10"), ".2f"),
        ]
        remark = row.get("remark", "")
        print(form.format(row["name"], *cells, remark), flush=True)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def summary(rows: list[dict]) -> dict[str, object]:
    """The figures of the last line, from the first model on one core; null where nothing was measured."""
    limit = rows[0]
    shares = {row["name"]: share(row, limit) for row in rows if row["seconds"]}
    named = {row["name"]: row for row in rows}

    def best(precision: str, ours: bool) -> str | None:
        chosen = [
            name
            for name in shares
            if named[name]["precision"] == precision
            and (name == f"ours {precision}" if ours else named[name]["peer"])
        ]
        return max(chosen, key=shares.__getitem__, default=None)

    mine = {precision: best(precision, True) for precision in ("fp32", "bf16")}
    pairs = [
        (shares[name] / shares[peer], peer, name)
        for precision, name in mine.items()
        if name and (peer := best(precision, False))
    ]
    ratio, peer, name = min(pairs, default=(None, None, None))
    dense = shares.get("published: one row, dense")
    ideal = next((row["pear"] for row in rows if row["name"].startswith("ideal")), None)
    fp32, bf16 = mine["fp32"], mine["bf16"]
    return {
        "benchmark": "gradients",
        "limit_ratio": _round(shares.get(fp32)),
        "bf16_limit_ratio": _round(shares.get(bf16)),
        "peer_ratio": _round(ratio),
        "peer_name": peer,
        "bytes_ratio": _round(named[peer]["bytes_a_row"] / named[name]["bytes_a_row"] if peer else None),
        "batch1_ratio": _round(shares[fp32] / dense if fp32 and dense else None),
        "cosine_gap": _round(ideal - named[fp32]["pear"] if fp32 and ideal else None, 4),
    }


def _round(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def gvendi_seconds() -> float | None:
    """Seconds of G-Vendi of a million rows of 1024 numbers, on two cores, in a process of its own."""
    code = "import json, diversity; print(json.dumps(diversity.measure_gvendi(1_000_000, 1024)))"
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"G-Vendi of a million rows fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return None
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return _round(told[0], 1)


if __name__ == "__main__":
    sys.exit(main())
