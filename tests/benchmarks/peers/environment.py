"""The peers' own environment, `.bench/peers`, made when it is missing; no peer becomes a need of the product."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".bench"
WANTED = Path(__file__).with_name("requirements.txt")
CONSTRAINTS = ROOT / "infra" / "constraints.txt"

# Page faults are dear on small machines: the allocator keeps what it was given, for every competitor alike.
# (A larger MALLOC_MMAP_THRESHOLD_ than 32 MB is refused in silence, so mapping is switched off instead.)
SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_ARENA_MAX": "1",
    "TORCHINDUCTOR_CACHE_DIR": str(HOME / "inductor"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def make() -> Path | None:
    """The environment's Python, with this checkout and all peers in it; None (and why, printed) when it fails."""
    place = HOME / "peers"
    python, ready = place / "bin" / "python", place / "ready"
    stamp = hashlib.blake2b(WANTED.read_bytes() + CONSTRAINTS.read_bytes(), digest_size=8).hexdigest()
    if ready.exists() and ready.read_text() == stamp:
        return python
    print(f"making {place} (once; about two minutes, and needs the network) ...", flush=True)
    place.parent.mkdir(exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [*pip, "-c", str(CONSTRAINTS), "-e", str(ROOT)],
        [*pip, "--no-deps", "-r", str(WANTED)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"the peers could not be installed ({last}); only this project's own rows are measured.")
            print(f"Run it again with the network up; to see all of it: {' '.join(command)}", flush=True)
            return None
    ready.write_text(stamp)
    return python


def enter(script: str, arguments: list[str]) -> None:
    """Runs the script again in that environment and never comes back; returns at once when it already is there."""
    if os.environ.get("GRADUS_BENCH") == "1":
        return
    python = make()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **SETTINGS, "GRADUS_BENCH": "1", "PYTHONPATH": path}
    os.execve(str(python or sys.executable), [str(python or sys.executable), script, *arguments], environment)
