"""What `gradus explain` tells of a row, in the order in which it happened; hundreds of scores and selections as sums."""

from __future__ import annotations

from typing import Any

from flows.table import print_block
from flows.terminal import inline, safe, say
from storage.artifacts import Lake
from storage.find import query_whole, row_id_of

TEXT = 600  # characters of a text on the terminal
SHORT = 70
LISTED = 12
STORY = {
    "records": "select distinct source, file, position, reason from records where row_id = $1 order by all",
    "rows": """select any_value(columns(* exclude (artifact, row_id))) , list(distinct artifact order by artifact) as artifacts
        from every_row where row_id = $1 group by row_id""",
    "parents": """select row_id, any_value(prompt) as prompt, any_value(response) as response from every_row
        where row_id in (select unnest(parents) from every_row where row_id = $1) group by row_id order by row_id""",
    "children": """select row_id, any_value(prompt) as prompt, any_value(response) as response,
        min(json_extract("meta", '$.round')::int) as "round" from rows
        where list_contains(parents, $1) group by row_id order by "round", row_id""",
    "ledger": """select distinct stage, "round", decision, reason, "value", threshold, twin from ledger
        where row_id = $1 order by "round", stage, decision, reason""",
    "scores": """select s.scorer, s."value", s.proxy, m."round" from (select distinct * exclude (artifact) from scores
        where row_id = $1) s left join (select model, max("round") as "round" from models group by model) m
        on m.model = s.proxy order by s.scorer, m."round", s.proxy""",
    "regions": """select distinct r.scale, r.region, r.distance, r.proxy, t."round", any_value(g.terms) as terms,
        any_value(g.size) as size, any_value(g.thin) as thin from regions r
        left join (select model, max("round") as "round" from models group by model) t on t.model = r.proxy
        left join region_table g on g.artifact = r.artifact and g.proxy = r.proxy and g.scale = r.scale
          and g.region = r.region where r.row_id = $1 group by all order by t."round", r.proxy, r.scale""",
    "selections": """select s."round", s.phase, s.arm, count(distinct s.replicate) as replicates,
        any_value(a.replicates) as of, min(s."rank") as first_rank from selections s
        left join (select artifact, phase, arm, count(distinct replicate) as replicates from selections group by all) a
          on a.artifact = s.artifact and a.phase = s.phase and a.arm = s.arm
        where s.row_id = $1 group by s.artifact, s."round", s.phase, s.arm order by s."round", s.phase desc, s.arm""",
    "versions": """select artifact from dataset_rows where row_id = $1 union
        select artifact from rows where row_id = $1 and starts_with(artifact, 'candidate/') order by all""",
}


def story(lake: Lake, beginning: str) -> dict[str, Any]:
    """All that the lake knows of the one row whose id begins so."""
    row_id = row_id_of(lake, beginning)
    told = {part: query_whole(lake, sql, [row_id]).rows(named=True) for part, sql in STORY.items()}
    return {"row_id": row_id, **told}


def print_story(told: dict[str, Any]) -> None:
    """The story on a terminal."""
    row = told["rows"][0] if told["rows"] else {}
    say(f"row {told['row_id']}")
    facts = [
        row.get("origin"),
        *(f"{n} {row[n]}" for n in ("source", "split", "label", "licence") if row.get(n)),
    ]
    say("  " + inline(", ".join(f for f in facts if f)))
    _print_text("prompt", row.get("prompt"))
    _print_text("response", row.get("response"))
    _block("where it came from", [_record(r) for r in told["records"]])
    _block("made from", [_relative(r) for r in told["parents"]])
    _block("what was decided on it", [_ledger_line(e) for e in told["ledger"]] or [("kept at every stage",)])
    _block("what the proxies say of it", _scores(told["scores"]))
    _block("where it lies in gradient space", _regions(told["regions"]))
    _block("sets that took it", [_selection(s) for s in told["selections"]])
    _block("rows made from it", [(f"round {r['round']}", *_relative(r)) for r in told["children"]])
    _block("versions that hold it", [(v["artifact"],) for v in told["versions"]] or [("none",)])
    say(f"\neverything: gradus explain {told['row_id']} --json")


def _block(title: str, lines: list[tuple[Any, ...]]) -> None:
    if lines:
        more = f" ({len(lines):,}, the first {LISTED} shown)" if len(lines) > LISTED else ""
        say("")
        print_block(title + more, lines[:LISTED])


def _print_text(name: str, text: str | None) -> None:
    if text:
        cut = f"… ({len(text):,} characters)" if len(text) > TEXT else ""
        lines = (safe(text[:TEXT]) + cut).splitlines() or [""]
        say(f"\n{name}\n" + "\n".join(f"  {line}" for line in lines))


def _record(r: dict[str, Any]) -> tuple[Any, ...]:
    return (
        r["file"] or r["source"],
        f"record {r['position']:,}",
        "became the row" if r["reason"] is None else r["reason"],
    )


def _relative(r: dict[str, Any]) -> tuple[Any, ...]:
    return r["row_id"][:12], " → ".join(filter(None, (r["prompt"], r["response"])))[:SHORT]


def _ledger_line(e: dict[str, Any]) -> tuple[Any, ...]:
    value = None if e["value"] is None else f"value {e['value']:.6g}"
    more = [
        value,
        e["threshold"] is not None and f"threshold {e['threshold']:.6g}",
        e["twin"] and f"twin {e['twin']}",
    ]
    return f"{e['stage']}, round {e['round']}", e["decision"], e["reason"], ", ".join(m for m in more if m)


def _scores(scores: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A line a scorer: the newest value, and the range when there are several."""
    out = []
    for scorer in dict.fromkeys(s["scorer"] for s in scores):
        mine = [s for s in scores if s["scorer"] == scorer and s["value"] is not None]
        if mine:
            values = [s["value"] for s in mine]
            several = f"of {len(mine)}, {min(values):.4g} to {max(values):.4g}" if len(mine) > 1 else ""
            out.append((scorer, f"{values[-1]:.4g}", f"round {mine[-1]['round']}", several))
    return out


def _regions(regions: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The coarse region of each round."""
    out = []
    for r in (r for r in regions if r["scale"] == "coarse"):
        kind = "no direction" if r["region"] < 0 else "thin" if r["thin"] else ""
        out.append((f"round {r['round']}", f"region {r['region']}", r["size"], "rows", kind, r["terms"]))
    return out


def _selection(s: dict[str, Any]) -> tuple[Any, ...]:
    return f"round {s['round']} {s['phase']}", s["arm"], f"in {s['replicates']} of {s['of']} replicates"
