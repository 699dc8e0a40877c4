"""A Prefect server for one run, which ends when the run is gone, however that ended.

`python -m flows.service.temporary` is the server; it ends when its standard input closes, which the run holds open. It has
a session of its own: Ctrl-C in a terminal reaches the run alone, which can then still tell the server how it ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from curation.errors import TransientError
from flows.service.settings import LOOPBACK, QUIET, server_environment

READY_SECONDS = 120
_held: list[subprocess.Popen[bytes]] = []  # their standard input stays open as long as this process lives


def temporary_server(home: Path) -> str:
    """Address of the API of a new server on loopback, whose data base and log are in `home`; `TransientError`: none."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.create_server((LOOPBACK[0], 0)) as probe:
        port = probe.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_SERVER_API_")}
    environment = (
        inherited | QUIET | server_environment(LOOPBACK[0], port, None) | {"PREFECT_HOME": str(home)}
    )
    log = home / "temporary.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.service.temporary"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    _held.append(server)
    api_url, deadline = f"http://{LOOPBACK[0]}:{port}/api", time.monotonic() + READY_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{api_url}/health", timeout=5):
            return api_url
        time.sleep(0.1)
    raise TransientError(
        f"the temporary Prefect server did not start; nothing was computed; its log: {log}. Type the same command again, "
        "or `gradus doctor`"
    )


def _end_with_the_run() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    from flows.service.server import main

    threading.Thread(target=_end_with_the_run, daemon=True).start()
    main()
