"""From a TOML file to a `Recipe`: unknown fields and wrong values are refused with what to type instead."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from pathlib import Path

from pydantic import BaseModel, ValidationError

from curation.errors import UserError
from curation.specs import Proxy, Recipe, Suite
from curation.world import SUITES


def load_recipe(
    path: Path, sources: dict[str, str] | None = None, suites: dict[str, str] | None = None
) -> Recipe:
    """The recipe in a file, with local copies in place of the paths of some sources and suites."""
    if not path.is_file():
        raise UserError(f"there is no recipe {path}; `gradus init FILE` writes one from your data")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    _replace_paths(raw, "source", sources or {}, path)
    _replace_paths(raw, "suite", suites or {}, path)
    _find_models(raw.get("proxy"), path.resolve().parent)
    return validated(raw, str(path))


def validated(raw: dict, where: str) -> Recipe:
    """The recipe that these fields make; a `UserError` lists all that is wrong with them."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem), raw) for problem in error.errors()]
        raise UserError(f"{where} has {len(lines)} problem(s):\n  " + "\n  ".join(lines)) from error


def _replace_paths(raw: dict, kind: str, given: dict[str, str], path: Path) -> None:
    entries = raw.get(kind, [])
    names = [e.get("name") for e in entries if isinstance(e, dict)]
    for name, local in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, [str(n) for n in names], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"--{kind} {name}=…: {path} has no [[{kind}]] of that name, it has: {', '.join(map(str, names)) or 'none'}{hint}"
            )
        for entry in entries:
            if entry.get("name") == name:
                for other in ("holdout_clusters", "holdout_rows"):
                    entry.pop(other, None)
                entry["path"] = str(Path(local).expanduser().resolve()) if "://" not in local else local


def _find_models(proxy: object, folder: Path) -> None:
    """A model that is a folder beside the recipe gets its whole path; hub names stay."""
    for key in ("model", "encoder"):
        name = proxy.get(key) if isinstance(proxy, dict) else None
        if isinstance(proxy, dict) and isinstance(name, str) and name and (folder / name).is_dir():
            proxy[key] = str((folder / name).resolve())


def _model_at(location: tuple) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = _inner_model(model.model_fields[part].annotation)
    return model


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    for inner in typing.get_args(annotation):
        if (found := _inner_model(inner)) is not None:
            return found
    return None


