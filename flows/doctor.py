"""What scoring will use on this machine, why, and how fast it is: `gradus doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from curation.errors import GradusError
from curation.specs import Proxy, Recipe

PACKAGES = (
    *("torch", "transformers", "numpy", "polars", "pyarrow", "duckdb", "faiss-cpu"),
    *("prefect", "fastapi", "sqlalchemy"),
)
LEAST_DISK, LEAST_MEMORY = 1 << 30, 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found and why; `fix`: what to do when it is wrong."""

    name: str
    value: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings; `rows_per_second` of one worker and of all, None when scoring could not be tried."""

    findings: tuple[Finding, ...]
    rows_per_second: float | None
    rows_per_second_together: float | None

    @property
    def usable(self) -> bool:
        """Whether a run can be begun: nothing has to be fixed."""
        return not any(f.fix for f in self.findings)

    def facts(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self) | {"usable": self.usable}


def examine(run: Any, lake: Path, seconds: float = 2.0) -> Examination:
    """Looks at this machine for a run; without one (None), for the default decoder. Nothing of the corpus is kept."""
    proxy = run.recipe.proxy if run else Proxy()
    workers = run.workers if run else os.cpu_count() or 1
    findings = [*devices(workers), precision(proxy), threads(workers)]
    rate = None
    try:
        attention_found, rate, needs = speed(run, proxy, seconds)
        findings.append(attention_found)
        findings.append(memory(needs, workers))
    except GradusError as error:
        findings.append(Finding("scoring", "could not be tried", fix=str(error)))
        findings.append(memory(0.0, workers))
    findings += [disk(lake), writable("lake", lake), layout(lake), writable("Prefect", prefect_home(lake))]
    findings += [*server(lake), *packages()]
    together = None if rate is None else rate * (len(_gpus()) or workers)
    return Examination(tuple(findings), rate, together)


def _gpus() -> tuple[str, ...]:
    from flows.run import scoring_devices

    return scoring_devices()


def devices(workers: int) -> list[Finding]:
    """The devices that score rows, each GPU on a line of its own."""
    import torch

    why = f"torch.cuda.is_available() is {torch.cuda.is_available()}"
    chosen = os.environ.get("GRADUS_DEVICES")
    if chosen:
        why = f"GRADUS_DEVICES={chosen}; {why}"
    used = _gpus()
    if not used:
        return [Finding("device", f"cpu, {workers} workers", why)]
    found = []
    for name in used:
        device = torch.device(name)
        if device.type == "cpu":
            found.append(Finding("device", name, why))
            continue
        number = device.index or 0
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            fix = f"there is no {name} here; set GRADUS_DEVICES to devices that exist, or unset it"
            found.append(Finding("device", name, why, fix))
            continue
        about = torch.cuda.get_device_properties(number)
        value = f"{name}, {about.name}, {about.total_memory / 2**30:.0f} GiB, {torch.cuda.mem_get_info(number)[0] / 2**30:.0f} free"
        found.append(Finding("device", value, why))
    return found


def precision(proxy: Proxy) -> Finding:
    """The dtype of the layers' products, and whether the device has it natively."""
    import torch

    gpus = [d for d in _gpus() if d.startswith("cuda")]
    if gpus and torch.cuda.is_available():
        native, where = torch.cuda.is_bf16_supported(including_emulation=False), "this GPU"
    else:
        native, where = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()), "this processor"
    asked = f'[proxy] precision = "{proxy.precision}"'
    if proxy.precision == "bf16":
        note = "" if native else "; slower than fp32 here, the same features as elsewhere"
        return Finding(
            "precision", "bf16 products, fp32 sums", f"{asked}; {where} {_has(native)} native bf16{note}"
        )
    return Finding(
        "precision",
        "fp32",
        f"{asked}; {where} {_has(native)} native bf16" + ("; bf16 is faster there for wide models" * native),
    )


def _has(native: bool) -> str:
    return "has" if native else "has no"


def threads(workers: int) -> Finding:
    """Worker processes and their threads."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    why = f"{cores} cores usable; one thread a worker keeps sums in one order (torch's own default: {torch.get_num_threads()})"
    return Finding("workers", f"{workers} processes, 1 thread each", why)


def speed(run: Any, proxy: Proxy, seconds: float) -> tuple[Finding, float, float]:
    """The attention path, rows a second of one worker by a short real run of the engine, and a worker's bytes."""
    import torch

    from flows.estimate import resident_bytes, scoring
    from flows.pace import measure, peak_bytes, seconds_of, shards_of
    from flows.subject import Lengths, subject_of

    if run is not None:
        found = scoring(run, seconds)
        return attention(found.subject.sample), found.rows_per_second, found.memory_mb * 1e6
    # Rows as the embedded corpus has them: 17 tokens, of which 5 are predicted.
    lengths = Lengths(np.full(500, 17), np.full(500, 5), 500, 64)
    subject = subject_of(proxy, lengths, 0)
    used = _gpus()
    resting = resident_bytes()
    pace = measure(subject, lengths, 4096, seconds, torch.device(used[0]) if used else None)
    (at,) = shards_of(lengths, 4096)
    rate = len(at) / seconds_of(pace, subject.shape, lengths, at)
    return attention(subject.sample), rate, resting + peak_bytes(pace, subject, lengths, at)


