"""One scoring process a device: the same bytes as on all cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.run import scoring_devices
from tests.crash.test_run_kill import content
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe


def test_devices_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DEVICES", "cuda:0, cuda:2")
    assert scoring_devices() == ("cuda:0", "cuda:2")


def test_a_process_for_each_device_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, steps=2)
    monkeypatch.delenv("GRADUS_DEVICES", raising=False)
    plain_run(recipe, tmp_path / "cores")
    monkeypatch.setenv("GRADUS_DEVICES", "cpu,cpu")
    plain_run(recipe, tmp_path / "devices")
    assert content(tmp_path / "devices") == content(tmp_path / "cores")
