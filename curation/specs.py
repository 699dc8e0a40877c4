"""The recipe: one frozen spec a stage; every field explained, because Prefect renders these as forms."""

from __future__ import annotations

import re
from typing import Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

StrategyName = Literal[
    "errors_first",
    "gradient_logdet",
    "surface_logdet",
    "errors_logdet",
    "gradient_kcenter",
    "gradient_clusters",
    "embedding_logdet",
    "embedding_kcenter",
    "embedding_clusters",
]


class Spec(BaseModel):
    """Base of the specs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldMap(Spec):
    """Where a row's fields are in a record; dots reach into nested objects."""

    prompt: str | None = Field(
        default=None,
        description="key of the prompt or text; default: prompt, question, instruction, input or text",
    )
    response: str | None = Field(
        default=None, description="key of the answer; default: response, answer, output, completion or target"
    )
    label: str | None = Field(default=None, description="key of the class label; default: label")
    messages: str | None = Field(
        default=None,
        description="key of a chat's list of {role, content}; takes the place of prompt and response",
    )
    cluster: str | None = Field(
        default=None,
        description="suites only: key of the item's cluster (template, paragraph); default: near-duplicate groups",
    )


class Source(Spec):
    """One source of the pool: where its records are and which of their keys are which field."""

    name: str = Field(description="row ids and --source NAME=PATH use it", pattern=r"^[A-Za-z0-9_.-]+$")
    path: str | None = Field(
        default=None,
        description="a file, a glob, or hf://owner/name for a hub data set; relative to the recipe",
    )
    embedded: bool = Field(
        default=False, description="rows come from the embedded generator instead of a path"
    )
    fields: FieldMap = FieldMap()
    licence: str | None = Field(default=None, description="licence of the source, kept on every row")
    url: str | None = Field(default=None, description="where a stranger gets this source")


