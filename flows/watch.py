"""Ends the temporary Prefect server when the run that started it is gone, however it ended.

`python -m flows.watch MARK` waits for the end of its standard input, which the run holds open, and then ends the
server that carries the run's mark in its environment. Where there is no /proc it does nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

MARK = "GRADUS_SERVER_OF"


def watch_server(run_id: str) -> subprocess.Popen:
    """A watcher for the server that this process is about to start; call it before Prefect starts one."""
    os.environ[MARK] = f"{run_id}-{os.getpid()}"
    command = [sys.executable, "-m", "flows.watch", os.environ[MARK]]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def servers_of(mark: str) -> list[int]:
    """Process ids of the servers that carry this mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes()
            if marked and b"uvicorn" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def main() -> None:
    sys.stdin.read()
    for pid in servers_of(sys.argv[1]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
