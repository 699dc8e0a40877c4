"""kill -9 of a run at arbitrary moments, then the same command: the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny import tiny_recipe

ROOT = Path(__file__).parents[2]
DATA = ("artifacts", "datasets", "alpha")


def start(recipe: Path, lake: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.plain_run", str(recipe), str(lake)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def content(lake: Path) -> dict[str, str]:
    """Path -> digest of every file that holds data."""
    files = [p for kind in DATA for p in sorted((lake / kind).rglob("*")) if p.is_file()]
    return {str(p.relative_to(lake)): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


def test_killed_runs_end_with_the_same_bytes(tmp_path):
    recipe = tiny_recipe(tmp_path, steps=4)
    begun = time.monotonic()
    undisturbed = start(recipe, tmp_path / "whole")
    assert undisturbed.wait(timeout=240) == 0, undisturbed.stderr.read().decode()
    whole_seconds = time.monotonic() - begun
    killed = 0
    for share in (0.3, 0.45, 0.6, 0.75, 0.9):
        process = start(recipe, tmp_path / "killed")
        try:
            process.wait(timeout=share * whole_seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        process.stderr.close()
    last = start(recipe, tmp_path / "killed")
    assert last.wait(timeout=240) == 0, last.stderr.read().decode()
    assert killed
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
