"""`gradus estimate` beside what scoring takes: seconds of one core and peak memory of a worker, predicted and measured.

`python tests/benchmarks/estimate.py [--quick]`; the last line is JSON with the worst relative errors. Each case is a
recipe with a corpus of mixed lengths; pretrained models are drawn at random and saved beside it. Estimate and scoring
each run in a process of their own, one thread, in turns; seconds are CPU seconds, medians of the rounds. A worker
builds or loads the model, encodes its rows, scores them shard by shard and lays the features out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")} | {"POLARS_MAX_THREADS": "1"}
WORDS = [
    a + b
    for a in ("ka", "lo", "mi", "ren", "so", "tu", "vel", "zan")
    for b in ("ba", "di", "for", "ge", "lin", "mo")
]
SHAPES = {
    "qwen": {
        "kind": "qwen2",
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    },
    "gpt2": {
        "kind": "gpt2",
        "vocab_size": 8192,
        "n_embd": 256,
        "n_layer": 6,
        "n_head": 4,
        "n_positions": 512,
    },
    "qwen-wide": {
        "kind": "qwen2",
        "vocab_size": 50_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    },
}
CASES = {  # proxy fields, rows, median words of a row
    "demo decoder": (
        'kind = "decoder"\nlayers = 2\nwidth = 64\nmax_tokens = 24\nfeature_dimensions = 512',
        2000,
        9,
    ),
    "head on MiniLM": ('kind = "head"', 9000, 12),
    "decoder 4 x 128": (
        'kind = "decoder"\nlayers = 4\nwidth = 128\nmax_tokens = 256\nfeature_dimensions = 1024',
        1200,
        40,
    ),
    "qwen": ('kind = "causal_lm"\nmodel = "{model}"\nfeature_dimensions = 1024', 160, 30),
    "gpt2": ('kind = "causal_lm"\nmodel = "{model}"\nfeature_dimensions = 1024', 240, 30),
    "qwen-wide": ('kind = "causal_lm"\nmodel = "{model}"\nfeature_dimensions = 1024', 48, 30),
    "decoder 3 x 96, short rows": (
        'kind = "decoder"\nlayers = 3\nwidth = 96\nmax_tokens = 64\nfeature_dimensions = 768',
        10_000,
        14,
    ),
    "decoder 3 x 96, long rows": (
        'kind = "decoder"\nlayers = 3\nwidth = 96\nmax_tokens = 256\nfeature_dimensions = 1024',
        1000,
        150,
    ),
    "head, 5000 rows": ('kind = "head"\nwidth = 256\nfeature_dimensions = 768', 5000, 12),
}
RECIPE = """format = 1
name = "estimate"
[[source]]
name = "pool"
path = "pool.jsonl"
[[suite]]
name = "held"
holdout_rows = 0.1
distribution = "ood"
[proxy]
{proxy}
[budget]
rows = 20
"""


def make_case(folder: Path, name: str) -> None:
    """The recipe, its corpus and its model in a folder."""
    from curation.randomness import generator

    proxy, n, median = CASES[name]
    rng = generator(3, "estimate", name)
    with (folder / "pool.jsonl").open("w") as file:
        for i in range(n):
            k = int(min(180, max(3, rng.lognormal(0, 0.7) * median)))
            words = [WORDS[j] for j in rng.integers(0, len(WORDS), k)]
            cut = max(1, k * 2 // 3)
            row = {"prompt": f"{i} " + " ".join(words[:cut]), "response": " ".join(words[cut:]) or "so"}
            file.write(json.dumps(row | {"label": WORDS[i % 30]}) + "\n")
    if name in SHAPES:
        save_model(folder / "model", dict(SHAPES[name]))
    (folder / "recipe.toml").write_text(RECIPE.format(proxy=proxy.format(model=folder / "model")))


def save_model(folder: Path, shape: dict) -> None:
    """A model of that shape with drawn weights, and a small tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.hub_models import drawn, tiny_tokenizer

    config = AutoConfig.for_model(shape.pop("kind"), bos_token_id=1, eos_token_id=2, **shape)
    drawn(AutoModelForCausalLM.from_config(config), 7).save_pretrained(folder)
    tiny_tokenizer(bos=False, chat=False).save_pretrained(folder)


