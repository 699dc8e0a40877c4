"""kill -9 of a writer to an object store: the rerun, here or on another machine, gives the bytes of a local lake."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.artifacts import Lake
from tests.crash.test_lake_kill import WRITER
from tests.object_store import files, needs_store
from tests.tiny import tiny_recipe

ROOT = Path(__file__).parents[2]
LONGEST = 1800  # seconds of the longest run, the demo's, on a busy machine
pytestmark = needs_store


def start(*command: str, cache: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADUS_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(*command: str, cache: Path) -> None:
    process = start(*command, cache=cache)
    told = process.communicate(timeout=LONGEST)[1]
    assert process.returncode == 0, told.decode()


def killed(process: subprocess.Popen) -> bool:
    """Was it still running? It is not now."""
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return running


def decided(endpoint: str, place: str) -> dict[str, bytes]:
    """Name -> bytes of every manifest and booking in the store."""
    store = files(endpoint)
    found = {
        name: data
        for kind in ("artifacts", "datasets", "alpha")
        for name, data in store.cat(store.find(f"{place}/{kind}")).items()
    }
    return {name.removeprefix(f"{place}/"): data for name, data in found.items()}


def decided_locally(lake: Path) -> dict[str, bytes]:
    patterns = ("artifacts/*/*/manifest.json", "datasets/*/manifest.json", "alpha/*/*.json")
    paths = [path for pattern in patterns for path in lake.glob(pattern)]
    return {path.relative_to(lake).as_posix(): path.read_bytes() for path in paths}


def verify_all(url: str) -> None:
    lake = Lake(url, create=False)
    for ref in lake.refs():
        lake.verify(ref)


@pytest.mark.slow
def test_writers_killed_at_random_moments(bucket: str, endpoint: str, tmp_path: Path) -> None:
    finish(str(WRITER), str(tmp_path / "calm"), cache=tmp_path / "none")
    place = f"{bucket}/kill"
    luck, stopped = random.Random(7), 0
    for number in range(6):
        cache = tmp_path / f"cache-{number // 2}"  # every second time from a fresh mirror
        process = start(str(WRITER), f"s3://{place}", cache=cache)
        before, deadline = len(files(endpoint).find(place)), time.monotonic() + 60
        while (
            process.poll() is None
            and len(files(endpoint).find(place)) == before
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        time.sleep(luck.uniform(0, 0.5))
        stopped += killed(process)
        if files(endpoint).exists(f"{place}/lake.json"):
            verify_all(f"s3://{place}")
    finish(str(WRITER), f"s3://{place}", cache=tmp_path / "last")
    assert decided(endpoint, place) == decided_locally(tmp_path / "calm")
    verify_all(f"s3://{place}")
    assert not files(endpoint).find(f"{place}/work")
    assert stopped >= 3, "the kills came too late to disturb anything"


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["tiny", "demo"])
def test_a_killed_loop_ends_with_the_manifests_of_a_local_lake(
    corpus: str, bucket: str, endpoint: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, steps=2) if corpus == "tiny" else ROOT / "flows" / "demo.toml"
    place, run = f"{bucket}/loop", ("-m", "flows.cli", "run", str(recipe), "--lake")
    finish(*run, str(tmp_path / "local"), cache=tmp_path / "none")
    process, deadline = start(*run, f"s3://{place}", cache=tmp_path / "one"), time.monotonic() + LONGEST
    while (
        process.poll() is None
        and len(list(files(endpoint).glob(f"{place}/artifacts/*/*/manifest.json"))) < 8
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert killed(process)
    finish(*run, f"s3://{place}", cache=tmp_path / "another")
    whole = decided_locally(tmp_path / "local")
    assert decided(endpoint, place) == whole and len(whole) > 15
    finish(*run, f"s3://{place}", cache=tmp_path / "one")  # the killed machine finds all of it
    assert decided(endpoint, place) == whole
    verify_all(f"s3://{place}")
