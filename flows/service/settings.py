"""Where the server of a lake is, its key, and the environment of its processes.

Everything about a running server lies in `LAKE/prefect/`: the data base, the log, and `serve.json` while one runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from curation.errors import TransientError, UserError
from storage.store import url_of

MARK = "GRADUS_SERVING"  # in the environment of every process that `gradus serve` starts: the lake's path
POOL = "gradus"
KEY_NAMES = ("PREFECT_SERVER_API_AUTH_STRING", "GRADUS_AUTH")  # where a server's key may be given
LOOPBACK = ("127.0.0.1", "localhost", "::1")
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}

# The automation `crash-zombies` takes a run for dead that does not beat for 90 s; Prefect's own beat is 180 s.
BEATING = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


@dataclass(frozen=True)
class Serving:
    """A server that is ready: its addresses, the process that watches over it, since when (UTC)."""

    api_url: str
    ui_url: str
    pages_url: str
    pid: int
    started: str
    auth: str = "none"  # where the key is: none, file (LAKE/prefect/auth), environment


def home(lake: Path) -> Path:
    """The folder of Prefect's own files."""
    return lake.absolute() / "prefect"


def address_of(lake: Path) -> str:
    """What opens the lake from any process of this machine: its URL, or its whole path."""
    return url_of(lake) or str(lake.absolute())


def serving(lake: Path) -> Serving | None:
    """The server that `gradus serve` runs for this lake; None when there is none, or its process is gone."""
    with suppress(OSError, ValueError, TypeError):
        if is_held(home(lake) / "serve.lock"):
            return Serving(**json.loads((home(lake) / "serve.json").read_bytes()))
    return None


def announce(lake: Path, found: Serving) -> None:
    """Tells other processes that the server is ready."""
    aside = home(lake) / ".serve.json"
    aside.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    aside.replace(home(lake) / "serve.json")


def is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; the lock of a killed one is free."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def key_of(lake: Path | None) -> str | None:
    """The key `user:password` to the server of a lake, or to the one at PREFECT_API_URL; None when none is known."""
    found = serving(lake) if lake is not None else None
    if found and found.auth == "none":
        return None
    if found and found.auth == "file":
        return read_key(home(lake) / "auth")  # type: ignore[arg-type]
    names = ("PREFECT_API_AUTH_STRING", *KEY_NAMES)
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def read_key(path: Path) -> str:
    """The key in a file that this user alone can read."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); set PREFECT_API_AUTH_STRING to the server's key"
        ) from error
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} holds a key and others can read it; type: chmod 600 {path}")
    return checked_key(key, str(path))


def checked_key(key: str, where: str) -> str:
    """The key itself when a server takes it; the message never holds it."""
    user, colon, password = key.partition(":")
    if not (user and colon and len(password) >= 12) or not key.isascii() or not key.isprintable():
        raise UserError(
            f"the key in {where} must be user:password, ASCII, the password 12 characters or more"
        )
    return key


def make_key(lake: Path) -> Path:
    """The file that holds the lake's key, drawn now when there is none."""
    path = home(lake) / "auth"
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"gradus:{secrets.token_urlsafe(24)}\n")
    return path


def client_environment(lake: Path | None, api_url: str, key: str | None) -> dict[str, str]:
    """What a process needs that talks to the server."""
    own = {"PREFECT_API_URL": api_url, "PREFECT_UI_URL": api_url.removesuffix("/api")} | QUIET | BEATING
    if lake is not None:
        own["PREFECT_HOME"] = str(home(lake))
    return own | ({"PREFECT_API_AUTH_STRING": key} if key else {})


def server_environment(host: str, port: int, key: str | None) -> dict[str, str]:
    """What the server process needs: loopback only, nobody told, its own pages alone may call it."""
    origins = [f"http://{name}:{port}" for name in dict.fromkeys((shown(host), "127.0.0.1", "localhost"))]
    own = QUIET | {
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": "/api",  # as the browser reached the page: by name, number or proxy
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        "PREFECT_SERVER_METRICS_ENABLED": "true",
        # In memory they would be lost with the server, and their slots never be given back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    return own | ({"PREFECT_SERVER_API_AUTH_STRING": key} if key else {})


def worker_environment(lake: str) -> dict[str, str]:
    """What a worker and the runs it starts need beside the client's settings."""
    return {
        "GRADUS_LAKE": lake,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
        "PREFECT_CLIENT_MAX_RETRIES": "8",
    }


def shown(host: str) -> str:
    """The host as a URL has it; every address of this machine is shown as loopback."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def check_server(api_url: str, key: str | None, seconds: float = 5) -> str:
    """The server's Prefect version; `TransientError` when nobody answers, `UserError` when the key is refused."""
    request = urllib.request.Request(f"{api_url}/admin/version")
    if key:
        request.add_header("Authorization", "Basic " + b64encode(key.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            return json.loads(reply.read(1000))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            have = "the key that was given" if key else "requests without a key"
            raise UserError(
                f"the server at {api_url} refuses {have} ({error.code}); set PREFECT_API_AUTH_STRING to its "
                "user:password (for `gradus serve` it is in LAKE/prefect/auth)"
            ) from error
        raise TransientError(f"the server at {api_url} answered {error.code}; nothing was done") from error
    except (OSError, ValueError) as error:
        raise TransientError(
            f"no Prefect server answers at {api_url} ({getattr(error, 'reason', error)}); nothing was done. "
            "Start one with `gradus serve`, or correct PREFECT_API_URL"
        ) from error
