"""A lake under `gradus serve`, its loop started over the API, as a scheduler or a person would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from crashing.processes import MARK

from flows.service.settings import serving

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SERVER_SECONDS, ZOMBIE_SECONDS = 240, 150


class Served:
    """The server of one lake, started again when it is killed."""

    def __init__(self, lake: Path, recipe: Path, mark: str, environment: dict[str, str]) -> None:
        self.lake, self.recipe = lake, recipe
        self._environment = environment | {MARK: mark}
        self.process: subprocess.Popen[bytes] | None = None
        self.runs: list[str] = []

    def start(self) -> None:
        """Returns when it is ready."""
        options = ["--lake", str(self.lake), "--port", "0", "--no-auth"]
        self.lake.mkdir(parents=True, exist_ok=True)
        with (self.lake / "supervisor.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", str(self.recipe), *options],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SERVER_SECONDS
        while (found := serving(self.lake)) is None or found.pid != self.process.pid:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"gradus serve did not start; see {self.lake}/supervisor.log")
            time.sleep(0.1)

    def died(self) -> bool:
        """Whether the supervisor is gone."""
        return self.process is None or self.process.poll() is not None

    def busy(self) -> bool:
        """Whether no run of the lake has completed."""
        return not any(
            b'"state": "completed"' in path.read_bytes() for path in self.lake.glob("runs/[!.]*.json")
        )

    def trigger(self, again: bool) -> str:
        """The id of a run of the loop: a new one, or the last one by Retry."""
        if again and self.runs:
            state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
            self._ask("POST", f"/flow_runs/{self.runs[-1]}/set_state", {"state": state})
            return self.runs[-1]
        deployment = self._ask("GET", "/deployments/name/curate/curate")["id"]
        body = {"parameters": {"recipe": str(self.recipe)}}
        self.runs.append(self._ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])
        return self.runs[-1]

    def state(self, run: str) -> str:
        """COMPLETED, RUNNING, …"""
        return self._ask("GET", f"/flow_runs/{run}")["state"]["type"]

    def message(self, run: str) -> str:
        """What the run's state says."""
        return str(self._ask("GET", f"/flow_runs/{run}")["state"]["message"])

    def unsettled(self) -> list[str]:
        """Runs that the server still takes for alive, though none is: after as long as it may take to notice."""
        deadline = time.monotonic() + ZOMBIE_SECONDS
        while left := [run for run in self.runs if self.state(run) not in ENDED]:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        return left

    def announced_twice(self) -> list[str]:
        """Versions whose event was sent more than once by runs of this lake since it was wiped."""
        wanted = {"filter": {"event": {"name": ["dataset.published"]}}}
        events = self._ask("POST", "/events/filter", wanted)["events"]
        told = [(e["payload"]["name"], e["payload"]["version"], e["payload"]["run"]) for e in events]
        return sorted(
            {f"{name}@v{version}" for name, version, run in told if told.count((name, version, run)) > 1}
        )

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                found = serving(self.lake)
                reply = (
                    httpx.request(method, f"{found.api_url}{path}", json=body, timeout=20) if found else None
                )
                if reply is not None and reply.status_code < 500:
                    return reply.raise_for_status().json()
            if time.monotonic() > deadline:
                raise SystemExit(f"no answer to {method} {path} within {SERVER_SECONDS} s")
            time.sleep(0.3)


def clean_environment(root: Path) -> dict[str, str]:
    """This process's environment without any server or lake of its user."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GRADUS_"))}
    return kept | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
