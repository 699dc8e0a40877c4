"""`gradus serve`: one command starts, watches over and ends everything, and says what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from curation.errors import TransientError, UserError
from flows.service import settings
from flows.service.processes import Child, marked
from flows.service.serve import key_for, serving_line, stop, take
from flows.service.settings import check_server, checked_key, home, make_key, serving
from flows.service.starting import Wish, cap, cause, ports, worker_online
from tests.service.conftest import gradus

pytestmark = pytest.mark.xdist_group("prefect")


@pytest.fixture
def no_keys(monkeypatch):
    for name in ("PREFECT_API_AUTH_STRING", *settings.KEY_NAMES):
        monkeypatch.delenv(name, raising=False)


def wish(lake: Path, **more) -> Wish:
    return Wish(lake, str(lake), **more)


def processes_of(lake: Path, word: str) -> set[int]:
    """The process ids of a part of the server."""
    return {
        pid for pid in marked(lake) if word in (Path("/proc") / str(pid) / "cmdline").read_bytes().decode()
    }


def until(true, seconds: float = 240) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds
        time.sleep(0.2)


def test_it_is_ready_and_says_where(served):
    lake, found, key = served
    assert check_server(found.api_url, key) == "3.8.8" and found.ui_url in serving_line(lake)
    until(lambda: worker_online(found.api_url, key))  # its sign of life may be late on a busy machine
    until(lambda: "a worker is there" in serving_line(lake))
    names = [d["name"] for d in api(served).post("/deployments/filter", json={}).json()]
    assert "curate" in names and "score" in names
    assert {a["name"] for a in api(served).post("/automations/filter", json={}).json()} >= {"crash-zombies"}
    assert api(served).get("/metrics").status_code == 200


def api(served) -> httpx.Client:
    return httpx.Client(base_url=served.found.api_url, auth=tuple(served.key.split(":", 1)), timeout=20)  # type: ignore[arg-type]


def test_a_second_one_names_the_first(served):
    again = gradus("serve", "--lake", str(served.lake), "--port", "0")
    assert again.returncode == 2 and served.found.ui_url in again.stderr and "serve stop" in again.stderr


def test_the_key_is_nowhere_but_in_its_file(served):
    path = home(served.lake) / "auth"
    assert path.stat().st_mode & 0o077 == 0 and served.key in path.read_text()
    password = served.key.partition(":")[2].encode()
    others = [p for p in home(served.lake).rglob("*") if p.is_file() and p != path]
    assert others and not [p for p in others if password in p.read_bytes()]
    assert not [
        pid for pid in marked(served.lake) if password in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    ]


def test_a_wrong_key_and_an_unreachable_server(served):
    with pytest.raises(
        UserError, match=r"refuses the key that was given \(401\); set PREFECT_API_AUTH_STRING"
    ):
        check_server(served.found.api_url, "gradus:not-the-password")
    with pytest.raises(UserError, match="requests without a key"):
        check_server(served.found.api_url, None)
    with pytest.raises(TransientError, match="no Prefect server answers"):
        check_server("http://127.0.0.1:9/api", None)
    wrong = gradus(
        "deploy", "--api-url", served.found.api_url, PREFECT_API_AUTH_STRING="gradus:not-the-password"
    )
    assert wrong.returncode == 2 and "401" in wrong.stderr and "not-the-password" not in wrong.stderr


def test_other_sites_and_names_are_refused(served):
    """Pages of other sites, and names that were made to point here."""
    url = served.found.api_url
    assert httpx.get(f"{url}/health", headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.get(f"{url}/health", headers={"Origin": url.removesuffix("/api")}).status_code == 200
    page = httpx.get(served.found.ui_url, headers={"Accept": "text/html"}, follow_redirects=True)
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and "script-src 'self'" in policy and "'unsafe-inline'; img" in policy


@pytest.mark.parametrize("part", ["flows.service.server", "worker"])
def test_a_killed_part_comes_back(served, part):
    (pid,) = processes_of(served.lake, part)
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes_of(served.lake, part) - {pid})
    until(lambda: worker_online(served.found.api_url, served.key))
    assert "(SIGKILL) and is started again" in (home(served.lake) / "serve.log").read_text()


def test_killed_with_all_its_parts_left_it_starts_clean_and_stops(served):
    lake = served.lake
    orphans = set(marked(lake))
    os.kill(served.found.pid, signal.SIGKILL)
    until(lambda: serving(lake) is None)
    assert orphans & set(marked(lake))
    begun = gradus("serve", "--lake", str(lake), "--port", "0", "--detach")
    assert begun.returncode == 0, begun.stderr
    assert not orphans & set(marked(lake)) and "an earlier `gradus serve` of this lake was killed" in (
        (home(lake) / "serve.log").read_text()
    )
    assert "kept" in stop(lake)
    assert serving(lake) is None and not marked(lake) and stop(lake) == f"{lake} is not served"


def test_a_port_in_use_names_who_and_the_option(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .* in use by .*{os.getpid()}.*--port"):
            ports(wish(tmp_path, port=port))


def test_never_beyond_loopback_without_a_key(tmp_path, no_keys):
    with pytest.raises(UserError, match="without a key would let everybody in"):
        key_for(wish(tmp_path, host="0.0.0.0", auth=False))
    assert key_for(wish(tmp_path)) == (None, "none")
    home(tmp_path).mkdir()
    key, where = key_for(wish(tmp_path, host="0.0.0.0"))
    assert where == "file" and key == make_key(tmp_path).read_text().strip()
    bare = {"PREFECT_SERVER_API_HOST": "0.0.0.0", "PREFECT_HOME": str(tmp_path)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    server = [sys.executable, "-m", "flows.service.server"]
    refused = subprocess.run(server, env=clean | bare, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "without a key" in refused.stderr


def test_keys_that_are_no_keys_are_refused_and_not_shown(tmp_path, no_keys, monkeypatch):
    for bad in ("secret-without-colon", "me:short", "me:" + "ü" * 20, "me:new\nline-in-it-123"):
        with pytest.raises(UserError, match="GRADUS_AUTH must be user:password") as error:
            checked_key(bad, "GRADUS_AUTH")
        assert bad not in str(error.value)
    monkeypatch.setenv("GRADUS_AUTH", "me:long-enough-for-all")
    assert key_for(wish(tmp_path)) == ("me:long-enough-for-all", "environment")
    home(tmp_path).mkdir()
    make_key(tmp_path).chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        settings.read_key(home(tmp_path) / "auth")


def test_a_lake_that_cannot_be_written(tmp_path):
    (tmp_path / "lake").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        take(tmp_path / "lake")


def test_too_little_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.service.serve.LEAST_DISK", 1 << 60)
    with pytest.raises(UserError, match="MiB of disk are left"):
        take(tmp_path)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("alembic...: Can't locate revision identified by 'abc'", "made by a newer Prefect"),
        ("sqlalchemy...: file is not a database", "is damaged"),
        ("noise\ngradus: there is no recipe x.toml\nmore", "there is no recipe x.toml"),
        ("Traceback\nBoom", "Boom"),
    ],
)
def test_why_a_part_did_not_start(tmp_path, written, says):
    log = tmp_path / "serve.log"
    log.write_text(f"an earlier start: Can't locate revision\n{written}\n")
    since = len("an earlier start: Can't locate revision\n")
    message = str(cause(Child("server"), 1, log, since))
    assert says in message and "the lake itself is untouched" in message


def test_the_log_keeps_its_newest_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.service.starting.LOG_BYTES", 1000)
    log = tmp_path / "serve.log"
    with log.open("ab") as held:
        held.write(b"".join(b"line %d\n" % i for i in range(300)))
        held.flush()
        cap(log)
        held.write(b"the end\n")
    kept = log.read_text().splitlines()
    assert kept[-2:] == ["line 299", "the end"] and kept[0].startswith("line ") and log.stat().st_size < 600