def attention(model: Any) -> Finding:
    """SDPA or eager attention, as the model was built here."""
    from curation.decoder import Decoder
    from curation.head import Head

    if isinstance(model, Head):
        return Finding("attention", "none", "a head on sentence embeddings has no attention")
    if isinstance(model, Decoder):
        return Finding("attention", "sdpa", "torch.nn.functional.scaled_dot_product_attention, causal")
    path = str(getattr(model.config, "_attn_implementation", None) or "eager")
    has = "has it" if path == "sdpa" else "has no SDPA"
    return Finding(
        "attention", path, f"{type(model).__name__} {has} in transformers {version('transformers')}"
    )


def memory(needs: float, workers: int) -> Finding:
    """Memory free beside what the workers will take."""
    from storage.model_files import available_bytes

    free, wanted = available_bytes(), max(LEAST_MEMORY, needs * (len(_gpus()) or workers))
    value = f"{free / 2**30:.1f} GiB free, scoring takes about {wanted / 2**30:.1f}"
    fix = "" if free >= wanted else "end other programs, name a smaller proxy, or lower [proxy] max_tokens"
    return Finding("memory", value, f"{workers} workers of {needs / 2**20:.0f} MiB" if needs else "", fix)


def disk(lake: Path) -> Finding:
    """Disk free where the lake is, or will be."""
    free = shutil.disk_usage(_existing(lake)).free
    fix = (
        ""
        if free >= LEAST_DISK
        else f"less than 1 GiB is left for {lake}: free some, or use --lake elsewhere"
    )
    return Finding("disk", f"{free / 2**30:.1f} GiB free", f"at {_existing(lake)}", fix)


def writable(name: str, folder: Path) -> Finding:
    """Whether this user can write into a folder, or make it."""
    place = _existing(folder)
    able = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    fix = (
        "" if able else f"{place} cannot be written by this user; correct its owner, or choose another folder"
    )
    return Finding(f"{name} folder", str(folder.absolute()), "writable" if able else "not writable", fix)


def _existing(folder: Path) -> Path:
    whole = folder.absolute()
    return next((p for p in (whole, *whole.parents) if p.exists()), Path("/"))


def prefect_home(lake: Path) -> Path:
    """Where Prefect's own server keeps its data base: PREFECT_HOME, else in the lake."""
    given = os.environ.get("PREFECT_HOME")
    return Path(given).expanduser() if given else lake / "prefect"


def layout(lake: Path) -> Finding:
    """Whether this Gradus can read the lake."""
    from storage.artifacts import Lake
    from storage.store import url_of

    if url_of(lake) is None and not (lake / "lake.json").exists():
        return Finding("lake", "none yet", f"the first run makes it in {lake}")
    try:
        return Finding("lake", f"{len(Lake(lake, create=False).refs())} artifacts")
    except GradusError as error:
        return Finding("lake", "cannot be read", fix=str(error))


def server(lake: Path) -> list[Finding]:
    """The Prefect server of PREFECT_API_URL, or the one that `gradus serve` runs for this lake, and its workers."""
    from flows.service.settings import check_server, key_of, serving

    found = serving(lake)
    url = os.environ.get("PREFECT_API_URL") or (found.api_url if found else None)
    if url is None:
        return [
            Finding("server", "none", "a run starts a temporary one; `gradus serve` starts one that stays")
        ]
    try:
        key = key_of(lake)
        findings = [Finding("server", f"Prefect {check_server(url, key)}", url)]
    except GradusError as error:
        return [Finding("server", "cannot be used", url, str(error))]
    from flows.service.starting import worker_online

    there = worker_online(url, key)
    fix = "" if there else f"nothing will run there; type: gradus worker --api-url {url}"
    return [*findings, Finding("worker", "there" if there else "none answers", "work pool gradus", fix)]


def packages() -> list[Finding]:
    """Versions of what matters to speed and to bits, and whether they are within the bounds that Gradus asks for."""
    wanted = {r.name: r for r in map(Requirement, requires("gradus") or [])}
    found = [Finding("python", platform.python_version(), sys.executable)]
    for name in PACKAGES:
        try:
            have = version(name)
        except PackageNotFoundError:
            found.append(Finding(name, "missing", fix=f"pip install {name}"))
            continue
        bounds = wanted[name].specifier if name in wanted else SpecifierSet()
        fix = "" if bounds.contains(have, prereleases=True) else f"pip install '{name}{bounds}'"
        found.append(Finding(name, have, f"needs {bounds}" if str(bounds) else "", fix))
    return found


def print_examination(found: Examination, recipe: Recipe | None) -> None:
    """The report on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flows.terminal import safe

    table = Table(box=None, pad_edge=False, show_header=False)
    for f in found.findings:
        value, why = Text(safe(f.value), "bold" if not f.fix else "bold red"), Text(safe(f.why), "dim")
        table.add_row(Text("ok" if not f.fix else "FIX", "green" if not f.fix else "red"), f.name, value, why)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    console.print(table)
    if found.rows_per_second is not None:
        of = f"recipe {recipe.name}" if recipe else "the default decoder"
        console.print(
            f"\nscoring {of}: {found.rows_per_second:,.0f} rows/s a worker, about {found.rows_per_second_together:,.0f} together"
            " (measured now, on drawn weights)"
        )
    for f in found.findings:
        if f.fix:
            console.print(f"\nfix {f.name}: {safe(f.fix)}")
