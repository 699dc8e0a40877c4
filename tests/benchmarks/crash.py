"""kill -9 of every process of every stage at random moments, and what is lost by it: nothing.

python tests/benchmarks/crash.py [--quick] [--kills 200] [--seed 1] [--database postgres]      (quick: 20 kills)

One small recipe runs through all stages, two rounds (quick: one). It is run once undisturbed; then again and again in other lakes:
directly (by turns without Prefect, and by `gradus run` with its temporary server) and, at the same time, under
`gradus serve`, started over the API. A process is killed at a random moment of a run, or just as a stage begins or a
shard, an artifact, a version or a booking appears; the run is started again until it completes. Then the lake must hold
the bytes of the undisturbed one, every record must be accounted for, and nothing may be left running. `--database
postgres` gives `gradus serve` a Postgres of its own, whose processes are killed too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from crashing.forked import Forking  # noqa: E402
from crashing.lakes import Facts, differences, drawn, facts_of, reached, stage_in, wipe  # noqa: E402
from crashing.postgres import postgres  # noqa: E402
from crashing.processes import MARK, gone, kill, ours  # noqa: E402
from crashing.served import Served, clean_environment  # noqa: E402

from tests.tiny import tiny_recipe  # noqa: E402

KILLS, QUICK_KILLS = 200, 20
PREFECT_SHARE = 0.25  # of direct runs: they begin later, with a server of their own
SHARES = {"direct": 0.65, "served": 0.35}
KILLS_A_LAKE, KILLS_A_START = 12, 3
HUNG_SECONDS = 900
# A kill is told that late: by a worker, or by the server when heartbeats stay away.
TOLD_SECONDS = 180
# How often a process is chosen: the supervisor seldom, its start takes longest.
WEIGHTS = {"run": 6, "shard worker": 4, "worker": 2, "server": 2, "database": 2}


@dataclass
class Bench:
    """What was done and found so far."""

    folder: Path
    recipe: Path
    luck: random.Random
    expected: Facts = field(default_factory=Facts)
    usual_seconds: float = 0.0
    by_process: Counter[str] = field(default_factory=Counter)
    by_stage: Counter[str] = field(default_factory=Counter)
    runs_finished: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    forking: Forking | None = None
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def kills(self) -> int:
        """So far."""
        return self.by_process.total()

    def kill_one(self, lake: Path) -> str:
        """What a process did that was killed; '' when there was none."""
        living = {pid: role for pid, role in ours(self.mark).items() if role}
        if not living:
            return ""
        weights = [WEIGHTS.get(role, 1) / list(living.values()).count(role) for role in living.values()]
        pid = self.luck.choices(list(living), weights)[0]
        stage = stage_in(lake)
        if not kill(pid):
            return ""
        self.by_process[living[pid]] += 1
        self.by_stage[stage] += 1
        print(f"  {self.kills:4}  {living[pid]:32} {stage}", flush=True)
        return living[pid]

    def check(self, lake: Path) -> bool:
        """Whether a finished lake is as the undisturbed one."""
        self.runs_finished += 1
        found = differences(facts_of(lake), self.expected)
        self.lost, self.doubled = self.lost + found["lost"], self.doubled + found["doubled"]
        self.unequal += [f"{lake.name}: {name}" for name in found["differ"]]
        self.problems += [f"{lake.name}: {problem}" for problem in found["problems"]]
        print(
            f"{lake.name}: finished; {len(found['differ'])} files differ, {found['problems'] or 'no problems'}",
            flush=True,
        )
        return not (found["differ"] or found["problems"])


def start(bench: Bench, lake: Path, prefect: bool) -> Forking | subprocess.Popen[bytes]:
    """A run of the recipe in the lake: plain, or by `gradus run` under its temporary Prefect server."""
    environment, log = clean_environment(ROOT) | {MARK: bench.mark}, bench.folder / "direct.log"
    if not prefect:
        bench.forking = bench.forking or Forking(environment, log)
        return bench.forking.start(bench.recipe, lake)
    command = [sys.executable, "-m", "flows.cli", "run", str(bench.recipe), "--lake", str(lake)]
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def disturbed(bench: Bench, lake: Path, kills: int) -> None:
    """Runs the recipe, killed so often, until it completes."""
    last = bench.kills + kills
    while True:
        process, harmed = start(bench, lake, bench.luck.random() < PREFECT_SHARE), 0
        running = lambda process=process: process.poll() is None  # noqa: E731
        while bench.kills < last and harmed < KILLS_A_START:
            if not reached(drawn(bench.luck, bench.usual_seconds), lake, running, bench.usual_seconds):
                break
            harmed += bool(bench.kill_one(lake))
        status = process.wait(HUNG_SECONDS)
        if status == 0:
            return
        if not harmed:
            bench.problems.append(
                f"{lake.name}: exit {status} though nothing was killed; {bench.folder}/direct.log"
            )
            return


def directly(bench: Bench, kills: int) -> None:
    """Lakes of runs from the command line, until so many kills were made."""
    last, number = bench.kills + kills, 0
    while bench.kills < last:
        lake, number = bench.folder / f"direct-{number}", number + 1
        disturbed(bench, lake, min(KILLS_A_LAKE, last - bench.kills))
        left = gone(bench.mark, 30)
        bench.problems += [f"{lake.name}: left running: {role or 'a helper'}" for role in left.values()]
        for pid in left:
            kill(pid)
        if bench.check(lake):
            shutil.rmtree(lake)


def under_server(bench: Bench, kills: int, environment: dict[str, str]) -> None:
    """The same under one `gradus serve`, whose lake is emptied after every run that completed."""
    last, lake = bench.kills + kills, bench.folder / "served"
    before = frozenset(ours(bench.mark))  # the data base's, which stays
    served = Served(lake, bench.recipe, bench.mark, clean_environment(ROOT) | environment)
    served.start()
    while bench.kills < last:
        one_served(bench, served, min(bench.kills + KILLS_A_LAKE, last))
        bench.problems += [f"run {run} stayed {served.state(run)}" for run in served.unsettled()]
        bench.problems += [f"{version} was announced twice" for version in served.announced_twice()]
        bench.check(lake)
        wipe(lake)
        served.runs.clear()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", "stop", "--lake", str(lake)],
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    left = {pid: role for pid, role in gone(bench.mark, 20, before).items() if role != "database"}
    bench.problems += [f"served: left running: {role or 'a helper'}" for role in left.values()]


def one_served(bench: Bench, served: Served, last: int) -> None:
    """A loop triggered over the API, disturbed until so many kills were made, and again until it completed."""
    run, deadline = served.trigger(again=False), time.monotonic() + 2 * HUNG_SECONDS
    harmed_at = -math.inf
    while time.monotonic() < deadline:
        if bench.kills < last and reached(
            drawn(bench.luck, bench.usual_seconds), served.lake, served.busy, 0.5 * bench.usual_seconds
        ):
            harmed_at = time.monotonic() if bench.kill_one(served.lake) else harmed_at
        time.sleep(0.5)
        if served.died():
            served.start()
        state = served.state(run)
        if state == "COMPLETED":
            return
        if state in ("CRASHED", "FAILED", "CANCELLED"):
            if time.monotonic() - harmed_at > TOLD_SECONDS:
                bench.problems.append(f"{state} though nothing was killed: {served.message(run)[:300]}")
            run = served.trigger(again=bench.luck.random() < 0.5)
    bench.problems.append(f"served: not completed within {2 * HUNG_SECONDS} s")


def undisturbed(bench: Bench) -> None:
    """Runs the recipe once; what it made is what every other lake must hold."""
    begun = time.monotonic()
    lake = bench.folder / "undisturbed"
    status = start(bench, lake, prefect=False).wait(HUNG_SECONDS)
    if status:
        sys.exit(f"the undisturbed run ended with {status}; see {bench.folder}/direct.log")
    bench.usual_seconds, bench.expected = time.monotonic() - begun, facts_of(lake)
    print(f"undisturbed: {bench.usual_seconds:.0f} s, {len(bench.expected.digests)} files", flush=True)


def small_recipe(folder: Path, rounds: int) -> Path:
    """Six worlds, shards of 32 rows."""
    recipe = tiny_recipe(folder, rounds=rounds, steps=2)
    recipe.write_text(recipe.read_text(encoding="utf-8") + "\n[score]\nshard_rows = 32\n", encoding="utf-8")
    return recipe


def figures(benches: list[Bench], seconds: float) -> dict[str, object]:
    """The last line."""
    by_process = sum((bench.by_process for bench in benches), Counter())
    finished = sum(bench.runs_finished for bench in benches)
    return {
        "kills": by_process.total(),
        "lost_rows": sum(bench.lost for bench in benches),
        "doubled_rows": sum(bench.doubled for bench in benches),
        "equal_bytes": finished > 0 and not any(bench.unequal for bench in benches),
        "runs_finished": finished,
        "seconds": round(seconds),
        "by_process": dict(by_process.most_common()),
        "by_stage": dict(sum((bench.by_stage for bench in benches), Counter()).most_common()),
        "problems": [problem for bench in benches for problem in bench.problems],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", default=",".join(SHARES), help="direct, served, or both")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kills, begun = asked.kills or (QUICK_KILLS if asked.quick else KILLS), time.monotonic()
    shares = {way: SHARES[way] for way in asked.ways.split(",")}
    share = {way: math.ceil(kills * part / sum(shares.values())) for way, part in shares.items()}
    folder = Path(tempfile.mkdtemp(prefix="gradus-crash-"))
    first = Bench(folder, small_recipe(folder, 1 if asked.quick else 2), random.Random(asked.seed))
    benches = {way: replace_luck(first, f"{asked.seed}-{way}") for way in shares}
    ways = {"direct": directly, "served": partial(with_database, database=asked.database)}
    try:
        undisturbed(first)
        for bench in benches.values():
            bench.usual_seconds, bench.expected = first.usual_seconds, first.expected
        threads = [
            Thread(target=told, args=(ways[way], benches[way], share[way]), daemon=True) for way in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for bench in (first, *benches.values()):
            for pid in ours(bench.mark):
                kill(pid)
        found = figures([first, *benches.values()], time.monotonic() - begun)
        print(json.dumps(found), flush=True)
    if found["problems"] or found["lost_rows"] or found["doubled_rows"] or not found["equal_bytes"]:
        sys.exit(f"kept for a look: {folder}")
    shutil.rmtree(folder)


def told(way: Callable[[Bench, int], None], bench: Bench, kills: int) -> None:
    """Carries one way out; what ends it early is a problem."""
    try:
        way(bench, kills)
    except (Exception, SystemExit) as error:
        bench.problems.append(f"{type(error).__name__}: {error}")


def replace_luck(bench: Bench, seed: str) -> Bench:
    """A bench of its own for one way: its moments do not depend on the other's."""
    return Bench(bench.folder, bench.recipe, random.Random(seed))


def with_database(bench: Bench, kills: int, database: str) -> None:
    """Under a server with sqlite, or with a Postgres of our own."""
    if database == "sqlite":
        under_server(bench, kills, {})
        return
    with postgres(bench.folder / "postgres", bench.mark) as url:
        under_server(bench, kills, {"PREFECT_API_DATABASE_CONNECTION_URL": url})


if __name__ == "__main__":
    main()
