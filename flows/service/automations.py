"""Automations that the server runs by itself: a run whose process died is called Crashed within two minutes."""

from __future__ import annotations

from typing import Any

ANYTHING = "prefect.flow-run.*"  # whatever a run does next, under any name of a state
OURS = {
    "prefect.resource.id": ["prefect.tag.gradus"],
    "prefect.resource.role": ["tag"],
}  # on a shared server too
SILENT_SECONDS, UNBORN_SECONDS = 90, 110


def wanted() -> list[Any]:
    """`crash-zombies`: no heartbeat for 90 s (they come every 30); `crash-unborn`: a worker took it and died."""
    from prefect.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import ResourceSpecification
    from prefect.states import StateType

    def automation(name: str, after: str, seconds: int, why: str) -> Any:
        return AutomationCore(
            name=name,
            description="Installed by Gradus, and again at its next start.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={f"prefect.flow-run.{after}"},
                expect={ANYTHING},
                match=ResourceSpecification({"prefect.resource.id": [ANYTHING]}),
                match_related=ResourceSpecification(OURS),
                for_each={"prefect.resource.id"},
                threshold=1,
                within=seconds,
            ),
            actions=[
                ChangeFlowRunState(state=StateType.CRASHED, message=f"{why}; Retry goes on where it ended")
            ],
        )

    return [
        automation("crash-zombies", "heartbeat", SILENT_SECONDS, f"no heartbeat for {SILENT_SECONDS} s"),
        automation("crash-unborn", "Pending", UNBORN_SECONDS, f"it did not start within {UNBORN_SECONDS} s"),
    ]


async def install() -> None:
    """Makes the automations at PREFECT_API_URL what they are here; any number of times."""
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client

    fields = set(AutomationCore.model_fields)
    async with get_client() as client:
        for automation in wanted():
            found = await client.read_automations_by_name(automation.name)
            if not found:
                await client.create_automation(automation)
            # Written again it would forget which runs it waits for, so only when it is another.
            elif AutomationCore.model_validate(found[0].model_dump(include=fields)) != automation:
                await client.update_automation(found[0].id, automation)
