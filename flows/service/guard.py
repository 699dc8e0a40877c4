"""A guard in front of a web server: whose pages may call it, and by which name it may be called.

The browser of a person who runs `gradus serve` also opens other people's pages. Those could reach a server on
loopback: by a name that is made to point here (DNS rebinding), by a form, by a WebSocket. Each is refused here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

App = Callable[[Any, Any, Any], Awaitable[None]]


def guarded(app: App, names: frozenset[str] | None, headers: Mapping[str, str]) -> App:
    """The app behind the guard: called by one of these host names (None: any), by its own pages or by no page.

    Every answer carries the headers.
    """
    extra = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = refused(given.get(b"host", ""), given.get(b"origin"), names)
        if refusal:
            await refuse(scope, send, refusal, extra)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in extra if h[0] not in own)]
                if message["status"] == 503:
                    # Sqlite met another writer: without this, Prefect's clients wait 2 s, then 4, then 8.
                    message["headers"].append((b"retry-after", b"0.5"))
            await send(message)

        await app(scope, receive, with_headers)

    return guard


def refused(host: str, origin: str | None, names: frozenset[str] | None) -> str:
    """Why a request is refused; empty when it is not."""
    name = urlsplit(f"//{host}").hostname if host else None
    if names is not None and name not in names:
        return "unknown host name"
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "another site's page"
    return ""


async def refuse(scope: Any, send: Any, reason: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Answers 403, or closes a WebSocket before it is open."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    body = f"refused: {reason}\n".encode()
    kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": kind + headers})
    await send({"type": "http.response.body", "body": body})
