"""Report and index in a real browser: accessible, readable at every width, and nothing from data runs.

Lakes named in GRADUS_TEST_LAKES (paths with `:` between) are looked at too, beside those made here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.report.index import index_facts, write_index
from flows.report.page import page, page_facts, render, run_part
from storage.artifacts import Lake
from tests.hostile import HOSTILE, HUGE
from tests.made_run import Maker
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe

axe_api = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe is not installed: pip install -e '.[e2e]'"
)

WIDTHS = {"desktop": 1280, "phone": 390}


@contextmanager
def opened(browser: Any, *paths: Path, scheme: str = "light", width: int = 1280) -> Generator[Any]:
    """A tab on the first of the pages; afterwards nothing in it has run, asked, complained or moved away."""
    known, heard = {path.as_uri() for path in paths}, []

    def expect(what: str, url: str) -> None:
        if url.partition("#")[0] not in known:
            heard.append(f"{what}: {url[:200]}")

    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}) as context:
        tab = context.new_page()
        tab.on("console", lambda m: heard.append(f"console: {m.text}"))
        tab.on("pageerror", lambda e: heard.append(f"error: {e}"))
        tab.on("dialog", lambda d: (heard.append(f"dialog: {d.message}"), d.dismiss()))
        tab.on("popup", lambda p: heard.append("popup"))
        tab.on("request", lambda r: expect("request", r.url))
        tab.on("framenavigated", lambda f: expect("navigated", f.url))
        show(tab, paths[0])
        yield tab
        assert unharmed(tab) and not heard, heard


def show(tab: Any, path: Path) -> None:
    """The page with all details open."""
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def unharmed(tab: Any) -> bool:
    return tab.evaluate("window.canary === undefined")


def wide(tab: Any) -> bool:
    """Whether the page can be scrolled sideways, or a heading is not where a reader sees it."""
    return tab.evaluate(
        "document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll('h1,h2')].some(h => {"
        "const r = h.getBoundingClientRect(); return r.height < 1 || r.left < 0 || r.right > innerWidth + 1})"
    )


def tags_of(tab: Any) -> Counter[str]:
    return Counter(tab.evaluate("[...document.querySelectorAll('*')].map(e => e.localName)"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reports and indexes of a real tiny run, of one made by hand, and of the lakes that were named."""
    folder = tmp_path_factory.mktemp("pages")
    plain_run(tiny_recipe(folder, rounds=2), folder / "real")
    made = Maker(folder / "made", work="choose", texts=("plain words",)).whole()
    made.lake.save_run("run1", made.record(version=1))
    named = [Path(p) for p in os.environ.get("GRADUS_TEST_LAKES", "").split(":") if p]
    out = []
    for i, root in enumerate([folder / "real", folder / "made", *named]):
        lake = Lake(root, create=False)
        out.append(folder / f"{i}-index.html")
        out[-1].write_text(page("index.html", index_facts(lake)), encoding="utf-8")
        for record in lake.runs():
            out.append(folder / f"{i}-{record['run']}.html")
            out[-1].write_text(render(lake, record), encoding="utf-8")
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_are_accessible_and_fit(browser: Any, pages: list[Path], scheme: str, width: int) -> None:
    for path in pages:
        with opened(browser, path, scheme=scheme, width=width) as tab:
            assert not wide(tab), path
            found = axe_api.Axe().run(tab).response
            assert not found["violations"], (
                path,
                [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"]],
            )
            assert len(found["passes"]) > 10


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_hostile_strings_of_corpus_and_decisions_execute_nothing(
    browser: Any, tmp_path: Path, width: int
) -> None:
    known = set()
    for name, texts in (("harmless", ["plain words"]), ("hostile", [HUGE, *HOSTILE])):
        maker = Maker(tmp_path / name, n=len(HOSTILE), texts=texts)
        maker.ingest()
        maker.score(numbers=range(70))
        maker.compose()
        maker.confirm()
        maker.sealed()
        path = tmp_path / f"{name}.html"
        path.write_bytes(render(maker.lake, maker.record(version=1)).encode("utf-8", "replace"))
        with opened(browser, path, width=width) as tab:
            assert not wide(tab)
            found = tags_of(tab)
            known = known or set(found) | {"mark"}
            assert set(found) <= known, set(found) - known
            assert tab.locator("svg.map circle.row").count() == len(HOSTILE)
            for place in tab.locator("nav a, summary, svg.map circle.row >> nth=0").all()[:30]:
                place.dispatch_event("click")


def test_hostile_strings_of_runs_and_recipes_execute_nothing(browser: Any, tmp_path: Path) -> None:
    maker = Maker(tmp_path / "lake", texts=HOSTILE).whole()
    names = ("recipe", "error", "state", "stop_reason", "sealed_note", "run")
    facts, paths = page_facts(maker.lake, maker.record(steps=[])), []
    for i in range(-1, len(HOSTILE)):
        texts = ["plain words"] * 6 if i < 0 else [HOSTILE[(i + k) % len(HOSTILE)] for k in range(6)]
        record = maker.record(**dict(zip(names, texts, strict=True)))
        paths.append(tmp_path / f"{i}.html")
        html = page("report.html", facts | {"run": run_part(record), "missing": texts})
        paths[-1].write_bytes(html.encode("utf-8", "replace"))
        if i >= 0:
            maker.lake.save_run(f"{i}{texts[0][:15]}", record)
    with opened(browser, *paths, width=390) as tab:
        known = tags_of(tab)
        for path, text in zip(paths[1:], HOSTILE, strict=True):
            show(tab, path)
            assert not tags_of(tab) - known and unharmed(tab) and not wide(tab), text
    index = write_index(maker.lake)
    with opened(browser, index, width=390) as tab:
        assert not wide(tab) and tab.locator("ol.runs > li").count() == len(HOSTILE)
