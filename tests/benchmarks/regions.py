"""Regions at scale: seconds, memory and quality of clusters, density and terms, beside plain faiss and scikit-learn.

python tests/benchmarks/regions.py [--quick] [--million]   (about ten minutes on one core; quick: under two)

The rows are planted: a long-tailed mixture of groups within groups, with noise, 1,024 dimensions, float16. Every
measure runs in a process of its own on one thread; seconds are of the processor, so that a busy machine tells the
same, and the peak of memory is what came on top of the rows.
Recall: share of the found neighbours that are as near as the true tenth. `--million` adds 1 M rows (2 GB).
What cannot be imported is said and left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

D = 1024


def planted(n: int, groups: int = 600) -> np.ndarray:
    """(n, D) float16 rows: `groups` groups within twenty, sizes by Zipf's law, 64 shared directions of noise."""
    rng = np.random.Generator(np.random.Philox(1))
    top = rng.standard_normal((20, D), dtype=np.float32)
    centre = top[rng.integers(20, size=groups)] + 0.8 * rng.standard_normal((groups, D), dtype=np.float32)
    shared = 0.25 * rng.standard_normal((64, D), dtype=np.float32)
    size = 1 / np.arange(1, groups + 1) ** 1.1
    group = rng.choice(groups, size=n, p=size / size.sum())
    out = np.empty((n, D), dtype=np.float16)
    for s in range(0, n, 8192):
        part = group[s : s + 8192]
        noise = rng.standard_normal((len(part), 64), dtype=np.float32) @ shared
        out[s : s + 8192] = centre[part] + noise + 0.7 * rng.standard_normal((len(part), D), dtype=np.float32)
    return out


def texts_of(n: int) -> tuple[list[str], np.ndarray]:
    """n texts of 40 to 120 words of a long-tailed vocabulary of 50,000, and one of 300 regions for each."""
    rng = np.random.Generator(np.random.Philox(2))
    region = rng.integers(300, size=n)
    texts = []
    for r in region:
        words = np.minimum(rng.zipf(1.3, size=int(rng.integers(40, 120))), 50_000)
        texts.append(f"own{r} " + " ".join(f"w{w}" for w in words))
    return texts, region


def ours_kmeans(n: int, k: int) -> Callable[[], dict[str, float]]:
    from curation.clusters import spherical_kmeans

    z = planted(n)
    return lambda: {"cosine": float(spherical_kmeans(z, k, 1)[2].mean())}


def faiss_kmeans(n: int, k: int) -> Callable[[], dict[str, float]]:
    import faiss

    z = planted(n)

    def run() -> dict[str, float]:
        faiss.omp_set_num_threads(1)
        x = z.astype(np.float32)
        faiss.normalize_L2(x)
        means = faiss.Kmeans(D, k, niter=20, spherical=True, seed=1, max_points_per_centroid=10**7)
        means.train(x)
        return {"cosine": float(means.index.search(x, 1)[0].mean())}

    return run


def sklearn_kmeans(n: int, k: int) -> Callable[[], dict[str, float]]:
    from sklearn.cluster import KMeans

    z = planted(n)

    def run() -> dict[str, float]:
        x = z.astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        found = KMeans(k, n_init=1, max_iter=20, random_state=1).fit(x)
        centroids = found.cluster_centers_ / np.linalg.norm(found.cluster_centers_, axis=1, keepdims=True)
        return {"cosine": float(np.einsum("nd,nd->n", x, centroids[found.labels_]).mean())}

    return run


def stable(n: int, k: int) -> Callable[[], dict[str, float]]:
    from curation.clusters import stability

    z = planted(n)
    return lambda: {"adjusted_rand": stability(z, k, 1)}


def density(n: int, exact: bool) -> Callable[[], dict[str, float]]:
    from curation.score.density import nearest_cosines

    z = planted(n)

    def run() -> dict[str, float]:
        np.save(f"/dev/shm/gradus-{os.getppid()}-{exact}.npy", nearest_cosines(z, 1, exact=exact))
        return {}

    return run


def faiss_ivf(n: int, probes: int) -> Callable[[], dict[str, float]]:
    import faiss

    z = planted(n)

    def run() -> dict[str, float]:
        faiss.omp_set_num_threads(1)
        x = z.astype(np.float32)
        faiss.normalize_L2(x)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, n // 256, faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical = True
        index.train(x[:65_536])
        index.add(x)
        index.nprobe = probes
        some = min(n, 2000)  # of all rows: search time is in proportion to the queries
        started = time.process_time()
        np.save(f"/dev/shm/gradus-{os.getppid()}-ivf.npy", index.search(x[:some], 11)[0][:, 1:])
        return {"more_seconds": (time.process_time() - started) * (n / some - 1)}

    return run


