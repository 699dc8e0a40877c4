"""What a run will take, before anything loads: `gradus estimate`.

Scoring is measured: the engine runs for a second or two on a drawn model of the proxy's shape, over rows as long as
the corpus's. The other stages are rules of thumb.
"""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from curation.encoded import TokenRows
from curation.errors import DataError
from curation.ingest.parse import Parsed, map_record
from curation.proxies import encode, make_reader, token_counts
from curation.specs import Recipe, Source
from curation.train.fit import fit
from curation.world import make_world, pool_records
from flows.ingest import source_files
from flows.pace import Pace, measure, one_core, peak_bytes, seconds_of, shards_of
from flows.pretrained import pretrained_of
from flows.recipe import confirming_bounds
from flows.run import Run, scoring_devices
from flows.subject import Lengths, Subject, reader_of, subject_of
from storage.encoders import PACKAGED
from storage.model_files import model_size
from storage.sources import count_records, read_batches

SAMPLE_ROWS = 4096  # of a file; what is read of the corpus
WRITTEN = 40e6  # bytes of features that one core lays out and writes in a second


@dataclass(frozen=True)
class Estimate:
    """One stage: its work in words, seconds on all cores, peak memory of a process, and what it writes."""

    stage: str
    work: str
    seconds: float
    memory_mb: float
    disk_mb: float


@dataclass(frozen=True)
class Scoring:
    """Gradient features of one corpus: seconds of one core for each shard, peak memory of a worker, and what they rest on."""

    rows: int
    shard_seconds: tuple[float, ...]
    memory_mb: float
    lengths: Lengths
    subject: Subject
    pace: Pace

    @property
    def core_seconds(self) -> float:
        """Seconds of one core, its start too."""
        return self.seconds(1)

    @property
    def rows_per_second(self) -> float:
        """Rows that one core (or one GPU) scores in a second."""
        return self.rows / self.core_seconds

    def seconds(self, workers: int) -> float:
        """Seconds on so many cores, each of which starts and takes the next shard when it is free."""
        busy = [self.pace.start] * workers
        for taken in self.shard_seconds:
            heapq.heapreplace(busy, busy[0] + taken)
        return max(busy)


def scoring(run: Run, measured_seconds: float = 2.0) -> Scoring:
    """Time and memory of scoring the recipe's corpus once: a world of the embedded one, or all rows of the sources.

    Reads the first rows of every file, and of a pretrained proxy its config and tokenizer.
    """
    import torch

    recipe, proxy = run.recipe, run.recipe.proxy
    frame, rows = corpus_sample(run)
    lengths, encoding = lengths_of(recipe, frame, rows)
    resting = resident_bytes()  # a worker does not hold the sample
    subject = subject_of(proxy, lengths, encoder_width(recipe))
    devices = scoring_devices()
    device = torch.device(devices[0]) if devices else None
    pace = measure(subject, lengths, recipe.score.shard_rows, measured_seconds, device)
    shards = shards_of(lengths, recipe.score.shard_rows)
    each = encoding + 2 * proxy.feature_dimensions / WRITTEN
    taken = tuple(seconds_of(pace, subject.shape, lengths, at) + each * len(at) for at in shards)
    memory = resting + max(peak_bytes(pace, subject, lengths, at) for at in (shards[0], shards[-1]))
    return Scoring(rows, taken, memory / 1e6, lengths, subject, pace)


def corpus_sample(run: Run) -> tuple[pl.DataFrame, int]:
    """(prompt, response, label) of the first rows of every file, in proportion to the files' sizes; rows in all."""
    columns = {"prompt": pl.String, "response": pl.String, "label": pl.String}
    if run.recipe.worlds:
        rows = run.recipe.budget.rows or 500
        made = [_record(line) for line in pool_records(make_world(run.recipe.seed, 0), rows)]
        return pl.DataFrame([p for p in made if p], schema=columns, orient="row"), rows
    files = source_files(run)
    parts, total = [], 0
    for source in run.recipe.source:
        for path in files[f"source/{source.name}"]:
            sample = list(islice(_parsed(path, source), SAMPLE_ROWS))
            if not sample:
                raise DataError(
                    f"source {source.name!r}, {path.name}: none of the first records can be used; see gradus check"
                )
            n = len(sample) if len(sample) < SAMPLE_ROWS else max(len(sample), count_records(path))
            parts.append((pl.DataFrame(sample, schema=columns, orient="row"), n))
            total += n
    share = min(1.0, *(len(frame) / n for frame, n in parts), 1.0)
    return pl.concat([frame.head(max(1, round(n * share))) for frame, n in parts]), total


def _record(line: str) -> tuple[str, str, None] | None:
    try:
        record = json.loads(line)
    except ValueError:  # the embedded corpus has broken lines, on purpose
        return None
    return (record["prompt"], record["response"], None) if record["response"] else None


def _parsed(path: Path, source: Source) -> Iterator[tuple[str, str, str | None]]:
    for batch in read_batches(path, 1024):
        for _, record, _ in batch.items:
            found = map_record(record, source.fields) if record is not None else None
            if isinstance(found, Parsed):
                yield found.prompt, found.response, found.label


