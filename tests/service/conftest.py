"""A real `gradus serve` with a key, for the tests that need one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.service.processes import end, marked
from flows.service.settings import Serving, key_of, serving


class Served(NamedTuple):
    lake: Path
    found: Serving
    key: str


def gradus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, without whatever server this test run talks to."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GRADUS_"))}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=clean | environment,
    )


@pytest.fixture(scope="session")
def lake_to_serve(tmp_path_factory):
    lake = tmp_path_factory.mktemp("served") / "lake"
    try:
        yield lake
    finally:
        gradus("serve", "stop", "--lake", str(lake))
        end(marked(lake), 1)


@pytest.fixture
def served(lake_to_serve):
    """The server: one for all tests, and another when a test ended it."""
    lake = lake_to_serve
    if serving(lake) is None:
        begun = gradus("serve", "--lake", str(lake), "--port", "0", "--auth", "--detach")
        assert begun.returncode == 0, begun.stderr + (lake / "prefect" / "serve.log").read_text()
        assert serving(lake).ui_url in begun.stdout
        assert key_of(lake) not in begun.stdout + begun.stderr
    found, key = serving(lake), key_of(lake)
    assert found is not None and key is not None
    return Served(lake, found, key)
