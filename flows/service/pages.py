"""The reports of a lake in a browser: `LAKE/reports/*.html`, and nothing else of the disk.

`gradus serve` shows them from a thread; `python -m flows.service.pages` is the same alone, for production.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
import threading
from base64 import b64decode
from pathlib import Path
from typing import Any

from flows.service.guard import App, guarded
from flows.service.settings import LOOPBACK

# A report is one file with its own styles: it runs nothing, loads nothing and sends nothing.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def pages(folder: Path, key: str | None, names: frozenset[str] | None) -> App:
    """The web application: an index at `/`, each report by its own name; 401 without the key when there is one."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def page(request: Request) -> Response:
        if key and not knows(request.headers.get("authorization", ""), key):
            ask = {"WWW-Authenticate": 'Basic realm="gradus", charset="UTF-8"'}
            return PlainTextResponse("401: the key of this lake is needed\n", 401, headers=ask)
        name = request.path_params.get("name", "index.html")
        # Looked up among the names that are there: what was asked for never becomes a path.
        found = {p.name: p for p in folder.glob("*.html") if p.is_file() and not p.is_symlink()}
        if name not in found:
            return PlainTextResponse("404: no such report; the first is there when a run has ended\n", 404)
        return HTMLResponse(found[name].read_bytes())

    app = Starlette(routes=[Route("/", page), Route("/{name}", page)])
    return guarded(app, names, HEADERS)


def knows(header: str, key: str) -> bool:
    """Whether an Authorization header has the key."""
    kind, _, encoded = header.partition(" ")
    try:
        given = b64decode(encoded, validate=True)
    except ValueError:
        return False
    return kind.lower() == "basic" and hmac.compare_digest(given, key.encode())


def show_pages(folder: Path, listener: socket.socket, key: str | None) -> Any:
    """Serves the pages at the socket from a thread of this process; `should_exit = True` ends it."""
    import uvicorn

    app = pages(folder, key, None if key else frozenset(LOOPBACK))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return server


def main() -> None:
    """Serves GRADUS_LAKE's reports at GRADUS_PAGES_HOST and GRADUS_PAGES_PORT; beyond loopback with a key only."""
    import uvicorn

    from flows.service.settings import key_of

    host, key = os.environ.get("GRADUS_PAGES_HOST", "127.0.0.1"), key_of(None)
    if host not in LOOPBACK and not key:
        sys.exit(f"gradus: the reports would be open to all at {host}; set GRADUS_AUTH=user:password")
    app = pages(Path(os.environ["GRADUS_LAKE"]) / "reports", key, None if key else frozenset(LOOPBACK))
    port = int(os.environ.get("GRADUS_PAGES_PORT", "4201"))
    uvicorn.run(app, host=host, port=port, access_log=False, server_header=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