def lengths_of(recipe: Recipe, frame: pl.DataFrame, rows: int) -> tuple[Lengths, float]:
    """Tokens of the sampled rows as the proxy will read them, and the seconds that reading one row takes."""
    proxy = recipe.proxy
    start = time.process_time()
    if proxy.kind == "head":
        tokens = np.maximum(1, token_counts(proxy, frame))
        found = Lengths(tokens, np.ones(len(frame), np.int64), rows, max(2, frame["label"].n_unique()))
        return found, (time.process_time() - start) / len(frame)
    reader = make_reader(proxy, frame, 0, pretrained_of(proxy))
    with one_core():
        start = time.process_time()
        encoded = encode(reader, frame)
    spent = (time.process_time() - start) / len(frame)
    answers = (
        encoded.target[:, 1:].sum(1).numpy()
        if isinstance(encoded, TokenRows)
        else np.ones(len(frame), np.int64)
    )
    names = len(reader.names)
    if proxy.kind == "decoder" and rows > len(frame):  # words grow about as the root of a text (Heaps' law)
        names = min(proxy.max_vocabulary, round(names * (rows / len(frame)) ** 0.5))
    return Lengths(encoded.lengths(), answers, rows, max(5, names)), spent


def encoder_width(recipe: Recipe) -> int:
    """Entries of the proxy's sentence embeddings; 0 without an encoder."""
    if recipe.proxy.kind != "head":
        return 0
    return 384 if recipe.proxy.encoder == PACKAGED else model_size(recipe.proxy.encoder).width


def resident_bytes() -> int:
    """Memory that this process holds: what a worker with the same modules begins with."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def estimate(run: Run) -> list[Estimate]:
    """Time, memory and disk of each stage, from file sizes and short measurements of this machine."""
    recipe, proxy, workers = run.recipe, run.recipe.proxy, max(1, run.workers)
    scored = scoring(run)
    worlds, rounds, rows = max(1, recipe.worlds), recipe.budget.rounds, scored.rows
    d_mb = proxy.feature_dimensions * 2 / 1e6
    trainings, arms_mb = trainings_of(recipe), scored.subject.shape.parameters * 4e-6
    step = step_seconds(recipe, scored)
    scorer_steps = proxy.steps if proxy.scorer_steps is None else proxy.scorer_steps
    grown = [
        rows + r * (recipe.budget.added_rows if recipe.decide.work == "grow" else 0) for r in range(rounds)
    ]
    times = worlds * sum(grown) / rows
    devices = len(scoring_devices()) or workers
    once = scored.seconds(1 if worlds > 1 else devices)
    out = [Estimate("ingest", f"{rows * worlds} rows", rows * worlds / 2500, 300 + rows * 2e-3, rows * 5e-4)]
    if proxy.kind == "head":
        out.append(
            Estimate(
                "embed", f"{rows} texts and the suites", rows * 1.5 * 0.006 / workers + 8, 900, rows * 8e-4
            )
        )
    analysed = max(grown) * proxy.feature_dimensions * 14e-6
    out.append(
        Estimate(
            "score",
            f"{round(rows * times)} rows, {scored.rows_per_second:.0f} a second and core",
            (once * times / (workers if worlds > 1 else 1))
            + rounds * worlds * scorer_steps * step / min(workers, worlds)
            + times * rows * 4e-4 / min(workers, worlds)
            + 6,
            max(scored.memory_mb, 350 + analysed),
            rows * times * d_mb * 1.05,
        )
    )
    if recipe.decide.work == "grow":
        made = recipe.synthesize.candidates * rounds * worlds
        seconds = made / scored.rows_per_second / workers
        out.append(Estimate("synthesize", f"{made} candidates", seconds, scored.memory_mb, made * 1e-3))
    out += [
        Estimate("select", f"{trainings} sets", trainings * 0.6 / workers, 350 + analysed, trainings * 0.05),
        Estimate(
            "train",
            f"{trainings} models x {proxy.steps} steps",
            trainings * proxy.steps * step / workers,
            400 + 16e-6 * scored.subject.shape.parameters,
            trainings * arms_mb,
        ),
        Estimate(
            "evaluate, decide",
            "outcomes of every model",
            trainings * 0.25 / workers + 2,
            500,
            trainings * 0.03,
        ),
    ]
    return out


def trainings_of(recipe: Recipe) -> int:
    """How many models a run trains to compare arms."""
    low, high = confirming_bounds(recipe)
    replicates, strategies = round((low + high) / 2), len(recipe.select.strategies)
    trainings = replicates * (3 if recipe.worlds else 4) * recipe.budget.rounds
    if recipe.decide.fixed_strategy:
        return trainings + replicates * strategies
    return trainings + recipe.decide.screen_replicates * (1 + strategies) * recipe.budget.rounds


def step_seconds(recipe: Recipe, scored: Scoring) -> float:
    """Seconds of one training step on one core: of small models measured, of pretrained ones from the engine's pace.

    A step is a forward and a whole backward, where the engine's backward stops at the activations.
    """
    proxy, lengths = recipe.proxy, scored.lengths
    if proxy.pretrained:
        return proxy.batch_rows * 1.5 / scored.rows_per_second
    rows = scored.subject.rows(
        lengths.tokens[: 8 * proxy.batch_rows], lengths.answers[: 8 * proxy.batch_rows]
    )
    reader = reader_of(proxy, lengths, encoder_width(recipe))
    taken = []
    with one_core():
        for steps in (1, 2, 22):  # the first call of a process loads the optimiser
            start = time.process_time()
            fit(proxy, reader, rows, 0, steps)
            taken.append(time.process_time() - start)
    return max(1e-4, (taken[2] - taken[1]) / 20)