def _explain(problem: dict, raw: dict) -> str:
    location = tuple(problem["loc"])
    where = ".".join(f"[{p}]" if isinstance(p, int) else str(p) for p in location) or "the recipe"
    if problem["type"] == "extra_forbidden":
        model = _model_at(location[:-1])
        known = list(model.model_fields) if model else []
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}"
        return f"{where}: unknown field; {hint}"
    if problem["type"] == "literal_error":
        given = str(problem.get("input"))
        expected = problem.get("ctx", {}).get("expected", "")
        names = [n.strip().strip("'") for n in expected.replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(given, names, 1, 0.4)
        return (
            f"{where}: {given!r} is not known"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" (known: {', '.join(names)})"
        )
    if problem["type"] == "missing":
        return f"{where}: this field is required"
    return f"{where}: {problem['msg']} (got {problem.get('input')!r})"


def describe_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a field: where it goes in the TOML, its default, what it is for."""
    lines = []
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is not None and name != "fields":
            many = "tuple" in str(field.annotation)
            title = f"[[{name}]]" if many else f"[{name}]"
            lines += [
                "",
                f"{title}  {(inner.__doc__ or '').strip().splitlines()[0] if inner.__doc__ else ''}".rstrip(),
            ]
            lines += describe_fields(inner, "  ")
            continue
        plain = {} if isinstance(field.default, BaseModel) else field.default
        default = "required" if field.is_required() else f"default {json.dumps(plain)}"
        lines.append(f"{prefix}{name:<26} {default}{'; ' + field.description if field.description else ''}")
        if name == "fields" and inner is not None:
            lines += describe_fields(inner, prefix + "  ")
    return lines


def judge_problems(recipe: Recipe) -> list[str]:
    """What makes the recipe unusable before any file is opened, each with where and what to type."""
    problems = _name_problems(recipe)
    if "rho" in recipe.score.extra and recipe.proxy.scorer_steps == 0:
        problems.append(
            "[score] extra: rho compares proxies that trained on other rows, and scorer_steps = 0 trains none; "
            "leave rho out, or let the scorer train"
        )
    if recipe.worlds and not all(s.embedded for s in recipe.source):
        problems.append(
            "worlds > 0 is for the embedded corpus only: set embedded = true on the source, or worlds = 0"
        )
    if not recipe.worlds and any(s.embedded for s in (*recipe.source, *recipe.suite)):
        problems.append("an embedded source or suite needs worlds = N (one a replicate), e.g. worlds = 8")
    if recipe.worlds:
        wrong = [s.name for s in recipe.suite if not s.embedded or SUITES.get(s.name) != s.distribution]
        if wrong or len(recipe.source) != 1:
            known = ", ".join(f"{name} ({distribution})" for name, distribution in SUITES.items())
            problems.append(
                f"the embedded corpus has one source, and the suites {known}, each with embedded = true; not: {', '.join(wrong) or 'several sources'}"
            )
        if (
            recipe.decide.work != "grow"
            or recipe.decide.fixed_strategy is None
            or recipe.proxy.scorer_steps is not None
        ):
            problems.append(
                'the embedded corpus grows with a declared strategy: [decide] work = "grow" and fixed_strategy, and no [proxy] scorer_steps'
            )
    for kind, entries in (("source", recipe.source), ("suite", recipe.suite)):
        for entry in entries:
            places = [entry.path is not None, entry.embedded]
            if isinstance(entry, Suite):
                places += [entry.holdout_clusters is not None, entry.holdout_rows is not None]
            if sum(places) != 1:
                options = (
                    'path = "…"'
                    + (", holdout_clusters or holdout_rows" if kind == "suite" else "")
                    + " or embedded = true"
                )
                problems.append(f"[[{kind}]] {entry.name}: give exactly one of {options}")
    uses = {(s.distribution, u) for s in recipe.suite for u in s.use.split("+")}
    if ("ood", "judge") not in uses:
        problems.append(
            'no suite judges out of distribution: add a [[suite]] with distribution = "ood" and use = "steer+judge"'
        )
    if ("ood", "steer") not in uses and recipe.decide.fixed_strategy is None:
        problems.append(
            'the screen needs a steer suite: add use = "steer+judge" to an ood [[suite]], or set [decide] fixed_strategy'
        )
    return problems + _work_problems(recipe)


def _name_problems(recipe: Recipe) -> list[str]:
    problems = []
    for kind, entries in (("source", recipe.source), ("suite", recipe.suite)):
        names = [e.name for e in entries]
        problems += [
            f"two [[{kind}]] are called {n!r}; names must differ"
            for n in sorted({n for n in names if names.count(n) > 1})
        ]
        if not names:
            problems.append(f"the recipe has no [[{kind}]]")
    return problems


def _work_problems(recipe: Recipe) -> list[str]:
    problems = []
    work, budget = recipe.decide.work, recipe.budget
    if work == "grow" and (recipe.synthesize.generator is None or budget.added_rows == 0):
        problems.append('[decide] work = "grow" needs [synthesize] generator and [budget] added_rows > 0')
    if work == "grow" and budget.added_rows > recipe.synthesize.candidates // 2:
        problems.append(
            f"[budget] added_rows = {budget.added_rows} is more than half of [synthesize] candidates = {recipe.synthesize.candidates}, and only half of them are untargeted; raise candidates"
        )
    if not recipe.select.strategies and recipe.decide.fixed_strategy is None:
        problems.append(
            "[select] strategies is empty, and [decide] fixed_strategy is not set: there is nothing to try"
        )
    if recipe.synthesize.generator == "embedded" and not recipe.worlds:
        problems.append('[synthesize] generator = "embedded" belongs to the embedded corpus; use "recombine"')
    if work == "choose" and budget.rows is None and budget.tokens is None:
        problems.append(
            '[decide] work = "choose" needs a budget smaller than the pool: set [budget] rows or tokens'
        )
    if recipe.proxy.kind != "head":
        strategies = {*recipe.select.strategies, recipe.decide.fixed_strategy} - {None}
        for name in sorted(s for s in strategies if s.startswith("embedding_")):
            problems.append(
                f'[select] strategy {name!r} needs sentence embeddings: set [proxy] kind = "head", or leave it out'
            )
    if recipe.proxy.classifies and work == "grow":
        problems.append(
            f'[proxy] kind = "{recipe.proxy.kind}" needs labels, and rows that do not exist yet have none: '
            'use work = "choose", or kind = "decoder" or "causal_lm"'
        )
    problems += _proxy_problems(recipe.proxy)
    n = confirming_bounds(recipe)[1]
    if n < 6:
        problems.append(
            f"too few replicates to publish at all: {n} can reach p = 1/{2**n} at best, the rule asks for at least 6 "
            "(p <= 2/64); set "
            + (
                f"worlds = 8 (now {recipe.worlds})"
                if recipe.worlds
                else "[decide] replicates or max_replicates to 6 or more"
            )
        )
    if recipe.worlds and recipe.decide.replicates not in (None, recipe.worlds):
        problems.append(
            f"on the embedded corpus a replicate is a world: leave [decide] replicates out, or set it to worlds = {recipe.worlds}"
        )
    return problems


def _proxy_problems(proxy: Proxy) -> list[str]:
    problems = []
    if proxy.kind == "decoder" and proxy.width % proxy.heads:
        problems.append(f"[proxy] width = {proxy.width} must be a multiple of heads = {proxy.heads}")
    if proxy.pretrained == "model" and not proxy.model:
        problems.append(f'[proxy] kind = "{proxy.kind}" needs model = "FOLDER or hub name"')
    if proxy.pretrained != "model" and proxy.model:
        problems.append(
            f'[proxy] kind = "{proxy.kind}" does not read model = {proxy.model!r}; set kind = "causal_lm" or '
            '"classifier"' + (", or encoder in its place" if proxy.kind in ("head", "encoder") else "")
        )
    if proxy.scorer_steps == 0 and proxy.kind not in ("causal_lm", "classifier"):
        problems.append(
            f'[proxy] scorer_steps = 0 takes a trained model as it is, and kind = "{proxy.kind}" starts untrained; '
            "set it to 1 or more"
        )
    return problems


def confirming_bounds(recipe: Recipe) -> tuple[int, int]:
    """The fewest and the most confirming replicates that this recipe can have."""
    if recipe.worlds:
        return recipe.worlds, recipe.worlds
    if recipe.decide.replicates is not None:
        return recipe.decide.replicates, recipe.decide.replicates
    most = recipe.decide.max_replicates
    if recipe.decide.fixed_strategy:
        return min(8, most), min(8, most)
    return min(6, most), most
