"""`gradus serve`: a Prefect server, workers and the reports' pages for one lake, watched over by this process.

One process serves a lake, and holds the lock `prefect/serve.lock` while it lives. What it starts carries the lake in
its environment, so that the next one finds and ends what a killed one left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx

from curation.errors import TransientError, UserError
from flows.service import lost, settings
from flows.service.processes import alive, end, marked, parent_of, run_ids, running_flows, told
from flows.service.settings import KEY_NAMES, LOOPBACK, Serving, home, serving
from flows.service.starting import Parts, Wish, begin, cap, worker_online

LEAST_DISK = 200 << 20
Say = Callable[[str], None]


def serve(wish: Wish, say: Say) -> None:
    """Serves until SIGINT or SIGTERM; raises when it cannot begin, with what to type."""
    lock = take(wish.lake)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    orphans = end_orphans(wish.lake, say)
    key, where = key_for(wish)
    parts = Parts(wish, key)
    try:
        found = begin(parts, where, stop)
        if found:
            settings.announce(wish.lake, found)
            crash(parts, orphans)
            for line in greeting(wish.lake, found):
                say(line)
            watch(parts, stop, say)
            say(finish(parts))
    finally:
        (home(wish.lake) / "serve.json").unlink(missing_ok=True)
        finish(parts)
        lock.close()


def take(lake: Path) -> IO[bytes]:
    """The lake's serving lock, open; refuses a lake that is served already, cannot be written, or has no disk left."""
    try:
        home(lake).mkdir(parents=True, exist_ok=True)
        lock = (home(lake) / "serve.lock").open("ab")
        free = shutil.disk_usage(home(lake)).free
    except OSError as error:
        raise UserError(
            f"{home(lake)} cannot be written ({error.strerror}); a server keeps its data base there. "
            "Correct the folder's owner, or serve a lake that you may write: --lake LAKE"
        ) from error
    if free < LEAST_DISK:
        raise UserError(
            f"{free >> 20} MiB of disk are left for {lake}, a server needs {LEAST_DISK >> 20}; nothing was started. "
            f"Free some (`gradus gc --lake {lake}` lists what can go), or serve a lake elsewhere"
        )
    for _ in range(20):  # who only asks whether it is held lets go at once
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (home(lake) / "serve.json").unlink(missing_ok=True)
            return lock
        if found := serving(lake):
            raise UserError(
                f"{lake} is served already: {found.ui_url} (process {found.pid}, since {found.started}); "
                f"end it with: gradus serve stop --lake {lake}"
            )
        time.sleep(0.1)
    raise UserError(f"another `gradus serve` of {lake} is starting or ending; try again in a moment")


def end_orphans(lake: Path, say: Say) -> list[str]:
    """Ends what a killed `gradus serve` of this lake left behind; the flow runs that were among it."""
    left = marked(lake)
    if left:
        say(f"an earlier `gradus serve` of this lake was killed; ending the {len(left)} processes it left")
        end(left, 5, lambda: marked(lake))
    return run_ids(left.values())


def key_for(wish: Wish) -> tuple[str | None, str]:
    """(the key that the server will ask for, where it is kept); beyond loopback there is always one."""
    beyond = wish.host not in LOOPBACK
    given = {name: os.environ[name] for name in KEY_NAMES if os.environ.get(name)}
    if wish.auth is False and beyond:
        raise UserError(f"--host {wish.host} without a key would let everybody in; leave out --no-auth")
    if wish.auth is False or (wish.auth is None and not beyond and not given):
        return None, "none"
    for name, key in given.items():
        return settings.checked_key(key, name), "environment"
    return settings.read_key(settings.make_key(wish.lake)), "file"


def greeting(lake: Path, found: Serving) -> list[str]:
    """What a person needs to know of a server that is ready."""
    keys = {"file": [f"in {home(lake) / 'auth'}"], "environment": ["the one in the environment"]}
    return [
        f"serving {lake}",
        f"  runs, forms, schedules   {found.ui_url}",
        f"  reports                  {found.pages_url}",
        *(f"  key (user:password)      {where}" for where in keys.get(found.auth, [])),
        f"  log                      {home(lake) / 'serve.log'}",
        f"  end it                   Ctrl-C, or: gradus serve stop --lake {lake}",
    ]


