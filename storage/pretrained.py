"""Hugging Face models from a folder or the hub: loaded from safetensors only, never with remote code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from curation.errors import UserError
from storage.encoders import PACKAGED
from storage.model_files import (
    architecture_of,
    available_bytes,
    base_of,
    check_fits,
    model_folder,
    model_size,
    read_config,
    read_json,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
CONVERT = (
    'python -c "from transformers import {auto} as M, AutoTokenizer as T; '
    "[C.from_pretrained('{name}').save_pretrained('{target}') for C in (M, T)]\""
)
CONVERT_ADAPTER = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('{folder}/adapter_model.bin', weights_only=True), '{folder}/adapter_model.safetensors')\""
)


def inspect_model(name: str, causal: bool) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """A model's config (an adapter's: its base's) and tokenizer, without loading or fetching its weights.

    `UserError` for all that can be known without them: pickles in a local folder, no tokenizer, no causal model,
    an adapter without peft.
    """
    folder = model_folder(name, weights=False)
    auto = "AutoModelForCausalLM" if causal else "AutoModel"
    if (folder / "adapter_config.json").exists():
        _peft_for(name, folder)
        config, tokenizer = inspect_model(base_of(folder), causal)
        if (folder / "tokenizer_config.json").exists():
            tokenizer = _with_tokenizer(name, folder, config.get_text_config().vocab_size)
        return config, tokenizer
    config = read_config(name, folder)
    if causal:
        _refuse_other_than_causal(name, config)
    if folder == Path(name).expanduser():  # of a hub model, the files come with the weights
        _only_safetensors(name, folder, "model*.safetensors", auto)
    return config, _with_tokenizer(name, folder, config.get_text_config().vocab_size)


def load_causal(name: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, float32, on the CPU, and its tokenizer.

    SDPA attention where the architecture has it. A folder with `adapter_config.json` gives its base model with
    the LoRA layers in it (needs peft). `UserError` for pickles, missing files, and models that are not causal.
    """
    from transformers import AutoModelForCausalLM

    folder = model_folder(name)
    if (folder / "adapter_config.json").exists():
        return _load_adapted(name, folder)
    _refuse_other_than_causal(name, read_config(name, folder))
    model, missing = _load(AutoModelForCausalLM, name, folder)
    if missing:
        raise UserError(
            f"[proxy] model = {name!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}); "
            "nothing was scored. Download it again, or name a complete causal language model"
        )
    return model, _with_tokenizer(name, folder, _embedded(model))


def _refuse_other_than_causal(name: str, config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False) or not architecture_of(config).endswith(
        ("ForCausalLM", "LMHeadModel")
    ):
        raise UserError(
            f"[proxy] model = {name!r} is a {architecture_of(config) or config.model_type}, not a causal language "
            'model; use kind = "classifier", or name a model that ends in ForCausalLM'
        )


