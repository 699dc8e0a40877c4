"""Prefect's server behind the guard: `python -m flows.service.server`, set up by PREFECT_SERVER_… alone.

The same process for `gradus serve` and for production. It refuses to listen beyond loopback without a key.
"""

from __future__ import annotations

import sys
import threading

from flows.service.guard import guarded
from flows.service.lost import keep_settling
from flows.service.settings import LOOPBACK, shown

# Prefect stores and may show what runs wrote; no script but its own files runs in its pages, nothing leaves them.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def main() -> None:
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    host, locked = settings.api.host, settings.api.auth_string is not None
    if host not in LOOPBACK and not locked:
        sys.exit(
            f"gradus: the server would listen at {host} without a key; set PREFECT_SERVER_API_AUTH_STRING, or "
            "PREFECT_SERVER_API_HOST=127.0.0.1"
        )
    own, key = f"http://{shown(host)}:{settings.api.port}/api", settings.api.auth_string
    told = (own, key.get_secret_value() if key else None)
    threading.Thread(target=keep_settling, args=told, daemon=True).start()
    uvicorn.run(
        guarded(create_app(final=True), None if locked else frozenset(LOOPBACK), HEADERS),  # type: ignore[arg-type]
        host=host,
        port=settings.api.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        timeout_graceful_shutdown=3,
        server_header=False,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
