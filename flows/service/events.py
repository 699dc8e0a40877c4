"""What a server is told when a dataset has a new version: the event that automations start other work on."""

from __future__ import annotations

from flows.sets import evidence_of
from storage import remote
from storage.artifacts import Lake, Ref
from storage.layout import entry_name, pretty_json

PUBLISHED = "dataset.published"


def announce_published(lake: Lake, name: str, version: int, run_id: str) -> bool:
    """True when this call emitted `dataset.published`: once for a version, whoever publishes or finds it.

    Noted in the lake before it is emitted: an event that a killed process or a lost server loses is not repeated.
    Resource `gradus.dataset.NAME`, label `gradus.decision`; payload: name, version, run, round, decision, rows, strategy.
    """
    note = lake.root / "announced" / f"{entry_name(f'{name}@v{version}')}.json"
    told = pretty_json({"name": name, "version": version, "run": run_id})
    if note.exists() or not remote.create_file(lake.root, note, told):
        return False
    from prefect.events import emit_event

    ref = Ref("dataset", name, f"v{version}")
    facts, evidence = lake.manifest(ref), evidence_of(lake, ref)
    decided = lake.manifest(evidence) if evidence and evidence.kind == "decide" else {"spec": {"round": 0}}
    payload = {
        "name": name,
        "version": version,
        "run": run_id,
        "round": decided["spec"]["round"],
        "decision": facts["decision"],
        "rows": facts["rows"]["rows"],
        "strategy": facts["strategy"],
    }
    resource = {
        "prefect.resource.id": f"gradus.dataset.{name}",
        "prefect.resource.name": f"{name}@v{version}",
        "gradus.decision": facts["decision"],
    }
    emit_event(PUBLISHED, resource, payload=payload)
    return True
