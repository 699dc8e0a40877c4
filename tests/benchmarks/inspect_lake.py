"""Looking into a lake: every question that Gradus answers, timed beside plain pyarrow and pandas; answers compared.

python tests/benchmarks/inspect_lake.py [--quick]   (quick: a tenth of the rows and lines)

1 M rows, 1 M features of 1,024 float16, 50 M ledger lines, three versions of a dataset: made once in .bench/ through the
storage API, reused while its parameters and the store's bytes are the same. Each side of each question runs in a fresh
process on two cores; the file cache is warm (the first asking is printed and not counted); seconds are the best of
some, for `explain` the median of 20 rows. MB: the peak of resident memory of the whole process, interpreter included.
An answer that differs from pyarrow's is a failure. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
CORES = sorted(os.sched_getaffinity(0))[:2]
THREADS = {
    name: str(len(CORES))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
}
MEMORY_BAR_MB = 2048
WORDS = "Kestrel zanzibar"


@dataclass
class Side:
    """How one side answered."""

    seconds: float
    first: float
    peak_mb: float
    answers: list[Any] = field(default_factory=list)


def ask(module: str, function: str, root: Path, asked: list[Any], middle: bool = False) -> Side | str:
    """The side's figures from a process of its own; text: why there are none."""
    done = subprocess.run(
        [sys.executable, str(HERE / "inspecting" / "one.py"), module, function, str(root)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **THREADS, "PYTHONWARNINGS": "ignore"},
        preexec_fn=lambda: os.sched_setaffinity(0, CORES),
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    later = found["seconds"][1:] or found["seconds"]
    best = statistics.median(later) if middle else min(later)
    return Side(best, found["seconds"][0], found["peak_mb"], found["answers"])


@dataclass
class Line:
    """A line of the table: a question, its bar, and how each side did."""

    name: str
    ours: Side | str
    bar: float | None = None
    plain: dict[str, Side | str] = field(default_factory=dict)
    same: bool | None = None
    note: str = ""

    def ok(self) -> bool:
        """In time, in memory, and the same answer as pyarrow's."""
        if isinstance(self.ours, str):
            return False
        in_time = self.bar is None or self.ours.seconds < self.bar
        return in_time and self.ours.peak_mb < MEMORY_BAR_MB and self.same is not False

    def __str__(self) -> str:
        ours = self.ours
        if isinstance(ours, str):
            return f"{self.name:<26}not measured: {ours[:120]}"
        others = [self.plain.get(side) for side in ("pyarrow", "pandas")]
        best = min((side.seconds for side in others if isinstance(side, Side)), default=None)
        ratio = "–" if best is None else f"{best / ours.seconds:.1f}x"
        bar = "–" if self.bar is None else f"< {self.bar:.3g}"
        same = {None: "–", True: "yes", False: "NO"}[self.same]
        shown = "".join(f"{_seconds(side):>10}{_mb(side):>7}" for side in (ours, *others))
        verdict = "ok" if self.ok() else "MISSED"
        return f"{self.name:<26}{ours.first:>8.3f}{shown}{ratio:>8}{bar:>8}{same:>6}  {verdict}  {self.note}"


def _seconds(side: Side | str | None) -> str:
    return f"{side.seconds:.3f}" if isinstance(side, Side) else "–"


def _mb(side: Side | str | None) -> str:
    return f"{side.peak_mb:.0f}" if isinstance(side, Side) else "–"


HEAD = (
    f"{'question':<26}{'first':>8}{'ours s':>10}{'MB':>7}{'pyarrow s':>10}{'MB':>7}{'pandas s':>10}{'MB':>7}"
    f"{'faster':>8}{'bar':>8}{'same':>6}"
)


def compare(
    name: str, function: str, root: Path, bar: float | None, asked: list[Any] | None = None, again: int = 4
) -> Line:
    """A question that all sides are asked with the same words; pandas where it has a way of its own."""
    import inspecting.plain as plain

    asked = asked or [None] * (again + 1)
    line = Line(name, ask("ours", function, root, asked, middle=function == "explain"), bar)
    for side, theirs in (("pyarrow", function), ("pandas", f"{function}_pandas")):
        if hasattr(plain, theirs):
            line.plain[side] = ask("plain", theirs, root, asked[:2])
            if isinstance(line.plain[side], str):
                print(f"  {side}, {name}: {line.plain[side]}")
    found = [side for side in line.plain.values() if isinstance(side, Side)]
    if isinstance(line.ours, Side) and found:
        pairs = [
            (ours, theirs)
            for side in found
            for ours, theirs in zip(_few(line.ours), _few(side), strict=False)
        ]
        line.same = all(_equal(function, ours, theirs) for ours, theirs in pairs)
    return line


def _few(side: Side) -> list[Any]:
    return side.answers[:2]


def _equal(function: str, ours: Any, theirs: Any) -> bool:
    if function == "nearest":  # two rows as near as each other may change places
        near = dict(map(tuple, theirs))
        return len(ours) == len(near) and all(
            row_id in near and abs(cosine - near[row_id]) < 2e-3 for row_id, cosine in ours
        )
    if function == "find":  # ours gives the best 20
        return set(ours) <= set(theirs) and len(ours) == min(20, len(theirs))
    return ours == theirs


def nearest_lines(root: Path, ids: list[str]) -> list[Line]:
    """Exact search, the index built, search through it, with recall against exact."""
    shutil.rmtree(root / "index", ignore_errors=True)
    exact = compare("nearest 10, exact", "nearest", root, 5.0, ids[:4])
    build = Line("build the faiss index", ask("ours", "build", root, [None]))
    through = Line("nearest 10, by the index", ask("ours", "nearest_index", root, ids), 0.5)
    truth = ask("plain", "truth", root, [ids])
    if isinstance(through.ours, Side) and isinstance(truth, Side):
        hits = [
            len({row_id for row_id, _ in found} & set(true)) / 10
            for found, true in zip(through.ours.answers, truth.answers[0], strict=True)
        ]
        through.note = f"recall@10 {statistics.mean(hits):.3f}"
    return [exact, build, through]


def export_lines(root: Path, home: Path) -> tuple[list[Line], dict[str, float]]:
    """Every format written to a fresh folder, beside plain pyarrow and pandas; MB/s of the rows' columns, unpacked."""
    import inspecting.plain as plain
    import polars as pl
    from inspecting.one import exported

    rows = pl.scan_parquet(root / "datasets" / "bench@v3" / "rows" / "all.parquet", glob=False)
    sizes = rows.select(pl.col(pl.String).str.len_bytes().fill_null(0).sum()).collect().row(0, named=True)
    rows_mb, lines, rates = sum(sizes.values()) / 1e6, [], {}
    expected = exported("parquet", str(root / "datasets" / "bench@v3" / "rows"))
    for form in ("parquet", "jsonl", "csv", "hf", "webdataset"):
        bar = rows_mb / 200 if form in ("parquet", "jsonl") else None
        line = Line(f"export {form}", ask("ours", "export", root, _targets(home, form, 3)), bar)
        for side, function in (("pyarrow", f"export_{form}"), ("pandas", f"export_{form}_pandas")):
            if hasattr(plain, function):
                line.plain[side] = ask("plain", function, root, _targets(home, form, 2))
        if isinstance(line.ours, Side):
            line.same = _whole(form, line.ours.answers, expected)
            rates[form] = rows_mb / line.ours.seconds
            line.note = f"{rates[form]:.0f} MB/s of {rows_mb:.0f} MB, {(sizes['prompt'] + sizes['response']) / 1e6:.0f} of it text"
        shutil.rmtree(home / "exports", ignore_errors=True)
        lines.append(line)
    return lines, rates


def _whole(form: str, answers: list[Any], expected: list[int]) -> bool:
    """Whether each export reads back as the rows themselves; of csv and tar only the number of rows is compared."""
    if form in ("csv", "webdataset"):
        return all(found[0] == expected[0] for found in answers)
    return all(found == expected for found in answers)


def _targets(home: Path, form: str, count: int) -> list[list[str]]:
    found = []
    for i in range(count):
        folder = home / "exports" / f"{form}-{time.time_ns()}-{i}"
        folder.mkdir(parents=True)
        found.append([form, str(folder)])
    return found


def disk_mb_s(home: Path) -> float:
    """What the disk takes from a plain write of 512 MB and fsync: no export that is safe on it can be faster."""
    block, path = os.urandom(1 << 24), home / "disk.bin"
    begun = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(32):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - begun
    path.unlink()
    return 512 * 1.048576 / taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 rows and features, 5 M ledger lines")
    parser.add_argument("--only", default="", help="questions to ask, e.g. counts,nearest")
    args = parser.parse_args()
    from inspecting.lake import FULL, QUICK, ensure, row_ids
    from inspecting.readers import contend

    size = QUICK if args.quick else FULL
    home = HERE.parents[1] / ".bench" / ("inspect-quick" if args.quick else "inspect-full")
    root = ensure(home, size, lambda text: print(text, flush=True))
    ids = list(row_ids(0, 20_000)[::997])  # 21 rows
    print(
        f"{size.rows:,} rows and features, {size.lines:,} ledger lines; {len(CORES)} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(HEAD, flush=True)
    lines: dict[str, Line] = {}
    rates, contended = {}, {"errors": None}

    def show(name: str, *found: Line) -> None:
        for line in found:
            lines[name if line is found[0] else line.name] = line
            print(line, flush=True)

    def wanted(name: str) -> bool:
        return not args.only or name in args.only.split(",")

    if wanted("rebuild"):
        show("rebuild", compare("rebuild the catalog", "rebuild", root, 5.0))
    if wanted("counts"):
        show("counts", compare("counts by reason", "counts", root, 1.0))
    if wanted("explain"):
        show("explain", compare("explain a row", "explain", root, 0.2, ids))
    if wanted("changed"):
        show("changed", compare("what changed, v1 to v2", "changed", root, 3.0))
    if wanted("find"):
        show("find", compare("find two words", "find", root, None, [WORDS] * 4))
    if wanted("nearest"):
        exact, build, through = nearest_lines(root, ids)
        show("nearest", exact)
        show("build", build)
        show("index", through)
    if wanted("export"):
        found, rates = export_lines(root, home)
        show("export", *found)
        print(f"  the disk takes {disk_mb_s(home):.0f} MB/s with fsync")
    if wanted("readers"):
        contended = contend(root, 15.0)
        print(f"readers beside writers: {contended}")
    print(json.dumps(summary(lines, rates, contended)))


def summary(lines: dict[str, Line], rates: dict[str, float], contended: dict[str, Any]) -> dict[str, Any]:
    """The last line: figures that were not measured are null."""

    def seconds(name: str, factor: float = 1.0) -> float | None:
        line = lines.get(name)
        return round(line.ours.seconds * factor, 4) if line and isinstance(line.ours, Side) else None

    peaks = [line.ours.peak_mb for line in lines.values() if isinstance(line.ours, Side)]
    slower = [rates[form] for form in ("parquet", "jsonl") if form in rates]
    return {
        "counts_seconds": seconds("counts"),
        "explain_ms": seconds("explain", 1000),
        "diff_seconds": seconds("changed"),
        "nearest_seconds": seconds("nearest"),
        "nearest_index_seconds": seconds("index"),
        "rebuild_seconds": seconds("rebuild"),
        "export_mb_s": round(min(slower)) if slower else None,
        "reader_errors": contended["errors"],
        "peak_memory_mb": round(max(peaks)) if peaks else None,
    }


if __name__ == "__main__":
    main()
