"""All competitors on one case in interleaved rounds: seconds, peak memory, features' fidelity."""

from __future__ import annotations

import ctypes
import gc
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peers.case import Case, Run, Watch
from peers.fidelity import cosines, cosines_of, exact_gram, ideal_cosines, measures

D = 1024
LIMIT = "the limit"


@dataclass(frozen=True)
class Competitor:
    """Who runs, with which settings, at which precision; `slow` ones run fewer rounds, peers count in peer_ratio."""

    name: str
    module: str
    settings: dict = field(default_factory=dict)
    precision: str = "fp32"
    slow: bool = False
    peer: bool = True


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (avx512_bf16 or AMX)."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def competitors(widths: bool = False) -> list[Competitor]:
    """All of them, in the order of a round; `widths`: this engine at other fold widths too."""
    found = [Competitor(LIMIT, "limit", peer=False)]
    precisions = ("fp32", "bf16") if native_bf16() else ("fp32",)
    for precision in precisions:
        found.append(Competitor(f"ours {precision}", "ours", {"precision": precision}, precision, peer=False))
    for width in (128, 256, 384) if widths else ():
        found.append(Competitor(f"ours fp32, fold {width}", "ours", {"fold_width": width}, peer=False))
    for precision in precisions:
        settings = {"precision": precision}
        found.append(Competitor(f"bergson {precision}, p = 16", "bergson", settings, precision))
        found.append(Competitor(f"dattri {precision}, r = 16", "dattri", settings, precision))
    found += [
        Competitor("torch.func vmap, count sketch", "func", slow=True),
        Competitor("opacus, no projection", "opacus", slow=True),
        Competitor("kronfluence, self scores", "kronfluence", slow=True),
        Competitor("published: one row, dense", "published", slow=True, peer=False),
        Competitor("traker, end to end", "traker", slow=True),
    ]
    return found


def measure(
    case: Case, who: Sequence[Competitor], threads: int, rounds: int, slow_rounds: int, seconds: float
) -> list[dict]:
    """One dict a competitor; no new round starts after `seconds`, but every one is run at least once."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    found, runs, features = _warm(case, who)
    clock = 0 if threads == 1 else 1
    for turn in range(rounds):
        for row in found:
            run = runs.get(row["name"])
            late = time.perf_counter() - started > seconds and turn > 0
            if run is None or late or (row["slow"] and len(row["seconds"]) >= slow_rounds):
                continue
            watch = Watch()
            outcome = run()
            spent = watch.read() if outcome.seconds is None else outcome.seconds
            row["seconds"].append(float(spent[clock]))
    _compare(case, found, features)
    return found


def _warm(case: Case, who: Sequence[Competitor]) -> tuple[list[dict], dict[str, Run], dict[str, np.ndarray]]:
    """A first call of each, with its memory and its features."""
    found: list[dict] = []
    runs: dict[str, Run] = {}
    features: dict[str, np.ndarray] = {}
    for one in who:
        row = {
            "name": one.name,
            "precision": one.precision,
            "slow": one.slow,
            "peer": one.peer,
            "seconds": [],
        }
        found.append(row)
        print(f"  {case.name}: {one.name} ...", flush=True)
        try:
            run = importlib.import_module(f"peers.{one.module}").prepare(case, **one.settings)
            peak, outcome = peak_of(run)
        except Exception as error:  # a competitor that fails is a line of the table
            row["fails"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
            continue
        runs[one.name] = run
        row.update(peak_mb=peak, bytes_a_row=outcome.bytes_a_row, remark=outcome.remark)
        if outcome.seconds is not None:  # scaled from a part: a first call says it well enough
            row["seconds"].append(float(outcome.seconds[0 if torch.get_num_threads() == 1 else 1]))
        if outcome.feature is not None:
            features[one.name] = outcome.feature
    return found, runs, features


def peak_of(run: Run):
    """Peak resident MB above what was resident before (free memory given back first), and the run's outcome."""
    gc.collect()
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan"), run()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes(status, "VmRSS")
    outcome = run()
    return (_kilobytes(status, "VmHWM") - before) / 1024, outcome


def _kilobytes(status: Path, name: str) -> int:
    return next(
        int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name + ":")
    )


def _compare(case: Case, found: list[dict], features: dict[str, np.ndarray]) -> None:
    if not features:
        return
    gram = exact_gram(case)
    exact = cosines_of(gram)
    of = measures(case.kinds, exact)
    for row in found:
        feature = features.get(row["name"])
        if feature is None:
            continue
        if feature.shape[1] == 1:  # norms only
            row["remark"] = (
                f"norms, {np.corrcoef(feature[:, 0], np.sqrt(np.diag(gram)))[0, 1]:.4f} with exact"
            )
        else:
            row.update(d=feature.shape[1], **of(cosines(feature)))
    ideals = [of(ideal_cosines(exact, D, seed)) for seed in range(3)]
    found.append(
        {"name": f"ideal dense projection, d = {D}", "seconds": [], "peer": False, "slow": False, "d": D}
    )
    found[-1].update({key: float(np.mean([i[key] for i in ideals])) for key in ideals[0]})
    found.append({"name": "exact gradients", "seconds": [], "peer": False, "slow": False, "d": case.size})
    found[-1].update(of(exact), bytes_a_row=4 * case.size)
