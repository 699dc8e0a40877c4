"""A Postgres of our own in a folder, on loopback, for as long as a block lasts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from crashing.processes import MARK


@contextmanager
def postgres(folder: Path, mark: str) -> Generator[str]:
    """The URL of an empty data base; its processes carry the mark, so that they are killed too."""
    programs = programs_folder()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    folder.mkdir(mode=0o700)
    for above in (folder.parent, folder):
        above.chmod(0o711)
    if as_user:
        shutil.chown(folder, "postgres")
    data, environment = folder / "data", {**os.environ, MARK: mark}
    make = [*as_user, f"{programs}/initdb", "-D", str(data), "-U", "gradus", "--auth=trust", "--no-sync"]
    subprocess.run(make, check=True, env=environment, stdout=subprocess.DEVNULL, cwd="/")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    with (folder.parent / "postgres.log").open("ab") as log:
        command = [*as_user, f"{programs}/postgres", "-D", str(data), *options]
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    try:
        await_port(port, server)
        subprocess.run(
            [f"{programs}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "gradus", "prefect"],
            check=True,
        )
        yield f"postgresql+asyncpg://gradus@127.0.0.1:{port}/prefect"
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)


def programs_folder() -> Path:
    """Where `initdb` is; Debian does not have it on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found += [Path(p) for p in (shutil.which("initdb"),) if p]
    if not found:
        sys.exit("--database postgres needs Postgres here: apt-get install postgresql")
    return found[-1].resolve().parent  # beside it are the others


def await_port(port: int, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Returns when something listens there."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("Postgres did not start")
