"""Rows for Hugging Face models: exact masks, nothing doubled, everything cut is said; heads and probes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from curation.checkpoint import EncoderWithHead, LogitForm, check_causal, draw, logit_form
from curation.decoder import initialise
from curation.errors import UserError
from curation.head import Head
from curation.pretrained import encode_causal, encode_classes, encode_tags, token_lengths
from curation.tokens import padding_id, specials
from storage.pretrained import load_causal, load_classifier, load_transformer
from tests.hub_models import TEXTS, tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_qwen2, tiny_tokenizer

PROMPTS = ["the old mill", "", "add 12 and 30", "where"]
RESPONSES = ["under the stone bridge", "the river runs past the old mill", "", "the train stops"]


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_rows_are_prompt_response_end_with_an_exact_mask() -> None:
    tokenizer = tiny_tokenizer()
    rows, notes = encode_causal(tokenizer, PROMPTS, RESPONSES, 64)
    x, y = plain(tokenizer, PROMPTS[0] + "\n"), plain(tokenizer, RESPONSES[0])
    length = int(rows.length[0])
    assert rows.ids[0, :length].tolist() == [1, *x, *y, 2]
    assert rows.target[0].nonzero()[:, 0].tolist() == list(range(1 + len(x), length))
    assert rows.ids.shape == rows.target.shape and int(rows.length.max()) == rows.ids.shape[1]
    assert notes.full_tokens[0] == length
    assert notes.counts() == {"prompt_cut": 0, "response_cut": 0, "refused": 0, "empty": 1}


@pytest.mark.parametrize(("bos", "opening"), [(True, [1]), (False, [])])
def test_a_row_of_text_only_predicts_all_but_its_first_token(bos: bool, opening: list[int]) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    rows, _ = encode_causal(tokenizer, PROMPTS, RESPONSES, 64, chat_template=True)
    length = int(rows.length[1])
    assert rows.ids[1, :length].tolist() == [*opening, *plain(tokenizer, RESPONSES[1]), 2]
    assert rows.target[1].tolist() == [False] + [True] * (length - 1) + [False] * (rows.ids.shape[1] - length)


def test_a_row_without_a_response_is_reported_and_predicts_nothing() -> None:
    for bos, response in ((True, ""), (False, ""), (False, "t")):
        prompt = "where" if not response else ""  # one token with nothing before it: nothing can predict it
        rows, notes = encode_causal(tiny_tokenizer(bos=bos), [prompt, "a"], [response, "the train"], 64)
        assert notes.empty.tolist() == [True, False]
        assert not rows.target[0].any() and int(rows.length[0]) == 1 and rows.target[1].any()


def test_the_chat_template_doubles_neither_opening_nor_end() -> None:
    tokenizer = tiny_tokenizer()
    rows, _ = encode_causal(tokenizer, ["where"], ["the train stops"], 64, chat_template=True)
    ids = rows.ids[0].tolist()
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(1) == 1 and ids.count(2) == 1
    turns = [{"role": "user", "content": "where"}, {"role": "assistant", "content": "the train stops"}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(turns, tokenize=False).strip()
    assert tokenizer.decode(rows.ids[0][rows.target[0]]) == "the train stops</s>"
    bare, _ = encode_causal(tokenizer, ["<s>where"], ["the train stops</s>"], 64)
    assert bare.ids[0].tolist().count(1) == 1 and bare.ids[0].tolist().count(2) == 1


def test_the_end_of_a_turn_is_the_template_s() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "").replace(
        "{{ eos_token }}", "<|end|>"
    )
    rows, _ = encode_causal(tokenizer, ["where", ""], ["here", "here"], 64, chat_template=True)
    assert tokenizer.decode(rows.ids[0][rows.target[0]]) == "here<|end|>"
    assert rows.ids[1, int(rows.length[1]) - 1] == 2 and 1 not in rows.ids[0]


def test_a_broken_chat_template_says_what_to_set() -> None:
    for template in ("{{ raise_exception('no') }}", "{{ messages[0].content }}"):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="chat_template = false"):
            encode_causal(tokenizer, ["a"], ["b"], 64, chat_template=True)


@pytest.mark.parametrize("bos", [True, False])
def test_long_prompts_lose_their_beginning_and_long_responses_their_end(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    opening = [1] if bos else []
    long, short = " ".join(TEXTS), "the mill"
    rows, notes = encode_causal(tokenizer, [long, short, long], [short, long, long], 16)
    ids = [r[:n].tolist() for r, n in zip(rows.ids, rows.length, strict=True)]
    y, x = plain(tokenizer, short), plain(tokenizer, long + "\n")
    room = 16 - len(opening) - len(y) - 1
    assert ids[0] == [*opening, *x[-room:], *y, 2]
    assert ids[1][-1] != 2 and len(ids[1]) == len(ids[2]) == 16
    assert rows.target[1].sum() == rows.target[2].sum() == 15
    assert ids[2] == [*(opening or x[-1:]), *plain(tokenizer, long)[:15]]
    assert notes.prompt_cut.tolist() == [True, True, True]
    assert notes.response_cut.tolist() == [False, True, True]
    assert (notes.full_tokens > 16).all()


def test_long_rows_are_refused_by_choice() -> None:
    tokenizer, long = tiny_tokenizer(), " ".join(TEXTS)
    rows, notes = encode_causal(tokenizer, ["the mill", long], ["yes", "yes"], 16, too_long="refuse")
    assert notes.refused.tolist() == [False, True] and notes.counts()["refused"] == 1
    assert rows.length.tolist()[1] == 1 and not rows.target[1].any() and notes.full_tokens[1] > 16
    assert not notes.empty.any()


def test_lengths_for_budgets_are_those_of_the_rows() -> None:
    tokenizer = tiny_tokenizer()
    prompts, responses = [*PROMPTS, " ".join(TEXTS)], [*RESPONSES, "yes"]
    for chat in (False, True):
        rows, notes = encode_causal(tokenizer, prompts, responses, 24, chat_template=chat)
        counted = token_lengths(tokenizer, prompts, responses, 24, chat_template=chat)
        assert np.array_equal(counted, np.where(notes.empty | notes.refused, 0, rows.length.numpy()))
    assert len(token_lengths(tokenizer, [], [], 24)) == 0 == len(encode_causal(tokenizer, [], [], 24)[0])


def test_a_tokenizer_without_a_pad_token_stays_without() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id is None and padding_id(tokenizer) == 2
    rows, _ = encode_causal(tokenizer, PROMPTS, RESPONSES, 64)
    assert tokenizer.pad_token_id is None
    beyond = torch.arange(rows.ids.shape[1])[None] >= rows.length[:, None]
    assert (rows.ids[beyond] == 2).all() and not rows.target[beyond].any()


def test_batches_of_texts_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    whole, _ = encode_causal(tokenizer, PROMPTS, RESPONSES, 64, chat_template=True)
    for module in ("curation.tokens", "curation.pretrained"):
        monkeypatch.setattr(f"{module}.TEXTS_A_CALL", 3)
    parts, _ = encode_causal(tokenizer, PROMPTS, RESPONSES, 64, chat_template=True)
    assert torch.equal(whole.ids, parts.ids) and torch.equal(whole.target, parts.target)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gpt2])
def test_padded_rows_without_a_mask_equal_each_row_alone(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = load_causal(str(make(tmp_path)))
    rows, _ = encode_causal(tokenizer, PROMPTS, RESPONSES, 64, chat_template=True)
    with torch.no_grad():
        padded = model(input_ids=rows.ids, use_cache=False).logits
        for i, n in enumerate(rows.length.tolist()):
            alone = model(input_ids=rows.ids[i : i + 1, :n], use_cache=False).logits[0]
            torch.testing.assert_close(padded[i, :n], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [False, True])
def test_padded_classifier_rows_equal_each_row_alone(tokens: bool, tmp_path: Path) -> None:
    model, tokenizer, _ = load_classifier(str(tiny_bert_classifier(tmp_path, tokens=tokens)), tokens=tokens)
    rows, _ = encode_classes(tokenizer, list(TEXTS), [0, 1, 2, 1, 0], 64)
    mask = (torch.arange(rows.ids.shape[1])[None] < rows.length[:, None]).long()
    with torch.no_grad():
        padded = model(input_ids=rows.ids, attention_mask=mask).logits
        for i, n in enumerate(rows.length.tolist()):
            alone = model(input_ids=rows.ids[i : i + 1, :n], attention_mask=mask[i : i + 1, :n]).logits[0]
            torch.testing.assert_close(padded[i, :n] if tokens else padded[i], alone, rtol=1e-5, atol=1e-5)


def test_classifier_rows_keep_their_closing_token_when_cut() -> None:
    tokenizer = tiny_tokenizer(cls=True)
    assert specials(tokenizer) == ([1], [2])
    rows, notes = encode_classes(tokenizer, ["the mill", " ".join(TEXTS), ""], [4, 5, 6], 16)
    assert rows.ids[0, :4].tolist() == tokenizer("the mill").input_ids[:4]
    assert (
        rows.ids[1].tolist()[0] == 1 and rows.ids[1].tolist()[-1] == 2 and rows.length.tolist()[1:] == [16, 1]
    )
    assert rows.y.tolist() == [4, 5, -1]
    assert notes.response_cut.tolist() == [False, True, False] and notes.empty.tolist() == [
        False,
        False,
        True,
    ]
    refused, notes = encode_classes(tokenizer, ["the mill", " ".join(TEXTS)], [4, 5], 16, "refuse", pad=7)
    assert refused.y.tolist() == [4, -1] and notes.refused.tolist() == [False, True]
    assert (refused.ids[1] == 7).all()


def test_a_word_s_class_is_on_its_first_token() -> None:
    tokenizer = tiny_tokenizer(cls=True)
    words, tags = [["the", "zebra", "runs"], ["mill"], []], [[0, 1, 2], [2], []]
    rows, notes = encode_tags(tokenizer, words, tags, 64)
    assert rows.y.shape == rows.ids.shape and rows.y[0, 0] == -1 and rows.y[0, int(rows.length[0]) - 1] == -1
    assert rows.y[0][rows.y[0] >= 0].tolist() == [0, 1, 2]
    at = (rows.y[0] == 1).nonzero()[0].item()
    after = (rows.y[0] == 2).nonzero()[0].item()
    assert tokenizer.decode(rows.ids[0, at:after]).strip() == "zebra" and after - at > 1
    assert notes.empty.tolist() == [False, False, True] and (rows.y[2] == -1).all()
    short, notes = encode_tags(tokenizer, words[:1], tags[:1], 4)
    assert short.ids.shape == (1, 4) and notes.response_cut.all() and short.y[0].tolist()[:2] == [-1, 0]
    with pytest.raises(UserError, match="row 1, 1 words, 2 tags"):
        encode_tags(tokenizer, words, [[0, 1, 2], [2, 0], []], 64)


def test_the_packaged_encoder_with_a_head() -> None:
    encoder, tokenizer = load_transformer("packaged:all-MiniLM-L6-v2")
    model = EncoderWithHead(encoder, initialise(Head(384, 16, 3), 5), 10.0).eval()  # type: ignore[arg-type]
    rows, _ = encode_classes(tokenizer, list(TEXTS), [0] * len(TEXTS), 256)
    mask = (torch.arange(rows.ids.shape[1])[None] < rows.length[:, None]).long()
    with torch.no_grad():
        got = model.embed(rows.ids, mask)
        logits = model(rows.ids, mask).logits
        for i, n in enumerate(rows.length.tolist()):
            alone = model(rows.ids[i : i + 1, :n], torch.ones(1, n, dtype=torch.long)).logits[0]
            torch.testing.assert_close(logits[i], alone, rtol=1e-5, atol=1e-5)
    from storage.encoders import PACKAGED, embed

    np.testing.assert_allclose(got.numpy(), 10 * embed(PACKAGED, list(TEXTS)), atol=2e-5)
    assert logits.shape == (len(TEXTS), 3)
    again = initialise(Head(384, 16, 3), 5)
    assert all(torch.equal(a, b) for a, b in zip(model.head.parameters(), again.parameters(), strict=True))
    assert not any("pooler" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("kind", "more", "form"),
    [
        ("llama", {}, LogitForm(1.0, None)),
        ("gemma2", {"final_logit_softcapping": 2.0}, LogitForm(1.0, 2.0)),
        ("cohere", {"logit_scale": 0.0625}, LogitForm(0.0625, None)),
        ("granite", {"logits_scaling": 6.0}, LogitForm(0.166667, None)),
    ],
)
def test_how_logits_come_from_hidden_states(
    kind: str, more: dict[str, float], form: LogitForm, tmp_path: Path
) -> None:
    model, _ = load_causal(str(tiny_llama(tmp_path, kind=kind, **more)))
    check_causal(model)
    assert logit_form(model) == form
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        raw = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)  # type: ignore
        torch.testing.assert_close(form(raw), model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_a_layer_between_hidden_states_and_logits_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
    assert logit_form(model) == LogitForm(1.0, None)
    model.register_forward_hook(lambda module, given, out: out.__class__(logits=out.logits.relu()))
    with pytest.raises(UserError, match="something lies between"):
        logit_form(model)


def test_an_encoder_is_no_causal_model(tmp_path: Path) -> None:
    from transformers import AutoConfig

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "bert",
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).eval()
    with pytest.raises(UserError, match="looks at later tokens"):
        check_causal(model)


def test_drawn_heads_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    folder = str(tiny_bert_classifier(tmp_path, classes=3))
    (a, _, missing), (b, _, _) = load_classifier(folder, 5), load_classifier(folder, 5)
    assert missing == ["classifier.bias", "classifier.weight"]
    draw(a, missing, 7), draw(b, missing, 7)
    assert torch.equal(a.get_parameter("classifier.weight"), b.get_parameter("classifier.weight"))
    assert float(a.get_parameter("classifier.weight").detach().std()) == pytest.approx(0.02, rel=0.3)
    assert (a.get_parameter("classifier.bias") == 0).all()
