"""Small Hugging Face models in a folder, with a trained tokenizer; all numbers from named generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from curation.randomness import generator

WORDS = 400
CONTEXT = 64
TEXTS = (
    "the river runs past the old mill and under the stone bridge",
    "add 12 and 30, then take 7 away: the answer is 35",
    "def area(width, height): return width * height",
    "she asked where the train stops, and nobody could say",
    "Is iron heavier than water? Yes, about eight times.",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tiny_tokenizer(
    bos: bool = True, chat: bool = True, pad: bool = False, cls: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `TEXTS`; `bos`: texts open with it; `cls`: <s> text </s> as BERT's do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=cls)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [t for t in TEXTS for _ in range(3)],
        trainers.BpeTrainer(
            vocab_size=WORDS,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos or cls:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if cls else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>" if pad or cls else None
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """The same model with every matrix N(0, 1 / fan in), vectors near what they were; eval mode."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(
                generator(seed, "tiny", name).standard_normal(tuple(parameter.shape)).astype("float32")
            )
            if parameter.ndim < 2:
                parameter.add_(0.05 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return model.eval()


def _saved(folder: Path, kind: Any, seed: int, tokenizer: PreTrainedTokenizerFast, config: Any) -> Path:
    logging.disable_progress_bar()
    model = drawn(kind.from_config(config), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, seed: int = 1, kind: str = "llama", **more: Any) -> Path:
    """A Llama-shaped causal model (or `kind` = qwen2, qwen3, gemma2, granite, …): 2 layers, grouped queries."""
    shape = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(kind, **{**shape, **more})
    return _saved(folder, AutoModelForCausalLM, seed, tiny_tokenizer(bos=kind != "qwen2"), config)


def tiny_qwen2(folder: Path, seed: int = 2) -> Path:
    """A Qwen2-shaped causal model with a tied head; its tokenizer opens a text with nothing."""
    return tiny_llama(folder, seed, "qwen2", tie_word_embeddings=True)


def tiny_gpt2(folder: Path, seed: int = 3) -> Path:
    """A GPT-2-shaped causal model: Conv1D layers, learned positions, tied head; no BOS, no chat template."""
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=WORDS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=2,
        eos_token_id=2,
    )
    return _saved(folder, AutoModelForCausalLM, seed, tiny_tokenizer(bos=False, chat=False), config)


def tiny_bert_classifier(folder: Path, seed: int = 4, classes: int = 3, tokens: bool = False) -> Path:
    """A BERT-shaped sequence classifier (`tokens`: token classifier) with a head that counts as trained."""
    config = AutoConfig.for_model(
        "bert",
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        num_labels=classes,
        pad_token_id=0,
    )
    kind = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    return _saved(folder, kind, seed, tiny_tokenizer(chat=False, cls=True), config)


def tiny_lora_llama(folder: Path, seed: int = 5) -> Path:
    """A LoRA adapter (rank 4 on q and v) in `folder`, on a Llama in `folder`/base; needs peft."""
    from peft import LoraConfig, get_peft_model

    base = tiny_llama(folder / "base", seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = generator(seed, "lora", name).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(noise.astype("float32")) * 0.1)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(folder)
    return folder
