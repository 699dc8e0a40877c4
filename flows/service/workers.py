"""What joins a Prefect server: the deployments of this installation, and workers, on this machine or others."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from curation.errors import TransientError, UserError
from flows.service.settings import (
    address_of,
    check_server,
    client_environment,
    key_of,
    serving,
    worker_environment,
)

WAIT_SECONDS = 120


def join(api_url: str | None, lake: Path) -> None:
    """Sets this process up for a server: the one named, else the one that serves the lake. Before Prefect is imported."""
    found = None if api_url else serving(lake)
    url = api_url or (found.api_url if found else None)
    if url is None:
        raise UserError("which server? Give --api-url http://HOST:4200/api, or start one here: gradus serve")
    os.environ |= client_environment(
        lake if found else None, url.rstrip("/"), key_of(lake if found else None)
    )
    os.environ |= worker_environment(address_of(lake))


def await_server(seconds: float = WAIT_SECONDS) -> None:
    """Returns when the server answers and takes the key; `TransientError` after so many seconds without an answer."""
    url, deadline = os.environ["PREFECT_API_URL"], time.monotonic() + seconds
    while True:
        try:
            check_server(url, key_of(None))
            return
        except TransientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def deploy(pool: str, recipes: list[Path], seconds: float = WAIT_SECONDS) -> None:
    """Registers all deployments and automations at PREFECT_API_URL; any number of times."""
    import asyncio

    from flows.service import automations

    with suppress(TransientError):  # not there yet; a wrong key is told at once
        await_server(0)
    deployed = import_module("flows.service.deployed")  # while the server starts: it takes seconds
    import_module("flows.loop")
    await_server(seconds)
    asyncio.run(automations.install())
    deployed.register(pool, recipes)


def work(pool: str, name: str | None, limit: int | None, seconds: float = WAIT_SECONDS) -> None:
    """Runs what the pool has to do, here, until it is ended."""
    from prefect.cli import app

    await_server(seconds)
    command = ["worker", "start", "--pool", pool, "--type", "process"]
    command += ["--name", name] if name else []
    command += ["--limit", str(limit)] if limit else []
    sys.argv = ["prefect", *command]  # all that Prefect's command line reads
    app()
