"""Pretrained proxies: where their files are, what of them enters fingerprints, and how a worker loads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import polars as pl
from torch import nn

from curation.checkpoint import check_causal
from curation.errors import UserError
from curation.pretrained import Pretrained
from curation.proxies import token_counts
from curation.specs import Proxy, Recipe
from storage.model_files import (
    available_bytes,
    base_of,
    check_fits,
    model_digest,
    model_folder,
    model_size,
)
from storage.pretrained import inspect_model, load_causal, load_classifier, load_transformer


def proxy_spec(recipe: Recipe) -> dict:
    """The proxy as it enters fingerprints: a pretrained model by its content, not by its name or place."""
    spec = recipe.proxy
    named = {spec.pretrained: _digest_of(_name(spec))} if spec.pretrained else {}
    return spec.model_dump(mode="json") | named


def tokens_spec(recipe: Recipe) -> dict:
    """What the token counts of rows depend on."""
    fields = ["kind", "max_tokens"]
    if recipe.proxy.pretrained:
        fields += [recipe.proxy.pretrained, "too_long", "chat_template", "separator"]
    whole = proxy_spec(recipe)
    return {name: whole[name] for name in fields}


def pinned(recipe: Recipe) -> Recipe:
    """The recipe for workers: the local folder in place of a hub name, so that they load what was fingerprinted."""
    spec = recipe.proxy
    if spec.pretrained is None:
        return recipe
    folder = str(_folder(_name(spec), True))
    return recipe.model_copy(update={"proxy": spec.model_copy(update={spec.pretrained: folder})})


def tokens_of(recipe: Recipe, frame: pl.DataFrame) -> np.ndarray:
    """Tokens that training on each row costs, (n,) int64; the unit of budgets."""
    model = pretrained_of(recipe.proxy)
    return token_counts(recipe.proxy, frame, model.tokenizer if model else None)


def pretrained_of(spec: Proxy) -> Pretrained | None:
    """The recipe's pretrained model, its weights not yet loaded; None for a proxy that starts from nothing.

    `UserError` for what can be known without the weights: pickles, no tokenizer, a context below `max_tokens`,
    too little memory to train it.
    """
    if spec.pretrained is None:
        return None
    return _inspected(spec, _stamp(_folder(_name(spec), False)))


def _name(spec: Proxy) -> str:
    name = spec.encoder if spec.pretrained == "encoder" else spec.model
    if not name:
        raise UserError(f'[proxy] kind = "{spec.kind}" needs model = "FOLDER or hub name"')
    return name


def _folder(name: str, weights: bool) -> Path:
    local = Path(name).expanduser()
    return local if local.is_dir() else _fetched(name, weights)


@lru_cache(maxsize=8)
def _fetched(name: str, weights: bool) -> Path:
    """A hub name is asked for once a process: all stages of a run have the same revision."""
    return model_folder(name, weights)


def _stamp(folder: Path) -> tuple:
    """Changes with the files of a model, and of an adapter's base: what is remembered of them is forgotten."""
    files = ((p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file())
    own = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
    adapter = (folder / "adapter_config.json").exists()
    return (*own, *_stamp(_folder(base_of(folder), False))) if adapter else own


def _digest_of(name: str) -> str:
    folder = _folder(name, True)
    return _digest(str(folder), _stamp(folder))


@lru_cache(maxsize=8)
def _digest(folder: str, stamp: tuple) -> str:
    return model_digest(folder)


@lru_cache(maxsize=4)
def _inspected(spec: Proxy, stamp: tuple) -> Pretrained:
    name, causal = _name(spec), spec.kind == "causal_lm"
    config, tokenizer = inspect_model(name, causal)
    size = model_size(name)
    if size.context is not None and spec.max_tokens > size.context:
        raise UserError(
            f"[proxy] max_tokens = {spec.max_tokens}, but {name!r} reads at most {size.context} tokens; nothing was "
            f"loaded. Set max_tokens to {size.context} or less (longer rows: too_long = {spec.too_long!r})"
        )
    adapter = any(file == "adapter_config.json" for file, *_ in stamp)
    check_fits(name, size, available_bytes(), training=not adapter)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    trained = spec.kind == "classifier" and architecture.endswith("ForSequenceClassification")
    labels = getattr(config, "id2label", None) or {}
    own = tuple(str(labels[i]) for i in sorted(labels)) if trained else ()
    pad = config.get_text_config().pad_token_id
    load = {"causal_lm": _load_causal, "classifier": partial(_load_classifier, own), "encoder": _load_encoder}
    return Pretrained(tokenizer, partial(load[spec.kind], name), own, pad if isinstance(pad, int) else None)


def _load_causal(name: str, classes: tuple[str, ...]) -> tuple[nn.Module, Sequence[str]]:
    model, _ = load_causal(name)
    check_causal(model)
    return model, ()


def _load_classifier(
    own: tuple[str, ...], name: str, classes: tuple[str, ...]
) -> tuple[nn.Module, Sequence[str]]:
    model, _, missing = load_classifier(name, None if classes == own else len(classes))
    if classes == own:
        return model, missing
    body = model.base_model_prefix + "."  # a trained head of the same size is one of other classes
    return model, sorted({*missing, *(n for n, _ in model.named_parameters() if not n.startswith(body))})


def _load_encoder(name: str, classes: tuple[str, ...]) -> tuple[nn.Module, Sequence[str]]:
    return load_transformer(name)[0], ()