def run_of(folder: Path):
    from flows.recipe import load_recipe
    from flows.run import Run

    return Run(None, load_recipe(folder / "recipe.toml"), folder)  # type: ignore[arg-type]


def predict(folder: Path) -> dict[str, float]:
    """What `gradus estimate` says of scoring."""
    from flows.estimate import scoring

    begun = time.perf_counter()
    found = scoring(run_of(folder))
    return {"seconds": found.core_seconds, "mb": found.memory_mb, "took": time.perf_counter() - begun}


def score(folder: Path) -> dict[str, float]:
    """What a worker takes, from its rows in the lake to a shard's table."""
    import numpy as np
    import polars as pl

    from curation.proxies import build_model, encode, make_reader
    from curation.score.gradients import row_gradients, sketch_of
    from flows.features import feature_frame
    from flows.pretrained import pretrained_of
    from storage.shards import write_parquet

    run = run_of(folder)
    recipe, proxy = run.recipe, run.recipe.proxy
    lines = [json.loads(line) for line in (folder / "pool.jsonl").open()]
    frame = pl.DataFrame(lines).with_columns(pl.Series("row_id", [f"{i:032x}" for i in range(len(lines))]))
    vectors, width = None, 384 if proxy.kind == "head" else 0
    if width:
        made = np.random.Generator(np.random.Philox(1)).standard_normal((len(frame), width), dtype=np.float32)
        vectors = dict(zip(frame["row_id"].to_list(), made, strict=True))
    reader = make_reader(proxy, frame, width, pretrained_of(proxy))
    model = build_model(proxy, reader, 1).eval().requires_grad_(False)
    start = time.process_time()
    for k, part in enumerate(frame.iter_slices(recipe.score.shard_rows)):
        found = row_gradients(model, encode(reader, part, vectors), sketch_of(proxy, 7))
        write_parquet(
            folder / f"{os.getpid()}-{k}.parquet", feature_frame(part["row_id"].to_list(), "p", found)
        )
    seconds = time.process_time() - start
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return {"seconds": seconds, "mb": int(peak) * 1024 / 1e6}


def child(what: str, folder: Path) -> dict[str, float]:
    """`predict` or `score` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, "--folder", str(folder)]
    done = subprocess.run(command, env=os.environ | THREADS, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round, the smaller models")
    parser.add_argument("--only", help="only the case of this name")
    parser.add_argument("--child", choices=["predict", "score"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps((predict if args.child == "predict" else score)(args.folder)))
        return
    names = [args.only] if args.only else list(CASES)[: 5 if args.quick else None]
    errors = {"seconds": [], "mb": []}
    print(
        f"{'case':<27}{'rows':>6}{'seconds predicted':>19}{'measured':>10}{'error':>8}{'MB predicted':>14}{'measured':>10}{'error':>8}{'took':>7}"
    )
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_case(folder, name)
            rounds = [
                (child("predict", folder), child("score", folder)) for _ in range(1 if args.quick else 3)
            ]
        said, took = ({k: statistics.median(r[i][k] for r in rounds) for k in rounds[0][i]} for i in (0, 1))
        error = {k: said[k] / took[k] - 1 for k in errors}
        for k, e in error.items():
            errors[k].append(abs(e))
        print(
            f"{name:<27}{CASES[name][1]:>6}{said['seconds']:>19.2f}{took['seconds']:>10.2f}{error['seconds']:>8.0%}"
            f"{said['mb']:>14.0f}{took['mb']:>10.0f}{error['mb']:>8.0%}{said['took']:>6.1f}s",
            flush=True,
        )
    print(
        json.dumps(
            {
                "worst_time_error": round(max(errors["seconds"]), 3),
                "worst_memory_error": round(max(errors["mb"]), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