def watch(parts: Parts, stop: threading.Event, say: Say) -> None:
    """Starts again what dies, until told to stop. The runs of a worker that died are ended: nobody could cancel them."""
    while not stop.wait(0.5):
        for child in parts.children:
            if child.revive(say) and child is not parts.server:
                workers = {c.pid for c in parts.workers}
                left = {
                    pid: e for pid, e in running_flows(parts.lake).items() if parent_of(pid) not in workers
                }
                end(left, 8)
                crash(parts, run_ids(left.values()))
        cap(parts.log)


def crash(parts: Parts, runs: list[str]) -> None:
    """Tells the server that these runs are dead; when it cannot be told now, their missing heartbeat will."""
    with suppress(httpx.HTTPError, ValueError), lost.client(parts.api_url, parts.key) as api:
        lost.crash(api, runs, "its worker was ended")


def finish(parts: Parts) -> str:
    """Ends runs, workers and server, in this order and within seconds; what is kept, in words."""
    flows, server = running_flows(parts.lake), {parts.server.pid}
    end({*flows, *(worker.pid for worker in parts.workers)}, 8, lambda: set(marked(parts.lake)) - server)
    if flows:
        crash(parts, run_ids(flows.values()))
    end(server, 6, lambda: marked(parts.lake))
    for child in parts.children:
        child.reap()
    runs = (
        f"{len(flows)} under way ended, finished shards are kept and Retry goes on from there; "
        if flows
        else ""
    )
    return f"stopped: {runs}the lake and the history of runs are kept"


def detach(wish: Wish, say: Say) -> None:
    """Starts `gradus serve` in the background, and returns when it is ready."""
    take(wish.lake).close()
    log = home(wish.lake) / "serve.log"
    with log.open("ab") as out:
        begin_at = out.tell()
        asked = {"--lake": wish.address, "--host": wish.host, "--port": wish.port, "--workers": wish.workers}
        options = [str(part) for pair in asked.items() for part in pair]
        options += {None: [], True: ["--auth"], False: ["--no-auth"]}[wish.auth]
        command = [sys.executable, "-m", "flows.cli", "serve", *map(str, wish.recipes), *options]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    while process.poll() is None:
        found = serving(wish.lake)
        if found and found.pid == process.pid:
            for line in greeting(wish.lake, found):
                say(line)
            return
        time.sleep(0.1)
    said = log.read_bytes()[begin_at:].decode("utf-8", "replace").rpartition("gradus: ")
    raise UserError(said[2].strip() if said[1] else f"it ended ({told(process.returncode)}); its log: {log}")


def stop(lake: Path) -> str:
    """Ends the server of this lake, however it was started; what it was, in words."""
    found = serving(lake)
    if found is None:
        left = marked(lake)
        end(left, 8, lambda: marked(lake))
        return (
            f"ended {len(left)} processes that a killed `gradus serve` left"
            if left
            else f"{lake} is not served"
        )
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while alive(found.pid) and settings.is_held(home(lake) / "serve.lock"):
        if time.monotonic() > deadline:
            raise TransientError(
                f"process {found.pid} does not end; type: kill -9 {found.pid}, then the same again"
            )
        time.sleep(0.05)
    return f"stopped {found.ui_url}; the lake and the history of runs are kept"


def serving_line(lake: Path) -> str:
    """What `gradus status` says of the lake's server."""
    found = serving(lake)
    if found is None:
        return "none; `gradus serve` starts one with forms, schedules and reports"
    there = worker_online(found.api_url, settings.key_of(lake))
    worker = "a worker is there" if there else f"no worker answers, see {home(lake) / 'serve.log'}"
    return f"{found.ui_url}, reports {found.pages_url}, since {found.started}; {worker}"
