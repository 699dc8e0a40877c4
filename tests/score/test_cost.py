"""Operations of a batch against torch's own counter, and bytes against what is held."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from curation.decoder import Decoder
from curation.encoded import TokenRows
from curation.head import Head
from curation.score.cost import (
    activation_bytes,
    batch_sizes,
    buffer_bytes,
    head_bytes,
    padded,
    shape_of,
    work_of,
)
from curation.score.gradients import Sketch, engine

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
ROWS, TOKENS = 3, 7


def llama(device: str = "cpu", **more):
    config = AutoConfig.for_model("llama", **{**LLAMA, **more})
    with torch.device(device):
        return (
            AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
        )


def test_forward_and_backward_of_a_llama_are_what_torch_counts():
    model = llama()
    shape = shape_of(model, Sketch(parameters=("linear", "embeddings")), 3 * 32)
    work = work_of(shape, ROWS, TOKENS, ROWS * TOKENS)
    x = torch.randn(ROWS, TOKENS, 32, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = model(inputs_embeds=x, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    # The rest are the rotary angles, a small product of their own.
    assert forward.get_total_flops() == pytest.approx(work.forward + work.head / 2, rel=0.005)
    assert backward.get_total_flops() == pytest.approx(work.backward + work.head / 2, rel=0.005)


def test_backward_stops_at_the_first_layer_used():
    model = llama()
    whole = shape_of(model, Sketch(parameters=("linear", "embeddings")), 96)
    hidden = shape_of(model, Sketch(), 96)
    first = 2 * ROWS * TOKENS * 32 * (32 + 16 + 16)
    difference = work_of(whole, ROWS, TOKENS, 5).backward - work_of(hidden, ROWS, TOKENS, 5).backward
    assert difference == first


def test_product_is_what_torch_counts():
    shape = shape_of(llama(), Sketch(fold_width=24), 96)
    assert shape.folded == ((24, 24, 12),)  # qkv, o, gate and up, down: four a block
    a, e = torch.randn(ROWS, 12 * TOKENS, 24), torch.randn(ROWS, 12 * TOKENS, 24)
    with FlopCounterMode(display=False) as counted:
        torch.bmm(e.transpose(1, 2), a)
    assert counted.get_total_flops() == work_of(shape, ROWS, TOKENS, 5).product


def test_a_model_without_memory_has_the_same_shape():
    assert shape_of(llama("meta"), Sketch(), 96) == shape_of(llama(), Sketch(), 96)


def test_decoder_drops_the_prompt_in_its_last_block():
    model = Decoder(60, 24, 2, 16, 2)
    shape = shape_of(model, Sketch(), 2 * 16)
    few, all_answers = work_of(shape, 4, 10, 8), work_of(shape, 4, 10, 40)
    out_up_down = 16 * 16 + 16 * 64 + 64 * 16
    assert all_answers.forward - few.forward == 2 * 32 * out_up_down
    assert few.head == 4 * 8 * 16 * 60


def test_head_costs_its_two_layers():
    shape = shape_of(Head(12, 8, 5), Sketch(), 0, embedded=True)
    work = work_of(shape, 10, 1, 10)
    assert work.forward == 2 * 10 * (12 * 8 + 8 * 5)
    assert work.backward == 2 * 10 * 8 * 5
    assert work.head == 0 and padded(shape, np.array([9, 4])) == 1


def test_buffers_are_those_of_the_tape():
    model, rows = llama(), token_rows()
    shape = shape_of(model, Sketch(d=64), 96)
    with engine(model, rows, Sketch(d=64)) as tape:
        tape.begin(rows)
        pairs = sum(4 * s.numel() for p in tape.pairs.values() for s in p.storage)
        assert tape.product_bytes == shape.product_bytes and tape.width == shape.width
    t = padded(shape, rows.lengths())
    assert buffer_bytes(shape, len(rows), t) == pairs + len(rows) * shape.product_bytes
    assert head_bytes(shape, 5) == 4 * 5 * (50 + 2 * 32)


def test_activations_grow_with_tokens_and_do_not_count_weights():
    model, rows = llama(), token_rows()
    with engine(model, rows, Sketch(d=64)) as tape:
        tape.begin(rows)
        once = activation_bytes(model, rows)
        twice = TokenRows(*(torch.cat([x, x]) for x in (rows.ids, rows.target, rows.length)))
        tape.begin(twice)
        assert 1.8 < activation_bytes(model, twice) / once <= 2.0
    assert once > 3 * 4 * TOKENS * 32 * 4


def test_batches_are_the_engines():
    shape = shape_of(Decoder(60, 24, 2, 64, 2), Sketch(), 128)
    lengths = np.arange(1, 2001) % 20 + 4
    parts = list(batch_sizes(shape, lengths))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    assert max(len(p) * lengths[p].max() for p in parts) <= 4096


def token_rows() -> TokenRows:
    length = torch.tensor([TOKENS + 1, 5, 4])
    ids = torch.arange(3 * (TOKENS + 1)).view(3, -1) % 40 + 3
    at = torch.arange(TOKENS + 1)
    return TokenRows(ids, (at >= 2) & (at < length[:, None]), length)
