"""The processes that this benchmark started, by what they do: found by a mark in their environment, never by name."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from flows.service.processes import parent_of

MARK = "GRADUS_CRASHING"
# A word of the command line -> what the process does; the first that fits.
ROLES = {
    "multiprocessing.resource_tracker": "",
    "spawn_main": "shard worker",
    "flows.service.temporary": "temporary server",
    "flows.service.server": "server",
    "flows.cli worker": "worker",
    "flows.cli deploy": "",
    "flows.cli serve": "supervisor and pages",
    "bin/postgres": "",  # the postmaster, which nobody would start again
    "flows.cli run": "run",
    "tests.plain_run": "run",
    "crashing/forked.py": "run",
}
FLOW_RUN = b"PREFECT__FLOW_RUN_ID="


def ours(mark: str) -> dict[int, str]:
    """pid -> what it does, of all living processes with this mark; those of no interest are called ''."""
    found, wanted = {}, f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (entry / "environ").read_bytes().split(b"\0")
            if wanted in environment:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                flow = any(variable.startswith(FLOW_RUN) for variable in environment)
                found[int(entry.name)] = role_of(command, flow)
                if "crashing/forked.py" in command and parent_of(int(entry.name)) == os.getpid():
                    del found[int(entry.name)]  # what runs are forked from
    return found | backends(found)


def backends(found: dict[int, str]) -> dict[int, str]:
    """Processes of our Postgres, which write their titles over their environment."""
    out = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"postgres: ") and parent_of(
                int(entry.name)
            ) in found:
                out[int(entry.name)] = "database"
    return out


def role_of(command: str, flow: bool) -> str:
    """What a process with this command line does; one that belongs to a flow run and is no worker is the run."""
    fits = (role for word, role in ROLES.items() if word in command)
    return next(fits, "run" if flow else "")


def kill(pid: int) -> bool:
    """kill -9; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def gone(mark: str, seconds: float, except_for: frozenset[int] = frozenset()) -> dict[int, str]:
    """Those of our processes that are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while (
        left := {p: r for p, r in ours(mark).items() if p not in except_for}
    ) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
