"""Processes that `gradus serve` starts: begun, watched, found again after a crash, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flows.service.settings import MARK

RUN = b"PREFECT__FLOW_RUN_ID="
LONGEST_PAUSE, STEADY_SECONDS = 30.0, 60.0


@dataclass
class Child:
    """A process that is to run for as long as the server does; it writes into the log."""

    name: str = ""
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    log: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    pause: float = 1.0

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started, or when it has ended."""
        return self.process.pid if self.process and self.process.poll() is None else 0

    def start(self) -> None:
        """Begins the process, in a session of its own: Ctrl-C at the terminal is for `gradus serve`."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.begun = time.monotonic()

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.process.poll() if self.process else None

    def reap(self) -> None:
        """Waits for its end."""
        if self.process:
            self.process.wait()

    def revive(self, say: Callable[[str], None]) -> bool:
        """Starts it again when it has died, after a pause that grows while it keeps dying; whether it did."""
        status, lived = self.ended(), time.monotonic() - self.begun
        if status is None:
            return False
        if lived > STEADY_SECONDS:
            self.pause = 1.0
        if lived < self.pause:
            return False
        say(f"{self.name} ended ({told(status)}) and is started again")
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        self.start()
        return True


def told(status: int) -> str:
    """An exit status in words."""
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name


def marked(lake: Path) -> dict[int, bytes]:
    """pid -> environment of all processes that carry this lake's mark; none where there is no /proc."""
    mark, found = f"{MARK}={lake.resolve()}".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (entry / "environ").read_bytes()
            if mark in environment.split(b"\0"):
                found[int(entry.name)] = environment
    return found


def running_flows(lake: Path) -> dict[int, bytes]:
    """The processes of the runs under way, without those that they started themselves."""
    flows = {pid: environment for pid, environment in marked(lake).items() if RUN in environment}
    return {pid: environment for pid, environment in flows.items() if parent_of(pid) not in flows}


def run_ids(environments: Iterable[bytes]) -> list[str]:
    """The flow runs that processes with these environments belong to."""
    variables = (variable for environment in environments for variable in environment.split(b"\0"))
    return sorted({v.removeprefix(RUN).decode() for v in variables if v.startswith(RUN)})


def parent_of(pid: int) -> int:
    """The process that started it; 0 when it is gone."""
    with suppress(OSError):
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def end(pids: Iterable[int], seconds: float, also: Callable[[], Iterable[int]] = tuple) -> None:
    """Asks processes to end, and those that are left after so many seconds (and `also` then) are killed."""
    asked = set(pids) - {0}
    for pid in asked:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(alive(pid) for pid in asked):
        time.sleep(0.05)
    for pid in {*asked, *also()}:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether it runs; a child that has ended is reaped by whoever started it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def user_of_port(port: int) -> str:
    """Who listens at a port of this machine: program and process id, as far as this user may see."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            lines = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            sockets |= {f[9] for f in lines if f[3] == "0A" and int(f[1].rpartition(":")[2], 16) == port}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(link.readlink())[8:-1] in sockets:
                pid = link.parts[2]
                name = (Path("/proc") / pid / "comm").read_text().strip()
                return f"{name} (process {pid})"
    return "another program"
