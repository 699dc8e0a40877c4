"""The beginning of `gradus serve`: ports, processes, and why a part did not start."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import httpx

from curation.errors import GradusError, TransientError, UserError
from flows.service import lost, settings
from flows.service.pages import show_pages
from flows.service.processes import Child, end, told, user_of_port
from flows.service.settings import MARK, POOL, Serving, home, shown

READY_SECONDS, LOG_BYTES = 180, 4 << 20


@dataclass(frozen=True)
class Wish:
    """What was asked for: the lake's folder here and its address, recipes to deploy, where to listen, with a key or not."""

    lake: Path
    address: str
    recipes: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 4200
    auth: bool | None = None
    workers: int = 1


@dataclass
class Parts:
    """What runs for a wish: the server and the workers, once they are started."""

    wish: Wish
    key: str | None
    server: Child = field(default_factory=Child)
    workers: list[Child] = field(default_factory=list)
    api_url: str = ""

    @property
    def lake(self) -> Path:
        """The lake that is served."""
        return self.wish.lake

    @property
    def log(self) -> Path:
        """Where all parts write."""
        return home(self.lake) / "serve.log"

    @property
    def children(self) -> list[Child]:
        """All of them."""
        return [self.server, *self.workers]


def begin(parts: Parts, where: str, stop: threading.Event) -> Serving | None:
    """Starts server, workers, registration and pages at once; returns when all are ready, None when told to stop."""
    wish, key = parts.wish, parts.key
    port, listener = ports(wish)
    base, pages_url = (f"http://{shown(wish.host)}:{p}" for p in (port, listener.getsockname()[1]))
    parts.api_url = f"{base}/api"
    theirs = ("PREFECT_API_", "PREFECT_UI_", "PREFECT_SERVER_API_")  # of another server
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    inherited |= {
        MARK: str(wish.lake.resolve()),
        "PREFECT_HOME": str(home(wish.lake)),
        "PYTHONUNBUFFERED": "1",
    }
    database = {k: v for k, v in os.environ.items() if k.startswith("PREFECT_API_DATABASE_")}
    client = inherited | settings.client_environment(wish.lake, parts.api_url, key)
    client |= settings.worker_environment(wish.address)
    cap(parts.log)
    since = parts.log.stat().st_size if parts.log.exists() else 0
    server = (
        inherited | database | static_folder(wish.lake) | settings.server_environment(wish.host, port, key)
    )
    parts.server = Child("server", ["-m", "flows.service.server"], server, parts.log)
    parts.workers = [
        Child(
            f"worker {n}",
            ["-m", "flows.cli", "worker", "--name", f"{socket.gethostname()}-{n}"],
            client,
            parts.log,
        )
        for n in range(1, wish.workers + 1)
    ]
    deploy = Child("deploy", ["-m", "flows.cli", "deploy", *map(str, wish.recipes)], client, parts.log)
    for child in (*parts.children, deploy):
        child.start()
    show_pages(wish.lake.absolute() / "reports", listener, key)
    try:
        await_ready(parts, deploy, since, stop)
    finally:
        end([deploy.pid], 2)
        deploy.reap()
    if stop.is_set():
        return None
    return Serving(
        f"{base}/api", base, pages_url, os.getpid(), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", where
    )


def ports(wish: Wish) -> tuple[int, socket.socket]:
    """(the server's port, free now; the pages' listening socket, at the next port if that is free)."""
    try:
        with _bound(wish.host, wish.port) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        raise UserError(_why_not(wish, error)) from error
    for candidate in (port + 1, 0):
        with suppress(OSError, OverflowError):
            listener = _bound(wish.host, candidate)
            listener.listen(128)
            return port, listener
    raise UserError(f"no port is free at {wish.host} for the reports' pages")


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0], socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _why_not(wish: Wish, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {wish.host}: this machine knows no such address"
    if isinstance(error, PermissionError):
        return f"port {wish.port} may not be used by this user; choose one above 1023: --port 4200"
    return (
        f"port {wish.port} at {wish.host} is in use by {user_of_port(wish.port)}; choose another: "
        f"--port {wish.port + 2}, or --port 0 for any free one"
    )


def static_folder(lake: Path) -> dict[str, str]:
    """Where Prefect unpacks its pages: in its own package, or beside the data base when that is not ours to write."""
    package = find_spec("prefect")
    assert package is not None and package.origin is not None
    ours = os.access(Path(package.origin).parent / "server", os.W_OK)
    return {} if ours else {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home(lake) / "ui")}


def await_ready(parts: Parts, deploy: Child, since: int, stop: threading.Event) -> None:
    """Returns when deployments are registered and a worker is there (or told to stop); says why not otherwise."""
    deadline = time.monotonic() + READY_SECONDS
    while not stop.wait(0.1):
        for child in (*parts.children, deploy):
            status = child.ended()
            if status is not None and not (child is deploy and status == 0):
                raise cause(child, status, parts.log, since)
        if deploy.ended() == 0 and worker_online(parts.api_url, parts.key):
            return
        if time.monotonic() > deadline:
            raise TransientError(f"the server was not ready within {READY_SECONDS} s; its log: {parts.log}")


def worker_online(api_url: str, key: str | None) -> bool:
    """Whether a worker of the pool said within the last seconds that it is there."""
    with suppress(httpx.HTTPError, ValueError, TypeError), lost.client(api_url, key) as api:
        found = api.post(f"/work_pools/{POOL}/workers/filter", json={}).json()
        return any(worker["status"] == "ONLINE" for worker in found)
    return False


def cause(child: Child, status: int, log: Path, since: int) -> GradusError:
    """Why a part did not start, in words for what is known; else the end of what it wrote."""
    text, base = log.read_bytes()[since:].decode("utf-8", "replace"), log.with_name("prefect.db")
    kept = "the lake itself is untouched"
    if "Can't locate revision" in text:
        return UserError(
            f"{base} was made by a newer Prefect than this one; {kept}. Install that version again, or begin a new "
            f"history of runs: mv {base} {base}.newer"
        )
    if "file is not a database" in text or "disk image is malformed" in text:
        return UserError(
            f"{base} is damaged; {kept}. Put a backup in its place, or begin a new history of runs: "
            f"mv {base} {base}.damaged"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("gradus: ") for line in lines if line.startswith("gradus: ")]
    said = own[-1] if own else "\n  ".join([f"{told(status)}; the end of {log}:", *lines[-6:]])
    return UserError(f"the {child.name} did not start; {kept}: {said}")


def cap(log: Path) -> None:
    """Keeps the log's newest half when it has grown too large; who writes to it goes on at its end."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            kept = log.read_bytes()[-LOG_BYTES // 2 :]
            log.write_bytes(kept[kept.find(b"\n") + 1 :])
