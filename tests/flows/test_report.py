"""The report renders from any run, and nothing that came from data becomes markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curation.rows import (
    COMPARISONS,
    DECISIONS,
    DIVERSITY,
    LEDGER,
    MODELS,
    OUTCOMES,
    RECORDS,
    REGION_TABLE,
    REGIONS,
    ROWS,
    SELECTIONS,
    SUITE_ITEMS,
    features_schema,
)
from flows import charts
from flows.report import render, write_report
from flows.report_facts import main_axes, rank_correlation, show, spread
from storage.artifacts import Lake

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;\x1b[31m\u202e</title></svg>"
SECRET = "the sealed answer is forty-two"
N, D, REPLICATES = 24, 16, 6


def table(schema: pl.Schema, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def row(i: int, text: str = "", **more: Any) -> dict[str, Any]:
    prompt = text or f"question {i} {EVIL}"
    return {"row_id": f"r{i}", "world": 0, "source": f"s{i % 2}{EVIL}", "split": "train", "prompt": prompt,
            "response": f"answer {i}", "label": EVIL, "origin": "real", "parents": [], "n_chars": 30 + i,
            "meta": "{}", **more}  # fmt: skip


def feature_rows(ids: list[str], proxy: str) -> pl.DataFrame:
    values = np.random.Generator(np.random.Philox(1)).standard_normal((len(ids), D)).astype(np.float16)
    return pl.DataFrame(
        {"row_id": ids, "proxy": [proxy] * len(ids), "feature": pl.Series(values, dtype=pl.Array(pl.Float16, D)),
         "norm": np.arange(1.0, len(ids) + 1), "nll": np.linspace(0.1, 2, len(ids)), "el2n": [0.5] * len(ids),
         "correct": [i % 2 == 0 for i in range(len(ids))], "n_tokens": [4] * len(ids)},
        schema=features_schema(D),
    )  # fmt: skip


class Maker:
    """A run made by hand: publishes artifacts and notes them as the loop does."""

    def __init__(self, folder: Path, work: str = "grow", sealed: bool = True) -> None:
        self.lake, self.steps, self.work = Lake(folder), [], work
        self.arms = ["previous", "candidate", "untargeted" if work == "grow" else "random"]
        self.arms += [] if work == "grow" else ["length_matched"]
        self.suites = [("id", "id", "judge"), ("rare", "ood", "judge")]
        self.suites += [("vault", "ood", "sealed")] if sealed else []

    def put(
        self, stage: str, tables: dict[str, pl.DataFrame], round: int = 0, phase: str = "", **files: Any
    ) -> str:
        fp = f"{len(self.steps):012x}"
        with self.lake.draft(stage, "tiny", fp, {"spec": {}, "code_version": "1", "parents": []}) as draft:
            draft.write_shard("all", tables, {k.replace("_json", ".json"): v for k, v in files.items()})
            ref = str(draft.publish())
        self.steps.append({"stage": stage, "round": round, "phase": phase, "artifact": ref, "reused": False})
        self.lake.add_cost("run1", {"stage": stage, "round": round, "phase": phase, "artifact": ref, "reused": False,
                                    "seconds": 1.5, "peak_memory_mb": 100.0})  # fmt: skip
        return ref

    def record(self, **more: Any) -> dict[str, Any]:
        suites = [{"name": name, "use": use} for name, _, use in self.suites]
        decide = {"endpoint": "accuracy", "fixed_strategy": None, "work": self.work}
        spec = {"worlds": None, "suite": suites, "decide": decide}
        return {"run": "run1", "recipe": "tiny", "state": "completed", "started": "2026-01-02T03:04:05+00:00",
                "seconds": 61.0, "steps": self.steps, "recipe_spec": spec, **more}  # fmt: skip

    def ingest(self) -> None:
        rows = [row(i) for i in range(N)] + [row(90, SECRET), row(91, SECRET + "!")]
        records = [
            {"source": r["source"], "file": EVIL, "position": i, "row_id": r["row_id"]}
            for i, r in enumerate(rows)
        ]
        records += [{**records[0], "reason": "exact_copy"}, {**records[-2], "reason": "exact_copy"}]
        records += [{"source": EVIL, "file": "f", "position": 9, "reason": "unparsable"}]
        drops = [
            ("r90", "held_out:vault", None),
            ("r91", "contaminated_near", "sealed:abc"),
            ("r1", EVIL, "r2"),
        ]
        ledger = [{"row_id": i, "stage": "ingest", "round": 0, "decision": "drop", "reason": why, "twin": twin}
                  for i, why, twin in drops]  # fmt: skip
        items = [{"suite": s, "suite_hash": s, "distribution": d, "use": u, "world": 0, "round": 0, "item_id": f"{s}{k}",
                  "prompt": "hidden item", "response": "x"} for s, d, u in self.suites for k in range(4)]  # fmt: skip
        self.put("ingest", {"records": table(RECORDS, records), "rows": table(ROWS, rows),
                            "ledger": table(LEDGER, ledger), "suite_items": table(SUITE_ITEMS, items)})  # fmt: skip
        base = table(ROWS, rows[:N])
        self.put("base", {"rows": base})
        self.lake.publish_dataset("tiny", base, "base", None, "base", "e", 9, "base/tiny@0")

    def score(self, round: int = 1) -> None:
        ids = [f"r{i}" for i in range(N)]
        regions = [{"row_id": i, "proxy": "p", "scale": scale, "region": k % 3, "distance": 0.1}
                   for scale in ("coarse", "fine") for k, i in enumerate(ids)]  # fmt: skip
        named = [{"proxy": "p", "scale": "coarse", "region": k, "size": 8, "share": 0.3, "density": 0.5, "steer_error": None if k else 0.5,
                  "mean_nll": 1.0, "thin": k < 2, "terms": EVIL, "exemplars": ["r1", "gone"], "x": 0.1 * k, "y": 0.0}
                 for k in range(3)]  # fmt: skip
        model = {"model": "p", "kind": "scorer", "round": round, "arm": "previous", "replicate": 0}
        self.put("score", {"features": feature_rows(ids, "p"), "regions": table(REGIONS, regions),
                           "region_table": table(REGION_TABLE, named), "models": table(MODELS, [model])}, round)  # fmt: skip

    def compose(self, round: int = 1) -> None:
        made = [
            row(200 + k, origin="synthetic", parents=[f"r{k}"], meta=json.dumps({"plan": EVIL}))
            for k in range(5)
        ]
        own = [f"r{i}" for i in range(10)]
        if self.work == "grow":
            counts = json.dumps({"candidates": 5, "drawn": {"targeted_exists": 3, EVIL: 1}}).encode()
            features = feature_rows([m["row_id"] for m in made], "p")
            self.put(
                "synthesize", {"rows": table(ROWS, made), "features": features}, round, counts_json=counts
            )
            own = [m["row_id"] for m in made]
        sets = [{"row_id": i, "round": round, "phase": "confirm", "arm": arm, "replicate": r, "rank": k}
                for r in range(2) for arm in self.arms
                for k, i in enumerate((own if arm == "candidate" else []) + [f"r{j}" for j in range(5)])]  # fmt: skip
        self.put("select", {"selections": table(SELECTIONS, sets)}, round, "confirm")

    def confirm(
        self, decision: str = "publish", round: int = 1, screened: bool = False, tested: bool = True
    ) -> None:
        models = [{"model": f"{round}/{a}/{r}", "kind": "compared", "round": round, "phase": "confirm", "arm": a,
                   "replicate": r} for a in self.arms for r in range(REPLICATES)]  # fmt: skip
        self.put("train", {"models": table(MODELS, models)}, round, "confirm")
        for use, phase in (("judge", "confirm"), ("sealed", "sealed")):
            seen = [{"model": m["model"], "suite": s, "item_id": f"{s}{k}", "p_correct": 0.5, "nll": 1.0,
                     "correct": (k + m["replicate"] + (m["arm"] == "candidate")) % 3 > 0}
                    for m in models for s, _, u in self.suites if u == use for k in range(4)]  # fmt: skip
            if seen:
                self.put("evaluate", {"outcomes": table(OUTCOMES, seen)}, round, phase)
        compared = [
            self.comparison(a, s)
            for a in self.arms
            if a != "candidate"
            for s in ("rare", "ood_mean", "id_mean")
        ]
        if screened:
            lines = [{**self.comparison("random", "ood_mean"), "phase": "screen", "arm": EVIL}]
            self.put("screen", {"comparisons": table(COMPARISONS, lines)}, round, "screen")
        diversity = [{"round": round, "subset": a, "metric": m, "value": 3.0, "n": 9} for a in self.arms
                     for m in ("g_vendi", "ceiling", "g_vendi_q2", "m_coherence", "regions_covered")]  # fmt: skip
        self.put("audit", {"diversity": table(DIVERSITY, diversity)}, round)
        told = {"dataset": "tiny", "round": round, "decision": decision, "reason": f"WHY; {EVIL}", "strategy": EVIL,
                "alpha": 2 / 64 if tested else 0.0, "p": 0.01 if tested else None, "evidence": "{}"}  # fmt: skip
        self.put(
            "decide",
            {"comparisons": table(COMPARISONS, compared), "decisions": table(DECISIONS, [told])},
            round,
            "confirm",
        )

    def comparison(self, control: str, suite: str) -> dict[str, Any]:
        return {"round": 1, "phase": "confirm", "arm": "candidate", "control": control, "suite": suite, "n": REPLICATES,
                "metric": "accuracy", "difference": 2.5, "low": 0.5, "high": 4.5, "p": 0.01, "detectable": 3.0}  # fmt: skip

    def sealed(self, round: int = 1) -> None:
        lines = [self.comparison(a, "ood_mean") for a in self.arms if a != "candidate"]
        ref = self.put("sealed", {"comparisons": table(COMPARISONS, lines)}, round, "sealed")
        self.lake.open_sealed("tiny", "vault", ref)


class Tags(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.headings: list[int] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        self.text += data


def whole(folder: Path, **how: Any) -> Maker:
    maker = Maker(folder, **how)
    maker.ingest()
    maker.score()
    maker.compose()
    maker.confirm(screened=maker.work == "choose")
    return maker


def test_a_whole_run_renders_and_hostile_text_stays_text(tmp_path: Path) -> None:
    maker = whole(tmp_path)
    maker.sealed()
    page = write_report(maker.lake, maker.record(version=1, stop_reason="budget")).read_text()
    seen = Tags(page)
    assert not seen.tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [a for a, _ in seen.attributes if a.startswith("on") or a in ("src", "srcset")]
    assert all(value.startswith("#") for a, value in seen.attributes if a == "href" and value)
    assert "<script>alert(1)" in seen.text and "{{7*7}}" in seen.text
    assert "\x1b" not in page and "\u202e" not in page and "⟨202E⟩" in page
    assert "Round 1 published a new version" in seen.text and "tiny v1" in seen.text
    assert "became" in seen.text and "Every sealed suite" in seen.text
    assert ("lang", "en") in seen.attributes
    assert all(b - a <= 1 for a, b in zip(seen.headings, seen.headings[1:], strict=False)), (
        "headings in order"
    )


def test_text_of_sealed_suites_is_never_printed(tmp_path: Path) -> None:
    maker = whole(tmp_path)
    page = render(maker.lake, maker.record(version=1))
    assert SECRET not in page and "withheld" in page


def test_a_recipe_that_chooses_shows_the_screen_and_rows_the_control_left(tmp_path: Path) -> None:
    maker = whole(tmp_path, work="choose", sealed=False)
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert "This recipe chooses from the pool" in text
    assert "5 of them are not in the control random" in text
    assert "The screen" in text and "length_matched" in text
    assert "None: the recipe has no sealed suite" in text


def test_a_round_without_a_strategy_says_so(tmp_path: Path) -> None:
    maker = Maker(tmp_path, work="choose")
    maker.ingest()
    maker.compose()
    maker.confirm("keep", screened=True, tested=False)
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert (
        "Round 1 kept the previous version: no strategy was put to the test, because none was a standard error better"
        in text
    )
    assert "None was one standard error better than random" in text and "not tested" in text


def test_a_run_without_any_artifact_renders(tmp_path: Path) -> None:
    record = Maker(tmp_path).record(state="failed", error=f"DataError: {EVIL}")
    seen = Tags(render(Lake(tmp_path), record))
    for words in ("No round began", "There is no map", "No audit was made", "No row was scored", "Nothing was selected",
                  "Nothing was ingested", "No cost was booked", "ended with an error"):  # fmt: skip
        assert words in seen.text
    assert "script" not in seen.tags


@pytest.mark.parametrize("parts", [["ingest"], ["ingest", "score"], ["ingest", "score", "compose"]])
def test_a_run_that_stopped_early_shows_what_it_has(tmp_path: Path, parts: list[str]) -> None:
    maker = Maker(tmp_path)
    for part in parts:
        getattr(maker, part)()
    text = Tags(render(maker.lake, maker.record(state="interrupted", version=1))).text
    assert "No round of this run reached a decision; its state is “interrupted”" in text
    assert ("Round 1 began and did not reach a decision" in text) == ("score" in parts)
    assert ("All regions as a table" in text) == ("score" in parts)


def test_an_artifact_that_is_gone_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    maker = whole(tmp_path)
    for path in tmp_path.glob("artifacts/audit/*/manifest.json"):
        path.unlink()
    text = Tags(render(maker.lake, maker.record(version=1))).text
    assert "could not be read from the lake" in text and "No audit was made" in text
    assert "Round 1 published a new version" in text


def test_many_sources_are_shown_as_one(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    rows = [row(i, source=f"s{i}") for i in range(20)]
    records = [{"source": r["source"], "file": "f", "position": 0, "row_id": r["row_id"]} for r in rows]
    maker.put("ingest", {"records": table(RECORDS, records), "rows": table(ROWS, rows)})
    assert "all 20 sources" in Tags(render(maker.lake, maker.record())).text


def test_texts_are_clipped_and_controls_visible() -> None:
    assert show("a\nb\tc\x00\x7f") == "a ⏎ b c␀⟨007F⟩"
    assert len(show("x" * 999)) == 301 and show(None) == "" and show("né 漢 👩‍👩‍👧") == "né 漢 👩‍👩‍👧"
    assert charts.word_changes("a b c", "a <i> c") == "a <mark>&lt;i&gt;</mark> c"


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
