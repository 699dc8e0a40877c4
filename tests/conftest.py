"""Property tests are not timed: a busy machine must not fail them. Tests of minutes are run by `make test-slow`."""

import pytest
from hypothesis import HealthCheck, settings

from tests.object_store import bucket, endpoint

__all__ = ["bucket", "endpoint"]  # fixtures: one store for all modules

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="tests of a minute and more, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes a minute and more: make test-slow, or pytest --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
