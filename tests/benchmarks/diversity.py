"""Diversity and selection at scale: G-Vendi and greedy log-det of a million rows, beside plain numpy.

`python tests/benchmarks/diversity.py [--quick]`; the last line is JSON. Features are synthetic: clusters of Zipf sizes
with a decaying spectrum, unit rows in float16. Every figure is of a fresh process; memory is its peak above what it
held before the call, so a set that selection reads in place is not counted. `--quick` takes a tenth of the rows and
scales their times up by ten: too high for log-det, whose cost of a pick hardly depends on the rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from curation.logdet import logdet_order, unit_rows
from curation.randomness import generator
from curation.score.diversity import diversity_of, moments_of

ROWS, PICKS, DIMENSIONS = 1_000_000, 10_000, 1024
CLUSTERS = 2000
BLOCK = 8192


def write_features(path: Path, n: int, d: int) -> None:
    """Float16 unit rows, (n, d), in a plain file."""
    scale = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    rng = generator(7, "clustered features", n, d)
    centres = rng.standard_normal((CLUSTERS, d), dtype=np.float32) * scale
    size = 1 / np.arange(1, CLUSTERS + 1)
    with path.open("wb") as file:
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            own = rng.standard_normal((m, d), dtype=np.float32) * (0.5 * scale)
            rows = centres[rng.choice(CLUSTERS, m, p=size / size.sum())] + own
            unit_rows(rows).astype(np.float16).tofile(file)


def blocks_in(path: Path, n: int, d: int) -> Iterator[np.ndarray]:
    """The first n rows of such a file, as they would come from shards."""
    with path.open("rb") as file:
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            yield np.fromfile(file, dtype=np.float16, count=m * d).reshape(m, d)


def peak_mb() -> float:
    """The most memory this process ever held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(work: Callable[[], float]) -> dict[str, float]:
    """Seconds, seconds of all cores together, memory above the start, and what the work returned."""
    before, start, busy = peak_mb(), time.perf_counter(), time.process_time()
    value = work()
    cpu, seconds = time.process_time() - busy, time.perf_counter() - start
    return {"seconds": seconds, "cpu": cpu, "mb": peak_mb() - before, "value": value}


def child(kind: str, path: Path, n: int, d: int, picks: int) -> dict[str, float]:
    """One measurement, in the process that it runs in."""
    if kind == "gvendi":
        return measured(lambda: diversity_of(moments_of(blocks_in(path, n, d))).g_vendi)
    if kind == "gvendi_numpy":
        return measured(lambda: plain_gvendi(np.concatenate(list(blocks_in(path, n, d))).astype(np.float64)))
    z = np.fromfile(path, dtype=np.float16, count=n * d).reshape(n, d)
    active = n if kind == "logdet_exact" else None if n > 8192 else 1024
    return measured(lambda: float(logdet_order(z, picks, active=active)[1].sum()))


def plain_gvendi(x: np.ndarray) -> float:
    """The score as one would write it."""
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(x.T @ x / len(x))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def in_child(kind: str, path: Path, n: int, d: int, picks: int = 0) -> dict[str, float]:
    """One measurement, in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, str(path), str(n), str(d), str(picks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_gvendi(n: int, d: int) -> tuple[float, float]:
    """Seconds and MB above the start that all diversity scores of n rows in d dimensions take, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.f16"
        write_features(path, n, d)
        found = in_child("gvendi", path, n, d)
    return found["seconds"], found["mb"]


def main() -> None:
    quick = "--quick" in sys.argv
    part = 10 if quick else 1
    n, picks, d = ROWS // part, PICKS, DIMENSIONS
    small_n, small_picks = (5_000, 300) if quick else (20_000, 1000)
    plain_n = 50_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.f16"
        write_features(path, n, d)
        gvendi = in_child("gvendi", path, n, d)
        few = in_child("gvendi", path, plain_n, d)
        plain = in_child("gvendi_numpy", path, plain_n, d)
        logdet = in_child("logdet", path, n, d, picks)
        lazy = in_child("logdet", path, small_n, d, small_picks)
        exact = in_child("logdet_exact", path, small_n, d, small_picks)
    gap = 1 - lazy["value"] / exact["value"]
    full_plain = plain["seconds"] * ROWS / plain_n
    full_exact = exact["seconds"] * (ROWS / small_n) * (PICKS / small_picks)
    lines = [
        (f"all diversity scores, {n} rows", gvendi, f"G-Vendi {gvendi['value']:.4f}"),
        (f"  the same, {plain_n} rows", few, f"G-Vendi {few['value']:.7f}"),
        (f"  numpy float64, {plain_n} rows", plain, f"{plain['value']:.7f}; 1 M rows: {full_plain:.0f} s"),
        (f"log-det, {picks} of {n}", logdet, f"{logdet['value']:.2f} nats"),
        (f"  the same, {small_picks} of {small_n}", lazy, f"{lazy['value']:.4f} nats, gap {gap:.1e}"),
        (
            f"  plain greedy, {small_picks} of {small_n}",
            exact,
            f"{exact['value']:.4f}; 1 M: {full_exact:.0f} s",
        ),
    ]
    print(f"{'d = ' + str(d):<38}{'seconds':>9}{'CPU':>7}{'MB':>7}  result")
    for name, found, note in lines:
        print(f"{name:<38}{found['seconds']:>9.1f}{found['cpu']:>7.1f}{found['mb']:>7.0f}  {note}")
    figures = {
        "gvendi_1m_seconds": round(gvendi["seconds"] * part, 2),
        "gvendi_1m_mb": round(gvendi["mb"], 1),
        "logdet_1m_seconds": round(logdet["seconds"] * part, 1),
        "logdet_gap": gap,
        "logdet_1m_mb": round(logdet["mb"], 1),
        "quick": quick,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    if "--child" in sys.argv:
        kind, file, *numbers = sys.argv[sys.argv.index("--child") + 1 :]
        print(json.dumps(child(kind, Path(file), *map(int, numbers))))
    else:
        main()