class Suite(Spec):
    """One evaluation set: where its items come from, its distribution and what it is used for."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    path: str | None = Field(default=None, description="a file or glob; relative to the recipe")
    embedded: bool = Field(default=False, description="items come from the embedded generator")
    holdout_clusters: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="hold this share of the pool's text clusters out as the suite, in place of a path",
    )
    holdout_rows: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="hold this share of the pool's rows out at random as the suite, in place of a path",
    )
    distribution: Literal["id", "ood"]
    use: Literal["steer", "judge", "sealed", "steer+judge"] = Field(
        default="steer+judge", description="steer+judge is split by clusters"
    )
    fields: FieldMap = FieldMap()
    url: str | None = None


class Ingest(Spec):
    """Cleaning, deduplication and decontamination."""

    near_duplicate_jaccard: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="rows with the same answer and at least this Jaccard similarity are near-duplicates; 1 turns it off",
    )
    decontaminate_ngram_words: int = Field(
        default=10,
        ge=4,
        description="a row that shares this many consecutive words with a suite item's prompt is dropped",
    )
    max_chars: int = Field(default=100_000, gt=0, description="longer rows are dropped, with a ledger line")
    max_unparsable_share: float = Field(
        default=0.2, ge=0, le=1, description="the stage fails when more of the records cannot be parsed"
    )
    batch_rows: int = Field(default=20_000, gt=0, description="records held in memory at once")


PRETRAINED = {  # defaults of the kinds that start from a pretrained model, where they are not those below
    "causal_lm": {"max_tokens": 256, "batch_rows": 16, "learning_rate": 5e-5},
    "classifier": {"max_tokens": 256, "batch_rows": 16, "learning_rate": 1e-4},
    "encoder": {"max_tokens": 256, "batch_rows": 16, "learning_rate": 2e-4},
}


class Proxy(Spec):
    """The small model whose gradients are taken, and the models trained to compare data."""

    kind: Literal["decoder", "head", "causal_lm", "classifier", "encoder"] = Field(
        default="decoder",
        description="decoder: a small causal model trained from scratch on prompt -> response; head: a classifier on a frozen sentence encoder; causal_lm: a Hugging Face language model, fine-tuned; classifier: a Hugging Face sequence classifier, fine-tuned; encoder: a sentence encoder fine-tuned with a head",
    )
    model: str | None = Field(
        default=None,
        description="causal_lm and classifier: a folder (relative to the recipe) or hub name, with weights as safetensors; a LoRA adapter trains its adapter alone",
    )
    encoder: str = Field(
        default="packaged:all-MiniLM-L6-v2",
        description="head and encoder: the packaged MiniLM, or a path or hub name of a sentence-transformers model",
    )
    embedding_scale: float = Field(
        default=10.0, gt=0, description="head and encoder: unit embeddings are multiplied by this"
    )
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=64, ge=8)
    heads: int = Field(default=4, ge=1)
    max_tokens: int = Field(
        default=64,
        ge=8,
        description="all but head; default of a pretrained model 256: longer rows lose the beginning of the prompt, then the end of the response",
    )
    too_long: Literal["truncate", "refuse"] = Field(
        default="truncate",
        description="pretrained models: rows longer than max_tokens are cut, or neither trained on nor scored; both are in the ledger",
    )
    chat_template: bool = Field(
        default=True,
        description="causal_lm: a prompt is a user's turn of the tokenizer's chat template, when it has one",
    )
    separator: str = Field(
        default="\n", description="causal_lm without a chat template: between prompt and response"
    )
    max_vocabulary: int = Field(
        default=8192, ge=64, description="decoder only: most frequent words kept; others are unknown"
    )
    steps: int = Field(default=600, ge=1, description="optimiser steps of every compared model")
    scorer_steps: int | None = Field(
        default=None,
        ge=0,
        description="steps of the model whose gradients are taken; default: as compared models; 0: a pretrained model as it is",
    )
    batch_rows: int = Field(default=64, ge=1, description="rows of a step; default of a pretrained model 16")
    learning_rate: float = Field(
        default=8e-3,
        gt=0,
        description="default of causal_lm 5e-5, classifier 1e-4, encoder 2e-4",
    )
    feature_dimensions: int = Field(default=512, ge=16, description="d of the gradient features")
    fold_width: int = Field(
        default=192, ge=8, description="layer sides wider than this are folded before the outer product"
    )
    parameters: str | tuple[str, ...] = Field(
        default="hidden",
        description="whose gradients: hidden (linear layers below the output head), all, lora, or a list of linear, head, embeddings, norms, biases, lora",
    )
    scaling: Literal["none", "module"] = Field(
        default="none",
        description="module: each matrix's gradient is divided by its root mean square length over 256 rows of the base, so that none outweighs the others",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="bf16: the layers' products in bfloat16, sums in float32; faster where the processor has it, other bits",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        return {**PRETRAINED.get(str(given.get("kind")), {}), **given} if isinstance(given, dict) else given

    @property
    def pretrained(self) -> Literal["model", "encoder"] | None:
        """The field that names the pretrained model which training starts from; None when it starts from nothing."""
        return None if self.kind not in PRETRAINED else "encoder" if self.kind == "encoder" else "model"

    @property
    def classifies(self) -> bool:
        """Whether rows are labelled texts; otherwise a response is predicted from its prompt."""
        return self.kind in ("head", "classifier", "encoder")


class Budget(Spec):
    """The size of the set, and what a run may cost."""

    rows: int | None = Field(default=None, gt=0, description="rows of the set; default: the whole pool")
    tokens: int | None = Field(default=None, gt=0, description="tokens of the set, in place of rows")
    added_rows: int = Field(default=0, ge=0, description="rows added a round (work = grow)")
    rounds: int = Field(default=1, ge=1, le=20)
    minutes: float | None = Field(
        default=None, gt=0, description="no new round starts when the run has used this"
    )


class Synthesize(Spec):
    """New rows: by which generator, and how many to choose from."""

    generator: Literal["embedded", "recombine"] | None = Field(
        default=None,
        description="embedded: the generator of the embedded corpus; recombine: exchange fragments of existing rows",
    )
    candidates: int = Field(default=2000, gt=0, description="verified candidates a round and replicate")


class Select(Spec):
    """How sets are composed."""

    strategies: tuple[StrategyName, ...] = Field(
        default=("errors_logdet",), description="strategies that compete in the screen, in this order"
    )
    regions: int | None = Field(
        default=None,
        ge=2,
        description="clusters of the region map; default: about the square root of twice the rows",
    )


class Score(Spec):
    """What is computed of every row beside its gradient, and in which portions."""

    shard_rows: int = Field(
        default=4096, ge=16, description="rows of one shard of features: what a kill loses at most"
    )
    extra: tuple[Literal["ifd", "rho", "less_whitened"], ...] = Field(
        default=(),
        description="scores that cost more: ifd (one more forward), rho (two more trainings), less_whitened (influence whitened by the rows' second moment)",
    )


class Decide(Spec):
    """What is compared, how often, and which gain is worth having."""

    work: Literal["grow", "choose"] = Field(
        default="choose",
        description="grow: base plus rows accepted this round; choose: a fresh draw of the budget from the pool",
    )
    endpoint: Literal["accuracy", "p_correct"] = Field(
        default="accuracy", description="what is averaged over the OOD judge suites; fixed beforehand"
    )
    smallest_gain_points: float = Field(default=2.0, gt=0, description="the smallest gain worth having")
    replicates: int | None = Field(
        default=None,
        ge=1,
        le=20,
        description="confirming replicates, fixed; default: from the screen's spread",
    )
    max_replicates: int = Field(
        default=12, ge=1, le=20, description="confirming replicates that the budget allows"
    )
    screen_replicates: int = Field(default=4, ge=2)
    fixed_strategy: StrategyName | None = Field(
        default=None, description="skip the screen: this strategy is the candidate, declared beforehand"
    )
    subsample: float = Field(
        default=0.8, gt=0.1, le=0.9, description="share of the pool in a replicate of a real corpus"
    )
    guard_points: float = Field(
        default=1.0, ge=0, description="the candidate's ID may be this far below the previous version"
    )


CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
CRON_PART = re.compile(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?")


class Schedule(Spec):
    """When `gradus serve` starts the recipe by itself; changes nothing about what a run makes."""

    cron: str | None = Field(
        default=None,
        description='minute hour day month weekday, in numbers: "30 3 * * 1-5" is 3:30 on weekdays',
    )
    timezone: str | None = Field(default=None, description='of cron, such as "Europe/Berlin"; default: UTC')
    interval_minutes: float | None = Field(
        default=None, ge=1, description="start again so often, in place of cron"
    )
    watch_minutes: float | None = Field(
        default=None, ge=1, description="look so often for new source files, and start when there are some"
    )

    @field_validator("cron")
    @classmethod
    def _known_times(cls, cron: str | None) -> str | None:
        fields = (cron or "").split()
        if cron is not None and len(fields) != len(CRON):
            raise ValueError("cron has five fields: minute hour day month weekday")
        for (name, low, high), field in zip(CRON, fields, strict=False):
            for part in field.split(","):
                found = CRON_PART.fullmatch(part)
                first, last = (int(n or found[1] or low) for n in found.group(1, 2)) if found else (-1, -1)
                if not low <= first <= last <= high:
                    raise ValueError(f"{part!r} is no {name}; write *, N, N-M or */N, from {low} to {high}")
        return cron

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, zone: str | None) -> str | None:
        if zone is not None and zone not in available_timezones():
            raise ValueError(f"{zone!r} is no time zone; write one such as Europe/Berlin")
        return zone

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.cron and self.interval_minutes:
            raise ValueError("give cron or interval_minutes, not both")
        if self.timezone and not self.cron:
            raise ValueError("timezone belongs to cron: add cron, or leave timezone out")
        return self


class Recipe(Spec):
    """Everything a run needs, and nothing about where it runs."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=80)
    seed: int = Field(default=7, ge=0)
    worlds: int = Field(
        default=0,
        ge=0,
        le=20,
        description="embedded corpus: number of worlds, one a replicate; 0 for real corpora",
    )
    source: tuple[Source, ...]
    suite: tuple[Suite, ...]
    ingest: Ingest = Ingest()
    proxy: Proxy = Proxy()
    budget: Budget = Budget()
    score: Score = Score()
    synthesize: Synthesize = Synthesize()
    select: Select = Select()
    decide: Decide = Decide()
    schedule: Schedule = Schedule()
