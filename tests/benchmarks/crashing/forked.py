"""Runs without Prefect, each forked from one process that has loaded everything: a run begins at once."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import traceback
from pathlib import Path


class Forking:
    """The process that is forked; one run at a time, polled and waited for as `subprocess.Popen` is."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as out:
            self._parent = subprocess.Popen(
                [sys.executable, __file__],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                bufsize=0,
                start_new_session=True,
            )
        self.pid = self._parent.pid
        self._status: int | None = None

    def start(self, recipe: Path, lake: Path) -> Forking:
        """Begins a run."""
        assert self._parent.stdin is not None
        self._status = None
        self._parent.stdin.write(json.dumps([str(recipe), str(lake)]).encode() + b"\n")
        return self

    def poll(self, seconds: float = 0) -> int | None:
        """The run's exit status; None while it runs."""
        out = self._parent.stdout
        assert out is not None
        if self._status is None and select.select([out], [], [], seconds)[0]:
            self._status = int(out.readline() or b"1")
        return self._status

    def wait(self, seconds: float) -> int:
        """The run's exit status, after waiting for it."""
        if (status := self.poll(seconds)) is None:
            raise subprocess.TimeoutExpired("run", seconds)
        return status


def main() -> None:
    """Forks a run for every line of standard input, and prints its exit status; loads, but computes nothing itself."""
    import flows.loop
    import flows.score
    from tests.plain_run import plain_run

    assert flows.loop and flows.score
    for line in iter(sys.stdin.readline, ""):
        recipe, lake = json.loads(line)
        if (pid := os.fork()) == 0:
            os.close(0)
            try:
                plain_run(Path(recipe), Path(lake))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