def load_classifier(
    name: str, n_classes: int | None = None, tokens: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """A sequence classifier (`tokens`: a token classifier) in eval mode, float32, its tokenizer, untrained names.

    With `n_classes` None the model's own trained head is needed, and `model.config.id2label` names its classes.
    Otherwise a missing head, or one of another size, is new: the third value names its parameters, which must be
    drawn (`curation.pretrained.draw`: what they hold here is not reproducible) and trained.
    `model.config.pad_token_id` is always set: causal classifiers find a row's last token by it.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    folder = model_folder(name)
    kind: Any = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    more = {} if n_classes is None else {"num_labels": n_classes, "ignore_mismatched_sizes": True}
    model, missing = _load(kind, name, folder, **more)
    if n_classes is None and missing:
        raise UserError(
            f"[proxy] model = {name!r} ({architecture_of(model.config) or model.config.model_type}) has no trained "
            f"{'token' if tokens else 'sequence'} classifier: {', '.join(missing[:3])} are not in its files. Map the "
            'label with fields = {label = "..."} so that a head is trained, or name a trained classifier'
        )
    body = [n for n in missing if n.startswith(model.base_model_prefix + ".") and "pooler" not in n]
    if body:
        raise UserError(
            f"[proxy] model = {name!r} lacks {len(body)} weights below its head ({', '.join(body[:3])}); "
            "download it again, or name a complete model"
        )
    tokenizer = _with_tokenizer(name, folder, _embedded(model))
    if model.config.pad_token_id is None:
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        model.config.pad_token_id = 0 if pad is None else pad
    return model, tokenizer, missing


def load_transformer(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sentence encoder's transformer without its pooler, for `curation.pretrained.EncoderWithHead`.

    `UserError` when its sentence-transformers folder pools otherwise than by the mean of the tokens.
    """
    from transformers import AutoModel

    folder = model_folder(name)
    path = folder / "1_Pooling" / "config.json"
    pooling = (
        {k: v for k, v in read_json(path).items() if k.startswith("pooling_mode") and v}
        if path.exists()
        else {}
    )
    if pooling not in ({}, {"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
        raise UserError(
            f"[proxy] encoder = {name!r} pools with {pooling}, and Gradus reads the mean of the tokens; "
            f"use {PACKAGED!r}, or another encoder with mean pooling"
        )
    model, missing = _load(AutoModel, name, folder)
    missing = [n for n in missing if "pooler" not in n]
    if missing:
        raise UserError(
            f"[proxy] encoder = {name!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}); "
            "download it again, or name a complete one"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    return model, _with_tokenizer(name, folder, _embedded(model))


def _load(kind: Any, name: str, folder: Path, **more: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of its parameters that its files do not hold."""
    from transformers.utils import logging

    _only_safetensors(name, folder, "model*.safetensors", kind.__name__)
    check_fits(name, model_size(str(folder)), available_bytes())
    logging.disable_progress_bar()
    settings = dict(
        use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of (missing weights) is checked and raised below
    try:
        try:
            model, found = kind.from_pretrained(folder, attn_implementation="sdpa", **settings, **more)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, found = kind.from_pretrained(folder, attn_implementation="eager", **settings, **more)
    except UNREADABLE as error:
        raise UserError(
            f"[proxy] model = {name!r} could not be loaded as {kind.__name__} "
            f"({type(error).__name__}: {_short(error)}); nothing was scored. "
            "Check the folder's config.json and safetensors, or name another model"
        ) from error
    finally:
        logging.set_verbosity(before)
    missing = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    return model.eval(), sorted(missing)


def _peft_for(name: str, folder: Path) -> Any:
    """The peft library, when this adapter is one that Gradus reads."""
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            f"[proxy] model = {name!r} is a LoRA adapter, and peft cannot be imported ({error}); "
            "type: pip install 'gradus[lora]'"
        ) from error
    _only_safetensors(name, folder, "adapter_model*.safetensors", "AutoModelForCausalLM")
    if (kind := read_json(folder / "adapter_config.json").get("peft_type")) != "LORA":
        raise UserError(
            f"[proxy] model = {name!r} is an adapter of type {kind}; Gradus reads LORA adapters only"
        )
    return peft


def _load_adapted(name: str, folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    peft = _peft_for(name, folder)
    base_name = base_of(folder)
    base, tokenizer = load_causal(base_name)
    if (folder / "tokenizer_config.json").exists():
        tokenizer = _with_tokenizer(name, folder, _embedded(base))
    try:
        return peft.PeftModel.from_pretrained(base, str(folder)).get_base_model().eval(), tokenizer
    except UNREADABLE as error:
        raise UserError(
            f"[proxy] the LoRA adapter {name!r} does not go on its base {base_name!r} "
            f"({type(error).__name__}: {_short(error)})"
        ) from error


def _only_safetensors(name: str, folder: Path, pattern: str, auto: str) -> None:
    if any(folder.glob(pattern)):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if not pickles:
        raise UserError(f"[proxy] model = {name!r}: {folder} has no {pattern}; nothing was loaded")
    convert = CONVERT_ADAPTER if pattern.startswith("adapter") else CONVERT
    values = {"auto": auto, "name": name, "folder": folder, "target": Path(name).name + "-safetensors"}
    raise UserError(
        f"[proxy] model = {name!r} has its weights as pickles ({', '.join(pickles[:3])}), which can run code when "
        "opened; nothing was loaded. If you trust it, convert it once and name the folder of the safetensors:\n"
        + convert.format(**values)
    )


def _embedded(model: nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _with_tokenizer(name: str, folder: Path, embedded: int) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(
            f"[proxy] model = {name!r} came without a tokenizer that can be read "
            f"({type(error).__name__}: {_short(error)}); put tokenizer.json and "
            "tokenizer_config.json beside its weights"
        ) from error
    if len(tokenizer) > embedded:
        raise UserError(
            f"[proxy] model = {name!r} embeds {embedded} tokens, but its tokenizer has {len(tokenizer)}; "
            "put the tokenizer that the model was trained with beside its weights"
        )
    return tokenizer


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
