"""Which part of the loop a run does: where it begins, where it ends, and what it computes again to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from curation.errors import UserError
from curation.specs import Recipe

StageName = Literal[
    "ingest",
    "base",
    "embed",
    "score",
    "synthesize",
    "select",
    "train",
    "evaluate",
    "screen",
    "audit",
    "decide",
    "next_base",
    "sealed",
]
STAGES: tuple[str, ...] = get_args(StageName)
ONCE = ("ingest", "base", "embed")  # before the first round
MARCH = {"score": 0, "screen": 1, "confirm": 2, "audit": 2, "decide": 2, "full": 3, "next_base": 4, "stop": 5}
# What the lake knew at that time decided them (the level of the next test, the time left): the first answer stays.
FIRST_ANSWER_STAYS = ("screen", "stop")
# The sections of a recipe that a person changes to run a stage again.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("ingest",),
    "base": ("budget",),
    "embed": ("proxy",),
    "score": ("score", "proxy", "select"),
    "synthesize": ("synthesize", "budget"),
    "select": ("select", "budget"),
    "train": ("proxy",),
    "evaluate": (),
    "screen": ("decide",),
    "audit": (),
    "decide": ("decide",),
    "next_base": (),
    "sealed": (),
}
Place = tuple[int, int, int]


class Stopped(Exception):
    """The run is done with the stage after which it was asked to stop."""


@dataclass(frozen=True)
class Window:
    """A part of the loop: from `start_at` to `stop_after` of a round; all of it when both are None."""

    start_at: str | None = None
    stop_after: str | None = None
    round: int = 1
    force: bool = False
    screens: bool = True  # whether the recipe's rounds have a screen
    changed: tuple[str, ...] = ()  # fields that differ from the run that is run again

    @property
    def tests(self) -> bool:
        """Whether it goes as far as looking at judge items."""
        return (
            STAGES.index(self.stop_after or STAGES[-1]) >= STAGES.index("evaluate")
            and self.stop_after != "screen"
        )

    def refuse_missing(self, stage: str, round: int = 0, phase: str = "") -> None:
        """Raises for a stage that the run begins after, and that therefore had to be in the lake."""
        if self.start_at is None or place_of(stage, round, phase) >= self._first(self.start_at):
            return
        name = named(stage, round)
        where = f" of round {round}" if round else ""
        why = f"; what was changed alters it ({', '.join(self.changed)})" if self.changed else ""
        raise UserError(
            f"the run begins at {self.start_at}, and stage {name}{where}, which comes before, is not in the lake with "
            f"these settings{why}; nothing was computed; begin there or earlier: start at {name} (--start-at {name})"
        )

    def repeats(self, stage: str, round: int = 0, phase: str = "") -> bool:
        """Whether this stage is computed again aside and compared with what is published."""
        name = named(stage, round)
        if not self.force or name in FIRST_ANSWER_STAYS:
            return False
        start, end = self.start_at or STAGES[0], self.stop_after or STAGES[-1]
        inside = STAGES.index(start) <= STAGES.index(name) <= STAGES.index(end)
        return inside and place_of(stage, round, phase) >= self._first(start)

    def ends(self, stage: str, args: Sequence[Any]) -> bool:
        """Whether a call of this stage with these arguments is the last that was asked for."""
        round, phase = round_and_phase(args)
        if stage != self.stop_after or (round != self.round and stage not in ONCE):
            return False
        return phase in ("", "confirm") or stage == "screen"

    def _first(self, stage: str) -> Place:
        if stage in ("synthesize", "select", "train", "evaluate"):
            return place_of(stage, self.round, "screen" if self.screens else "confirm")
        return place_of(stage, 0 if stage in ONCE else self.round, "")


def window_of(
    recipe: Recipe,
    start_at: str | None,
    stop_after: str | None,
    round: int | None,
    force: bool,
    changed: tuple[str, ...] = (),
) -> Window:
    """The window asked for; `UserError` says what is wrong with it."""
    for stage in (start_at, stop_after):
        if stage is not None and stage not in STAGES:
            raise UserError(f"there is no stage {stage!r}; stages: {', '.join(STAGES)}")
        if stage == "screen" and recipe.decide.fixed_strategy:
            raise UserError(
                f"recipe {recipe.name} declares its strategy ({recipe.decide.fixed_strategy}), so that it has no screen; "
                "begin at score or synthesize"
            )
    if start_at and stop_after and STAGES.index(stop_after) < STAGES.index(start_at):
        raise UserError(f"stop after {stop_after} comes before start at {start_at}; exchange them")
    if round is not None and not 1 <= round <= recipe.budget.rounds:
        raise UserError(
            f"there is no round {round}: recipe {recipe.name} has [budget] rounds = {recipe.budget.rounds}"
        )
    return Window(start_at, stop_after, round or 1, force, recipe.decide.fixed_strategy is None, changed)


def place_of(stage: str, round: int, phase: str) -> Place:
    """Where a stage stands in the loop: places compare as the loop goes."""
    name = named(stage, round)
    if "sealed" in (name, phase):
        return (10**6, 0, 0)
    at = STAGES.index(name) if name in STAGES else len(STAGES)
    return (round, MARCH.get(name, MARCH.get(phase, 0)), at)


def named(kind: str, round: int) -> str:
    """The stage that makes artifacts of this kind: a new base, won or not, is next_base's."""
    return "next_base" if kind == "unpublished" or (kind == "base" and round) else kind


def round_and_phase(args: Sequence[Any]) -> tuple[int, str]:
    """(round, phase) of a stage's arguments after the run; 0 and empty for stages that have none."""
    round = next((a for a in args[:1] if isinstance(a, int)), 0)
    return round, next((a for a in args[1:2] if isinstance(a, str)), "")


def stopping(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call of a stage, which ends the run where its window ends."""

    def step(stage: Callable[..., Any], run: Any, *args: Any) -> Any:
        made = call(stage, run, *args)
        if run.window.ends(stage.__name__, args):
            raise Stopped
        return made

    return step
