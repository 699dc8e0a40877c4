"""The browser of all tests here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")  # while it is there, this process can run no event loop of its own
def browser() -> Generator[Any]:
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[e2e]'"
    )
    found = os.environ.get("GRADUS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright_api.sync_playwright() as p:
        try:
            started = p.chromium.launch(executable_path=found)
        except playwright_api.Error as error:
            pytest.skip(
                f"no browser: apt install chromium, or playwright install chromium ({error.message[:80]})"
            )
        yield started
        started.close()
