"""What a dataset card says of a set of rows, looked up in the lake: how it was made, cleaned, compared and decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup
from pydantic import ValidationError

from curation.decide.statistics import sign_flip_p, t_interval
from curation.decide.wording import interval, points, probability
from curation.evaluate.summarise import paired
from curation.specs import Recipe
from flows.chosen import ids_of
from flows.origin import UNREADABLE, Origin, by_hand_as, origin_of
from flows.recipe_text import recipe_text
from flows.status import arm_summary, arms_of, sealed_facts, steps_of
from storage.artifacts import Lake, Ref, fingerprint
from storage.export import row_counts, rows_by_id, rows_of_artifact
from storage.formats import Part

GENERATORS = {
    "embedded": "drawn and answered by the generator of the embedded corpus, then checked against it",
    "recombine": "made by exchanging fragments of existing rows that the corpus shows to be exchangeable, and kept when no row contradicts",
}


def about_set(lake: Lake, ref: Ref, split: str | None) -> tuple[dict[str, str], list[Part], dict[str, Any]]:
    """(identity, rows, card) of a version or candidate."""
    parts, origin = rows_of_artifact(lake, ref), origin_of(lake, ref)
    identity = {"ref": str(ref), "fingerprint": lake.manifest(ref)["content_fp"]}
    about = _card(lake, str(ref).removeprefix("dataset/"), origin, parts, split)
    if ref.kind == "candidate" and (versions := by_hand_as(lake, ref)):
        about["loud"] = f"Published BY HAND as {', '.join(versions)}. {about['loud']}"
    return identity, parts, about


def about_arm(
    lake: Lake, record: dict[str, Any], phase: str, sets: Ref, arm: str, replicate: int, split: str | None
) -> tuple[dict[str, Any], list[Part], dict[str, Any]]:
    """(identity, rows, card) of one replicate of an arm, from its selections."""
    holders, ids = ids_of(lake, sets, arm, replicate)
    parts = rows_by_id(lake, holders, ids)
    round = next(s["round"] for s in record["steps"] if s["artifact"] == str(sets))
    identity = {"ref": str(sets), "round": round, "phase": phase, "arm": arm, "replicate": replicate}
    identity["fingerprint"] = fingerprint("arm", "1", identity, [])
    origin = Origin(arm, None, steps_of(record, "ingest")[-1], record, round, phase=phase)
    title = f"{sets.name} round {round}, {phase} arm {arm}, replicate {replicate}"
    about = _card(lake, title, origin, parts, split)
    where = f"--run {record['run']} --round {round} --phase {phase}"
    about["words"] = f"{sets.name} --arm {arm} {where} --replicate {replicate}"
    return identity, parts, about


def _card(lake: Lake, title: str, origin: Origin, parts: list[Part], split: str | None) -> dict[str, Any]:
    """All that `storage.cards.render` needs beside the facts of the files; `rows_by` counts the rows."""
    recipe = _recipe(origin)
    keys = ["source", "licence", "origin"]
    rows_by = row_counts(parts, split)
    counts = rows_by.group_by(keys).agg(pl.col("rows").sum()).sort(keys)
    decision = _decision(lake, origin)
    tables, note = _evaluation(lake, origin)
    cleaning = _cleaning(lake, origin, recipe)
    return {
        "title": title,
        "words": title,
        "split": split,
        "what": _what(title, origin, recipe),
        "loud": _loud(title, origin, decision),
        "rows_by": rows_by,
        "counts": counts.to_dicts(),
        "urls": {s.name: s.url for s in recipe.source if s.url} if recipe else {},
        "decision": decision,
        "cleaning": cleaning,
        "cleaning_note": _no_cleaning(origin) if cleaning is None else None,
        "synthetic": _synthetic(counts, recipe),
        "evaluation": tables,
        "sealed_note": note,
        "limits": _limits(origin, recipe, tables, counts),
        "recipe": recipe_text(recipe) if recipe else None,
    }


def _recipe(origin: Origin) -> Recipe | None:
    try:
        return Recipe.model_validate(origin.run["recipe_spec"]) if origin.run else None
    except (ValidationError, KeyError):  # another Gradus wrote it
        return None


def _short(decision: dict[str, Any]) -> str:
    return f"{decision['decision']} ({decision['reason'].partition(';')[0]})."


def _what(title: str, origin: Origin, recipe: Recipe | None) -> str:
    strategy = f" by the strategy {origin.strategy}" if origin.strategy not in (None, "base") else ""
    work = {"grow": "grown from the version before", "choose": "chosen anew from the clean pool"}
    how = f", {work[recipe.decide.work]}{strategy}" if recipe and origin.verdict else ""
    return f"The training set {title}, curated with Gradus{how}."


def _loud(title: str, origin: Origin, decision: dict[str, Any] | None) -> str | None:
    """What nobody may overlook: a control, a candidate that did not win, a version made by hand."""
    if decision is None:
        return "An arm of a comparison: a control or a rival, not a set that was chosen or published."
    if origin.by_hand:
        said = f" The comparison had decided: {_short(decision)}" if origin.verdict else ""
        return f"Made the newest version BY HAND, not by a comparison.{said}"
    if title.startswith("candidate/") and not origin.verdict:
        return "A base that was not published: the name had versions of other rows already."
    if title.startswith("candidate/"):
        return f"This candidate DID NOT WIN and no comparison published it. Decision: {_short(decision)}"
    return None


def _decision(lake: Lake, origin: Origin) -> dict[str, Any] | None:
    if origin.phase:
        return None
    line = {"decision": "base", "round": None, "strategy": origin.strategy, "reason": BASE}
    if origin.verdict:
        try:
            found = lake.read(origin.verdict, "decisions").row(0, named=True)
        except UNREADABLE:
            found = {**line, "decision": "unknown", "reason": f"{origin.verdict} cannot be read"}
        line = {name: found[name] for name in line}
    return {**line, "by_hand": origin.by_hand}


BASE = "the clean pool, cut to the budget at random within labels: what is trained on without Gradus. It needs no proof."


def _cleaning(lake: Lake, origin: Origin, recipe: Recipe | None) -> dict[str, Any] | None:
    """Records read, kept and dropped, each once, by the reason that came first: as the report counts them."""
    if origin.pool is None:
        return None
    try:
        records = lake.scan(origin.pool, "records").select("row_id", "reason")
        lines = lake.scan(origin.pool, "ledger").filter(
            pl.col("decision") == "drop", pl.col("stage") == "ingest"
        )
        first = lines.unique("row_id", keep="first", maintain_order=True)
        rows = records.filter(pl.col("reason").is_null()).select("row_id")
        lost = pl.concat(
            [
                records.filter(pl.col("reason").is_not_null()).select("reason"),
                rows.join(first, on="row_id").select("reason"),
            ]
        )
        drops = lost.group_by("reason").len().sort("len", "reason", descending=[True, False]).collect().rows()
        read = records.select(pl.len()).collect().item()
    except UNREADABLE:
        return None
    return {
        "read": read,
        "kept": read - sum(n for _, n in drops),
        "drops": drops,
        "contaminated": sum(n for reason, n in drops if reason.startswith("contaminated")),
        "words": recipe.ingest.decontaminate_ngram_words if recipe else "several",
        "worlds": recipe.worlds if recipe else 0,
    }


def _no_cleaning(origin: Origin) -> str:
    pool = origin.pool or "its pool"
    return f"What was dropped, and why, cannot be told: {pool} is damaged, or no longer in the lake that this export came from."


def _synthetic(counts: pl.DataFrame, recipe: Recipe | None) -> dict[str, Any] | None:
    rows = int(counts.filter(pl.col("origin") == "synthetic")["rows"].sum())
    if not rows:
        return None
    generator = recipe.synthesize.generator if recipe else None
    how = GENERATORS.get(generator or "", "made by a generator that the lake no longer names")
    return {"rows": rows, "share": f"{rows / counts['rows'].sum():.1%}", "how": how}


def _evaluation(lake: Lake, origin: Origin) -> tuple[list[dict[str, Any]], str | None]:
    """Tables of every arm of the round, on the judge suites and on the sealed ones; and what to say of the sealed."""
    if origin.run is None or origin.round is None:
        return [], None
    phase = "screen" if origin.phase == "screen" else "confirm"
    if not steps_of(origin.run, "evaluate", origin.round, phase):
        return [], None
    try:
        if phase == "screen":
            title = f"Steer suites, screen of round {origin.round}: these rows were only screened, not judged"
            return [_table(lake, origin, phase, title)], None
        tables = [_table(lake, origin, phase, f"Judge suites, round {origin.round}")]
        sealed = sealed_facts(lake, origin.run)
        if sealed and sealed["round"] == origin.round:
            tables.append(
                _table(lake, origin, "sealed", "Sealed suites, opened once, after the last decision")
            )
            return tables, None
    except UNREADABLE:
        return [], "The figures of this round are damaged, or no longer in the lake."
    if sealed:
        return tables, f"The sealed suites were opened for the models of round {sealed['round']} only."
    return tables, origin.run.get("sealed_note") or "No sealed suite was opened for this set."


def _table(lake: Lake, origin: Origin, phase: str, title: str) -> dict[str, Any]:
    run, round = origin.run, origin.round
    assert run is not None and round is not None
    endpoint = run["recipe_spec"]["decide"]["endpoint"]
    summary = arm_summary(lake, run, round, phase)
    arms = arms_of(summary)
    this = origin.arm if origin.arm in arms else None
    suites = summary.filter(~pl.col("suite").is_in(["ood_mean", "id_mean"]))
    return {
        "title": title,
        "unit": "accuracy" if endpoint == "accuracy" else "mean probability of the right answer",
        "arm": this,
        "arms": [_arm(summary, arm, this, figures["n"], endpoint) for arm, figures in arms.items()],
        "suites": suites.group_by("suite", "distribution")
        .agg(pl.col("items").max())
        .sort("suite")
        .to_dicts(),
    }


def _arm(summary: pl.DataFrame, arm: str, this: str | None, n: int, endpoint: str) -> dict[str, Any]:
    def mean(suite: str) -> str:
        lines = summary.filter(pl.col("arm") == arm, pl.col("suite") == suite)
        return _figure(lines[endpoint].to_list()) if len(lines) else "–"

    d = paired(summary, this, arm, "ood_mean", endpoint) if this not in (None, arm) else []
    against = [t_interval(d)] if len(d) else []
    return {
        "arm": arm,
        "this": arm == this,
        "ood": mean("ood_mean"),
        "id": mean("id_mean"),
        "n": n,
        "against": Markup(f"{points(against[0][0])} {interval(*against[0][1:])}") if against else "",
        "p": Markup(probability(sign_flip_p(d))) if against else "",
    }


def _figure(values: list[float]) -> Markup:
    mean, low, high = t_interval(values)
    return Markup(f"{mean:.1f} {interval(low, high)}")


def _limits(
    origin: Origin, recipe: Recipe | None, tables: list[dict[str, Any]], counts: pl.DataFrame
) -> list[str]:
    """What the figures do not say."""
    out = [
        "The rows were cleaned of copies, near duplicates and evaluation items. They were not filtered for personal data, "
        "toxicity, truth or language.",
        "Decontamination knows the suites of this recipe only; other benchmarks may overlap with these rows.",
    ]
    if recipe and tables:
        n = tables[0]["arms"][0]["n"]
        named = (
            recipe.proxy.model or recipe.proxy.encoder
            if recipe.proxy.kind != "decoder"
            else "trained from scratch"
        )
        out += [
            f"The figures are of small proxy models ({recipe.proxy.kind}, {Path(named).name}, {recipe.proxy.steps} steps), "
            "not of the model that you will train.",
            f"They rest on n = {n} replicates and on these suites; other tasks may differ.",
            "A replicate is a world of its own, with a set of its own made in the same way; the rows here are of world 0."
            if recipe.worlds
            else f"A replicate makes its sets anew from {recipe.decide.subsample:.0%} of the pool, so the figures are of the way "
            "this set was made, more than of these very rows.",
        ]
    if origin.phase:
        out.append("This is one replicate of an arm of a comparison, and was never meant to be published.")
    if counts.filter(pl.col("origin") == "synthetic").height:
        out.append(
            "No person has read the synthetic rows; they have no licence of their own beside that of their parents."
        )
    if counts.filter(pl.col("origin") == "real", pl.col("licence").is_null()).height:
        out.append("Some real rows have no stated licence: find out before you share them.")
    return out
