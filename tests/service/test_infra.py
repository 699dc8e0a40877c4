"""Compose files and systemd units: they parse, and what keeps strangers out and runs alive is set."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.service import settings

INFRA = Path(__file__).parents[2] / "infra"
SERVICES = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]
UNITS = sorted((INFRA / "systemd").glob("*.service"))


def test_compose_has_every_part_and_restarts_it():
    assert set(SERVICES) == {"postgres", "server", "deploy", "worker", "worker-gpu", "pages"}
    assert all(s["restart"] in ("unless-stopped", "on-failure") for s in SERVICES.values())
    assert all("healthcheck" in SERVICES[name] for name in ("postgres", "server", "pages"))
    assert "gradus-gpu" in SERVICES["worker-gpu"]["command"] and "gradus" in SERVICES["worker"]["command"]


def test_compose_publishes_on_loopback_with_a_key_only():
    ports = [port for s in SERVICES.values() for port in s.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    server, worker, pages = (SERVICES[name]["environment"] for name in ("server", "worker", "pages"))
    for key in (
        server["PREFECT_SERVER_API_AUTH_STRING"],
        worker["PREFECT_API_AUTH_STRING"],
        pages["GRADUS_AUTH"],
    ):
        assert key.startswith("${GRADUS_AUTH:?")  # compose refuses to start without it
    assert server["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")


def test_production_servers_are_set_up_like_the_local_one():
    own = settings.server_environment("127.0.0.1", 4200, "gradus:some-long-password")
    unit = (INFRA / "systemd" / "gradus-server.service").read_text()
    for name in set(own) - {"DO_NOT_TRACK", "PREFECT_CLI_PROMPT", "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"}:
        assert name in SERVICES["server"]["environment"], name
        if not name.startswith("PREFECT_SERVER_API_"):
            assert name in unit, name


def test_no_secret_is_written_down():
    for path in (*INFRA.rglob("*.yaml"), *INFRA.rglob("*.env"), *UNITS):
        for name, value in re.findall(r"(\w*(?:AUTH|PASSWORD)\w*)[=:] *(\S*)", path.read_text()):
            assert not value or value.startswith(("${", "user:password")), (path, name)


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_are_hardened_and_restart(path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(path.read_text())
    service = unit["Service"]
    assert service["Restart"] == "always" and service["User"] == "gradus" and "EnvironmentFile" in service
    for name, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
    }.items():
        assert service[name] == value
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60
        )
        wrong = [
            line for line in done.stderr.splitlines() if path.stem in line and "is not executable" not in line
        ]
        assert not wrong
