"""One Prefect server for all flow tests that need one (they carry xdist_group "prefect")."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def server():
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    from prefect.events.worker import EventsWorker
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        # Runs of earlier tests in this process talked to servers of their own.
        EventsWorker.drain_all(timeout=10, at_exit=False)
        yield
