"""With a key set, no part of the API answers without it: every route of the server's own schema is tried."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from flows.service.guard import guarded
from flows.service.server import HEADERS

KEY = "gradus:the-password-of-this-lake"
OPEN = {("GET", "/api/health"), ("GET", "/api/ready")}


@pytest.fixture(scope="module")
def app():
    from prefect.server.api.server import create_app
    from prefect.settings import (
        PREFECT_API_ENABLE_METRICS,
        PREFECT_SERVER_API_AUTH_STRING,
        temporary_settings,
    )

    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: KEY, PREFECT_API_ENABLE_METRICS: True}):
        made = create_app(ignore_cache=True)
        yield made


def answers(app, requests: list[tuple[str, str]], auth: tuple[str, str] | None = None) -> list[int]:
    async def ask() -> list[int]:
        transport = httpx.ASGITransport(guarded(app, None, HEADERS), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:4200", auth=auth
        ) as client:
            return [(await client.request(method, path)).status_code for method, path in requests]

    return asyncio.run(ask())


def routes(app) -> list[tuple[str, str]]:
    """Every (method, path) of the schema, with something in the place of each parameter."""
    paths = app.openapi()["paths"]
    some = "00000000-0000-0000-0000-000000000000"
    return [
        (method.upper(), "/api" + re.sub(r"{[^}]*}", some, path).removeprefix("/api"))
        for path, methods in paths.items()
        for method in methods
    ]


def test_every_route_needs_the_key(app):
    asked = routes(app)
    assert (
        len(asked) > 150 and ("POST", "/api/flow_runs/filter") in asked and ("GET", "/api/metrics") in asked
    )
    for auth in (None, ("gradus", "wrong")):
        open_to_all = [
            a for a, code in zip(asked, answers(app, asked, auth), strict=True) if code not in (401, 403)
        ]
        assert set(open_to_all) <= OPEN


def test_routes_that_the_schema_does_not_name(app):
    hidden = [
        (m, p)
        for m in ("GET", "POST")
        for p in ("/api", "/api/", "/api/docs", "/api/openapi.json", "/api/static/x")
    ]
    tricks = [
        ("GET", p)
        for p in ("/api/health/../flows/count", "/api//health", "/api/variables/name/health", "/api/HEALTH")
    ]
    codes = answers(app, hidden + tricks)
    assert set(codes) <= {401, 403, 307, 404, 405}, list(zip(hidden + tricks, codes, strict=True))


def test_the_key_opens_it(app):
    assert answers(app, [("GET", "/api/admin/version")], tuple(KEY.split(":", 1))) == [200]  # type: ignore[arg-type]


@pytest.mark.xdist_group("prefect")
def test_events_and_logs_are_not_streamed_without_the_key(served):
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    base = served.found.api_url.replace("http", "ws", 1)
    for path in ("/events/out", "/events/in", "/logs/out"):
        for subprotocols in (None, ["prefect"]):
            with (
                pytest.raises((WebSocketException, AssertionError)),
                connect(f"{base}{path}", subprotocols=subprotocols) as stream,
            ):  # type: ignore[arg-type]
                stream.send('{"type": "auth", "token": "gradus:wrong-password"}')
                answer = stream.recv(timeout=5)
                raise WebSocketException if "auth_success" not in str(answer) else ValueError(answer)


@pytest.mark.xdist_group("prefect")
def test_the_running_server_and_its_reports_ask_for_the_key(served):
    for method, path in (
        ("POST", "/flow_runs/filter"),
        ("POST", "/logs/filter"),
        ("POST", "/artifacts/filter"),
        ("GET", "/metrics"),
    ):
        assert httpx.request(method, served.found.api_url + path).status_code == 401
    assert httpx.get(served.found.pages_url).status_code == 401
    assert httpx.get(served.found.pages_url, auth=tuple(served.key.split(":", 1))).status_code in (200, 404)  # type: ignore[arg-type]
