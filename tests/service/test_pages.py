"""The reports' pages: only reports, only with the key, only to their own pages."""

from __future__ import annotations

import http.client
import socket

import httpx
import pytest

from flows.service.guard import refused
from flows.service.pages import show_pages

KEY = "gradus:the-password-of-this-lake"


@pytest.fixture
def reports(tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "index.html").write_text("<p>all runs")
    (folder / "20260101T000000-it's <b>-1.html").write_text("<p>one run")
    (folder / "notes.txt").write_text("no report")
    (tmp_path / "secret.html").write_text("outside")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    return folder


@pytest.fixture
def served_pages(reports, request):
    listener = socket.create_server(("127.0.0.1", 0))
    server = show_pages(reports, listener, getattr(request, "param", None))
    yield listener.getsockname()[1]
    server.should_exit = True


def raw(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    """A request whose path no client has tidied up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_reports_and_nothing_else(served_pages):
    base = f"http://127.0.0.1:{served_pages}"
    index = httpx.get(base)
    assert index.text == "<p>all runs" and index.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{base}/20260101T000000-it's%20%3Cb%3E-1.html").text == "<p>one run"
    for path in (
        "/notes.txt", "/link.html", "/secret.html", "/../secret.html", "/..%2fsecret.html", "/%2e%2e/secret.html",
        "//secret.html", "/reports/../../secret.html", "/..\\secret.html", "/index.html%00.txt", "/.", "/%2e%2e",
    ):  # fmt: skip
        status, body = raw(served_pages, path)
        assert status == 404 and b"outside" not in body, path
    assert httpx.post(base).status_code == 405


def test_headers_let_nothing_run(served_pages):
    for path in ("/", "/none.html"):
        headers = httpx.get(f"http://127.0.0.1:{served_pages}{path}").headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers


def test_another_name_or_site_is_refused(served_pages):
    assert raw(served_pages, "/", Host=f"evil.example:{served_pages}")[0] == 403
    assert raw(served_pages, "/", Host=f"localhost:{served_pages}")[0] == 200
    assert raw(served_pages, "/", Origin="http://evil.example")[0] == 403
    assert raw(served_pages, "/", Origin=f"http://127.0.0.1:{served_pages}")[0] == 200


@pytest.mark.parametrize("served_pages", [KEY], indirect=True)
def test_without_the_key_nothing_is_read(served_pages):
    base = f"http://127.0.0.1:{served_pages}"
    for auth in (None, ("gradus", "wrong"), ("", ""), ("gradus", "")):
        reply = httpx.get(base, auth=auth)
        assert reply.status_code == 401 and "runs" not in reply.text
        assert reply.headers["www-authenticate"].startswith("Basic")
    for header in ("Basic", "Basic !!!", "Basic Z3JhZHVz", "Bearer x", "Basic ü"):
        assert raw(served_pages, "/", Authorization=header)[0] == 401
    assert httpx.get(base, auth=tuple(KEY.split(":", 1))).text == "<p>all runs"  # type: ignore[arg-type]


def test_which_names_and_pages_may_call():
    names = frozenset({"127.0.0.1", "localhost", "::1"})
    assert not refused("127.0.0.1:4200", None, names) and not refused("[::1]:4200", None, names)
    assert not refused("localhost:4200", "http://localhost:4200", names)
    assert refused("", None, names) and refused("127.0.0.1.evil.example", None, names)
    assert refused("localhost:4200", "http://localhost:4201", names) and refused(
        "localhost:4200", "null", names
    )
    assert not refused("gradus.team:443", "https://gradus.team:443", None)