def ours_terms(n: int) -> Callable[[], dict[str, float]]:
    from curation.score.terms import distinctive_terms

    texts, region = texts_of(n)

    def run() -> dict[str, float]:
        found = distinctive_terms(texts, region)
        return {"named_right": float(np.mean([t.split()[0] == f"own{r}" for r, t in found.items()]))}

    return run


def sklearn_terms(n: int) -> Callable[[], dict[str, float]]:
    from sklearn.feature_extraction.text import CountVectorizer

    texts, _ = texts_of(n)
    return lambda: {"words": float(CountVectorizer(binary=True).fit_transform(texts).shape[1])}


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def _child(pipe, make: Callable, args: tuple) -> None:
    work = make(*args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = _status_mb("VmRSS"), time.process_time()
    found = work()
    seconds = time.process_time() - started + found.pop("more_seconds", 0.0)
    peak = _status_mb("VmHWM") - before
    pipe.send({"seconds": round(seconds, 2), "peak_mb": round(peak), **found})


def measure(figures: dict, name: str, make: Callable, *args: object) -> None:
    """Runs one measure in a fresh process, prints its line and books it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, make, args))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise SystemExit(f"{name}: the measure failed; its error is above") from None
    finally:
        process.join()
    figures[name] = found
    print(f"{name:44}" + "  ".join(f"{k} {v:,.4g}" for k, v in found.items()), flush=True)


def recall_of(figures: dict, name: str, file: str) -> None:
    """Books the recall at ten and the error of density, against all pairs."""
    exact = np.load(f"/dev/shm/gradus-{os.getpid()}-True.npy")
    found = np.load(f"/dev/shm/gradus-{os.getpid()}-{file}.npy")
    exact = exact[: len(found)]
    figures[name]["recall_at_10"] = round(float((found >= exact[:, -1:] - 1e-5).mean()), 4)
    figures[name]["density_error"] = round(float(np.abs(found.mean(1) - exact.mean(1)).mean()), 6)
    print(f"{'':44}recall {figures[name]['recall_at_10']}  density error {figures[name]['density_error']}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Regions at scale.")
    parser.add_argument("--quick", action="store_true", help="20,000 rows and texts")
    parser.add_argument("--million", action="store_true", help="also 1 M rows: 2 GB, about an hour")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", POLARS_MAX_THREADS="1")
    n = 20_000 if args.quick else 100_000
    sklearn = importlib.util.find_spec("sklearn") is not None
    if not sklearn:
        print("scikit-learn is not installed: left out")
    figures: dict[str, dict[str, float]] = {}
    print(f"{n:,} rows of {D} dimensions, one thread; peak_mb above the rows themselves")
    for k in (100, 1000):
        measure(figures, f"k-means k={k}", ours_kmeans, n, k)
        measure(figures, f"k-means k={k}, plain faiss", faiss_kmeans, n, k)
        if sklearn and not (args.quick and k == 1000):
            measure(figures, f"k-means k={k}, scikit-learn", sklearn_kmeans, n, k)
    measure(figures, "stability of three seeds, k=100", stable, n, 100)
    try:
        measure(figures, "density, all pairs", density, n, True)
        measure(figures, "density, lists", density, n, False)
        recall_of(figures, "density, lists", "False")
        measure(figures, "density, plain faiss IVF, 24 probes", faiss_ivf, n, 24)
        recall_of(figures, "density, plain faiss IVF, 24 probes", "ivf")
    finally:
        for leftover in Path("/dev/shm").glob(f"gradus-{os.getpid()}-*.npy"):
            leftover.unlink()
    texts = n if args.quick else 50_000
    measure(figures, f"terms of {texts:,} texts, 300 regions", ours_terms, texts)
    if sklearn:
        measure(figures, f"words of {texts:,} texts, scikit-learn", sklearn_terms, texts)
    if args.million:
        for k in (256, 1024):
            measure(figures, f"k-means of 1 M rows, k={k}", ours_kmeans, 10**6, k)
        measure(figures, "density of 1 M rows, lists", density, 10**6, False)
    print(json.dumps({"benchmark": "regions", "rows": n, "dimensions": D, "figures": figures}))


if __name__ == "__main__":
    main()
