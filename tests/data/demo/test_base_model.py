import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.demo.base_model import CHAT_TEMPLATE, write_base_model
from data.demo.helpdesk import COLOURS, DAYS, ITEMS, NAMES
from data.load import load_records


@pytest.fixture(scope="module")
def loaded(base_model_dir):
    return AutoModelForCausalLM.from_pretrained(base_model_dir, output_loading_info=True)


def test_model_opens_without_a_missing_or_unexpected_key(loaded):
    model, info = loaded
    assert not any(info.values()), info
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 565_120
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_are_drawn_as_the_config_says(loaded):
    model, _ = loaded
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert abs(weight.std().item() - 0.08) < 0.002, name
            assert abs(weight.mean().item()) < 0.003, name
    assert not model.model.embed_tokens.weight[0].any()  # padding
    assert model.config.initializer_range == 0.08


def test_untrained_model_is_nearly_uniform_and_answers(loaded, tokenizer):
    model, _ = loaded
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "where is my order?"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**ids).logits[0, -1]
    assert torch.isfinite(logits).all()
    assert torch.softmax(logits, 0).max() < 0.2
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] <= ids["input_ids"].shape[1] + 3


def test_tokenizer_has_four_special_tokens_and_its_words(tokenizer, loaded):
    assert len(tokenizer) == loaded[0].config.vocab_size == 822
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 3, None)
    assert set(tokenizer.all_special_ids) == {0, 1, 2, 3}
    for word in (*NAMES, *COLOURS, *ITEMS, *DAYS):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1, word
    assert tokenizer("Hi")["input_ids"][0] != 1  # nothing is added before a text


def test_any_bytes_come_back(tokenizer):
    text = "".join(map(chr, range(1, 0x250))) + "日本🙂\u2028"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_longest_demo_records_fit_the_model(demo_dir, source, tokenizer, loaded):
    records = load_records(source(demo_dir / "comparisons.train.jsonl"), "comparisons")
    longest = sorted((text for record in records for text in record.completions), key=len)[-50:]
    prompts = sorted((record.prompt[0].content for record in records), key=len)[-50:]
    tokens = max(len(ids) for ids in tokenizer(longest)["input_ids"]) + max(len(ids) for ids in tokenizer(prompts)["input_ids"]) + 3
    assert tokens <= loaded[0].config.max_position_embeddings


def test_template_writes_every_role_and_nothing_after_the_end_token(tokenizer):
    roles = [("system", "s"), ("user", "u\n"), ("assistant", " a "), ("user", "v")]
    chat = [{"role": role, "content": content} for role, content in roles]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>s<|user|>u\n<|assistant|> a <|end|><|user|>v"
    assert tokenizer.apply_chat_template(chat[:3], tokenize=False).endswith("<|end|>")
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True) == "<|user|>s<|user|>u\n<|assistant|>"
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_saving_and_opening_again_keeps_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token, again.eos_token, again.chat_template) == ("<|pad|>", "<|end|>", CHAT_TEMPLATE)


def test_seed_changes_the_weights_and_not_the_tokenizer(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_base_model(tmp_path / name, ["Hi Mia!", "Hi Ben!"], seed)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "c/tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_keys_are_correlated_with_queries(loaded):
    for layer in loaded[0].model.layers:
        query, key, value = (getattr(layer.self_attn, f"{name}_proj").weight.flatten() for name in "qkv")
        assert abs(torch.corrcoef(torch.stack([query, key]))[0, 1].item() - 0.4) < 0.03
        assert abs(torch.corrcoef(torch.stack([query, value]))[0, 1].item()) < 0.03
