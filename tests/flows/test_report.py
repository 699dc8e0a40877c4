"""The report renders from any run, its figures are those of `gradus status`, and no data becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from curation.rows import RECORDS, ROWS
from flows import status
from flows.report import charts, region_map
from flows.report.index import write_index
from flows.report.page import page, page_facts, render, run_part, write_report
from flows.report.region_map import main_axes, rank_correlation
from flows.report.texts import show, spread, word_changes
from storage.artifacts import Lake
from tests.hostile import HOSTILE, HUGE
from tests.made_run import EVIL, SECRET, Maker, row, table

TAGS = (
    "html head meta title style body header main footer nav section article h1 h2 h3 h4 p span small strong b i em a "
    "code br dl dt dd div ul ol li figure figcaption details summary table caption thead tbody tfoot tr th td mark "
    "svg g line rect circle polygon text"
)
ATTRIBUTES = (
    "lang charset name content http-equiv class id href scope tabindex role aria-label aria-hidden dir open style "
    "viewbox x y x1 x2 y1 y2 cx cy r rx width height points text-anchor"
)


class Tags(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.headings: list[int] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def harmless(self) -> None:
        """Only what the templates and charts write is there, and no link leaves the lake."""
        assert not self.tags - set(TAGS.split())
        names = {name for name, _ in self.attributes}
        assert not names - set(ATTRIBUTES.split())
        for name, value in self.attributes:
            if name == "href":
                assert re.fullmatch(r"#[a-z]+|[A-Za-z0-9._%~-]+\.html", value or ""), value
            if name == "style":
                assert re.fullmatch(r"width:\d+%", value or ""), value
            if name == "class":
                assert re.fullmatch(r"[a-z0-9 ]*", value or ""), value
        assert all(b - a <= 1 for a, b in zip(self.headings, self.headings[1:], strict=False)), (
            "heading order"
        )


def test_a_whole_run_renders_and_hostile_text_stays_text(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    maker.sealed()
    page = write_report(maker.lake, maker.record(version=1, stop_reason="budget")).read_text()
    seen = Tags(page)
    seen.harmless()
    assert "<script>alert(1)" in seen.text and "{{7*7}}" in seen.text
    assert "\x1b" not in page and "\u202e" not in page and "⟨202E⟩" in page
    assert "Round 1 published a new version" in seen.text and "Published tiny v1" in seen.text
    assert "became" in seen.text and "Every sealed suite" in seen.text
    assert "opened after the last decision, on " in seen.text
    assert ("lang", "en") in seen.attributes
    policy = next(v for a, v in seen.attributes if a == "content" and v and "default-src" in v)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'") and "script" not in policy


def test_every_hostile_string_in_every_place_stays_text(tmp_path: Path) -> None:
    maker = Maker(tmp_path, n=len(HOSTILE), texts=HOSTILE)
    maker.ingest()
    maker.score(numbers=range(70))
    maker.compose()
    maker.confirm()
    maker.sealed()
    record = maker.record(version=1)
    Tags(render(maker.lake, record)).harmless()
    facts = page_facts(maker.lake, record | {"steps": []})
    for i in range(0, len(HOSTILE), 3):  # the fields that a page has once
        texts = [HOSTILE[(i + k) % len(HOSTILE)] for k in range(6)]
        names = ("recipe", "error", "state", "stop_reason", "sealed_note", "run")
        run = run_part(record | dict(zip(names, texts, strict=True)))
        Tags(page("report.html", facts | {"run": run, "missing": texts})).harmless()


def test_a_cell_of_ten_megabytes_is_cut(tmp_path: Path) -> None:
    maker = Maker(tmp_path, texts=(HUGE, *"x" * 999))
    maker.ingest()
    page = render(maker.lake, maker.record())
    Tags(page).harmless()
    assert len(page) < 200_000


def test_every_hostile_run_in_the_index_stays_text(tmp_path: Path) -> None:
    maker = Maker(tmp_path, texts=HOSTILE).whole()
    for i, text in enumerate(HOSTILE):
        names = ("recipe", "error", "state", "stop_reason", "started")
        texts = {name: HOSTILE[(i + k) % len(HOSTILE)] for k, name in enumerate(names)}
        maker.lake.save_run(f"{i}{text[:15]}", maker.record(**texts))
    page = write_index(maker.lake).read_text()
    seen = Tags(page)
    seen.harmless()
    assert f"{len(HOSTILE)} runs, newest first" in seen.text
    assert "\x1b" not in page and "\u202e" not in page


def test_figures_are_those_of_status(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    maker.sealed()
    record = maker.record(version=1)
    facts = status.status(maker.lake, record)
    seen = Tags(render(maker.lake, record))
    lines = [c for r in facts["rounds"] for c in r["comparisons"]] + facts["sealed"]["comparisons"]
    expected = [
        [show(c["suite"], 60), show(c["arm"], 40), show(c["control"], 40), show(c["metric"], 40), charts.signed(c["diff"]),
         charts.limits(c["low"], c["high"]), charts.probability(c["p"]), str(c["n"]), charts.plain(c["detectable"])]
        for c in lines
    ]  # fmt: skip
    assert expected and all(line in seen.rows for line in expected)
    for block in (facts["rounds"][0], facts["sealed"]):
        for arm, figures in block["arms"].items():
            shown = [row for row in seen.rows if row[0].startswith(arm) and len(row) == 10]
            assert charts.plain(figures["ood"]) in [row[2] for row in shown]
            assert str(figures["n"]) in [row[4] for row in shown]
    a = facts["accounting"]
    assert (
        f"{a['rows_read']:,} records read = {a['rows_kept']:,} kept + {a['rows_dropped']:,} dropped"
        in seen.text
    )
    strictest = min(
        (c for c in lines if c["control"] == "untargeted" and c["suite"] == "ood_mean"),
        key=lambda c: c["diff"],
    )
    assert f"{charts.signed(strictest['diff'])} points" in seen.text


def test_text_of_sealed_suites_is_never_printed(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    page = render(maker.lake, maker.record(version=1))
    assert SECRET not in page and "withheld" in page


def test_a_recipe_that_chooses_shows_the_screen_and_rows_the_control_left(tmp_path: Path) -> None:
    maker = Maker(tmp_path, work="choose", sealed=False).whole()
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert "This recipe chooses from the pool" in text
    assert "5 of them are not in the control random" in text
    assert "The screen" in text and "length_matched" in text
    assert "None: the recipe has no sealed suite" in text


def test_what_grew_is_what_was_confirmed(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert "kept 5 rows of the base and added 5 synthetic rows" in text


def test_a_round_without_a_strategy_says_so(tmp_path: Path) -> None:
    maker = Maker(tmp_path, work="choose")
    maker.ingest()
    maker.compose()
    maker.confirm("keep", screened=True, tested=False)
    text = Tags(render(maker.lake, maker.record(version=1))).text
    said = (
        "kept the previous version: no strategy was put to the test, because none was a standard error better"
    )
    assert f"Round 1 {said}" in text
    assert "None was one standard error better than random" in text and "not tested" in text
    assert "No strategy looked better than random: name others" in text


@pytest.mark.parametrize(("decision", "advice"), [
    ("publish", "Go on from it"), ("inconclusive", "6 replicates detect a gain of about 3.0 points"),
    ("futile", "leaves no room for a gain of 2.0 points"),
])  # fmt: skip
def test_the_page_says_what_to_do_next(tmp_path: Path, decision: str, advice: str) -> None:
    maker = Maker(tmp_path)
    maker.ingest()
    maker.confirm(decision)
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert advice in text and "gradus export tiny --version 1" in text


def test_regions_keep_their_numbers_between_rounds(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    maker.ingest()
    maker.score(1)
    first = Tags(render(maker.lake, maker.record()))
    maker.score(2, numbers=(1, 2, 7), carried=(0.8, 0.91, None))
    seen = Tags(render(maker.lake, maker.record()))
    assert "carried from" not in first.text and "new" not in [row[3] for row in first.rows if len(row) > 5]
    lines = {row[0]: row[3] for row in seen.rows if len(row) > 7 and row[0].isdigit()}
    assert lines == {
        "1": "carried from round 1, 80 % the same rows",
        "2": "carried from round 1, 91 % the same rows",
        "7": "new",
    }
    assert "since round 1, 2 were carried, 1 is new and 1 gone (0)" in seen.text


def test_regions_show_the_set_before_and_after(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    maker.ingest()
    maker.score()
    maker.compose()
    seen = Tags(render(maker.lake, maker.record()))
    # previous: rows 0–4 in regions 0 1 2 0 1; the candidate adds a synthetic child of each
    assert {row[0]: row[7:9] for row in seen.rows if len(row) == 10 and row[0] in "012"} == {
        "0": ["2", "4"], "1": ["2", "4"], "2": ["1", "2"],
    }  # fmt: skip


def test_many_rows_are_sampled_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_map, "SAMPLE", 10)
    monkeypatch.setattr(region_map, "DOTS", 5)
    maker = Maker(tmp_path)
    maker.ingest()
    maker.score()
    found = region_map.scored(maker.lake, maker.record())
    assert found and found["n"] == 24 and found["rows"].filter("sampled").height == 10
    text = Tags(render(maker.lake, maker.record())).text
    assert "5 of 24 rows are drawn" in text and "of 10 rows, evenly sampled" in text
    assert "10 rows sampled evenly from the 24 of the map" in text


def test_a_run_without_any_artifact_renders(tmp_path: Path) -> None:
    record = Maker(tmp_path).record(state="failed", error=f"DataError: {EVIL}")
    seen = Tags(render(Lake(tmp_path), record))
    seen.harmless()
    for words in ("No round began", "There is no map", "No audit was made", "No row was scored", "Nothing was selected",
                  "Nothing was ingested", "No cost was booked", "ended with an error", "same gradus run again"):  # fmt: skip
        assert (
            words.replace("same gradus run again", "gradus run again: finished shards are kept") in seen.text
        )


@pytest.mark.parametrize("parts", [["ingest"], ["ingest", "score"], ["ingest", "score", "compose"]])
def test_a_run_that_stopped_early_shows_what_it_has(tmp_path: Path, parts: list[str]) -> None:
    maker = Maker(tmp_path)
    for part in parts:
        getattr(maker, part)()
    text = Tags(render(maker.lake, maker.record(state="interrupted", version=1))).text
    assert "No round of this run reached a decision; its state is “interrupted”" in text
    assert ("Round 1 began and did not reach a decision" in text) == ("score" in parts)
    assert ("All regions as a table" in text) == ("score" in parts)


@pytest.mark.parametrize("harm", ["*/manifest.json", "*/diversity/all.parquet"])
def test_an_artifact_that_is_gone_or_broken_is_named_and_the_rest_is_shown(tmp_path: Path, harm: str) -> None:
    maker = Maker(tmp_path).whole()
    for path in tmp_path.glob(f"artifacts/audit/{harm}"):
        path.unlink() if path.suffix == ".json" else path.write_bytes(b"PAR1 nonsense")
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert "could not be read from the lake" in text and "No audit was made" in text
    assert "Round 1 published a new version" in text


def test_many_sources_are_shown_as_one(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    rows = [row(i, "x", source=f"s{i}") for i in range(20)]
    records = [{"source": r["source"], "file": "f", "position": 0, "row_id": r["row_id"]} for r in rows]
    maker.put("ingest", {"records": table(RECORDS, records), "rows": table(ROWS, rows)})
    assert "All 20 sources together" in Tags(render(maker.lake, maker.record())).text


def test_texts_are_clipped_and_controls_visible() -> None:
    assert show("a\nb\tc\x00\x7f") == "a ⏎ b c␀⟨007F⟩" and show("\ud800\u00ad\u200b") == "⟨D800⟩⟨00AD⟩⟨200B⟩"
    assert len(show("x" * 999)) == 301 and show(None) == "" and show("né 漢 👩‍👩‍👧") == "né 漢 👩‍👩‍👧"
    assert word_changes("a b c", "a <i> c") == "a <mark>&lt;i&gt;</mark> c"


def test_axes_are_those_of_the_table_of_regions() -> None:
    z = np.random.Generator(np.random.Philox(3)).standard_normal((50, 8))
    xy, share = main_axes(z)
    _, values, axes = np.linalg.svd(z - z.mean(0), full_matrices=False)
    expected = (z - z.mean(0)) @ (axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]).T
    np.testing.assert_allclose(xy, expected, atol=1e-9)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())


def test_small_pieces() -> None:
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10] and charts.ticks(1, 1) == [1]
    assert (
        charts.small(5.6e-5) == "5.6 × 10⁻⁵" and charts.signed(-0.04) == "0.0" and charts.signed(None) == "?"
    )
    assert spread(list(range(9)), 3) == [0, 4, 8] and spread([], 3) == []
    x = np.arange(20.0)
    assert rank_correlation(x, x**3)["rho"] == pytest.approx(1) and rank_correlation(x, x * 0)["rho"] is None
