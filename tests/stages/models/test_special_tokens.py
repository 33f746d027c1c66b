"""A pad token without an embedding row gets one; rows without a token are not sampled, and count in no log-probability."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.models.adapters import apply_lora
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import pack
from stages.models.policy import load_policy
from stages.models.save import save_model
from stages.models.special_tokens import grow_embeddings
from stages.models.tokenizer import align_special_tokens, limit_tokens, settle_tokenizer
from stages.responses.generation import generate_responses
from tests.stages.models.lookalikes import LAYOUTS, write_base

HARDWARE = HardwareSettings(device="cpu", precision="float32")


@pytest.fixture
def gpt2(tmp_path):
    """A base without a spare token and without a spare row, its policy, and its settled tokenizer."""
    rows = write_base(tmp_path / "base", LAYOUTS["gpt2"], weights=True)
    tokenizer, _ = settle_tokenizer(str(tmp_path / "base"), TokenSettings())
    return rows, load_policy(str(tmp_path / "base"), HARDWARE), tokenizer


def test_a_pad_token_without_a_row_gets_the_mean_of_the_others(gpt2):
    rows, model, tokenizer = gpt2
    tables = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    assert grow_embeddings(model, tokenizer) and not grow_embeddings(model, tokenizer)
    grown = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert [len(table) for table in grown] == [rows + 1] * 2 and model.config.vocab_size == rows + 1
    for before, after in zip(tables, grown, strict=True):
        assert torch.equal(after[:rows], before) and torch.allclose(after[rows], before.mean(0))


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_has_grown_opens_without_our_code_and_answers_a_padded_batch(gpt2, tmp_path, lora):
    rows, model, tokenizer = gpt2
    grow_embeddings(model, tokenizer)
    align_special_tokens(model, tokenizer)
    model = apply_lora(model, LoRASettings(rank=2), "CAUSAL_LM", HARDWARE) if lora else model
    save_model(model, tokenizer, tmp_path / "output", merge=lora)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / ("merged" if lora else "model"), dtype=torch.float32)
    assert opened.config.vocab_size == rows + 1
    assert (opened.generation_config.eos_token_id, opened.generation_config.pad_token_id) == (tokenizer.eos_token_id, rows)
    plain = AutoTokenizer.from_pretrained(tmp_path / "output" / "model", padding_side="left")
    batch = plain(["Say", "Where is my order?"], return_tensors="pt", padding=True)
    assert (batch["input_ids"] == rows).any()
    assert opened.generate(**batch, max_new_tokens=2).shape[0] == 2
    if lora:  # the adapter itself fits its base on the disk, and says by what it ends
        adapter = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "model")
        assert adapter.config.vocab_size == rows
        assert (tmp_path / "output" / "model" / "generation_config.json").exists()


@pytest.fixture
def padded(tiny):
    """A policy of 16 rows, of which the last 5 stand for nothing and are by far the likeliest."""
    policy = tiny.policy()
    whole = policy.lm_head.weight.detach().clone()
    policy.lm_head.weight = torch.nn.Parameter(whole)
    policy.lm_head.weight.data[11:] *= 5.0
    return policy


def test_rows_without_a_token_are_never_sampled(padded):
    prompts = [[5, 6, 7], [8], [9, 10, 3]] * 10
    arguments = {"max_new_tokens": 12, "stop_token_ids": {1}, "seed": 0, "max_rows": 8}
    free = [token for response in generate_responses(padded, prompts, **arguments) for token in response.ids]
    assert max(free) > 10
    limit_tokens(padded, 11)
    for greedy in (False, True):
        assert max(token for response in generate_responses(padded, prompts, greedy=greedy, **arguments) for token in response.ids) <= 10


def test_logprobs_are_those_of_the_tokens_alone_in_the_rollout_and_in_the_update(padded):
    limit_tokens(padded, 11)
    prompt = [5, 6, 7]
    (response,) = generate_responses(padded, [prompt], max_new_tokens=8, stop_token_ids=set(), seed=3, max_rows=1)
    ids = prompt + response.ids
    row = pack([ids], [-1], torch.device("cpu"))
    logprobs_K, entropies_K = compute_token_logprobs(padded, row, torch.arange(2, len(ids) - 1), 1.0, True)
    with torch.no_grad():
        logits_KV = padded(torch.tensor([ids])).logits[0, 2:-1, :11]
    expected = [logits_KV[i, token] - torch.logsumexp(logits_KV[i], 0) for i, token in enumerate(response.ids)]
    assert logprobs_K.tolist() == pytest.approx([float(each) for each in expected], abs=1e-5)
    assert response.logprobs == pytest.approx(logprobs_K.tolist(), abs=1e-5)
    assert torch.allclose(entropies_K, torch.distributions.Categorical(logits=logits_KV).entropy(), atol=1e-5)
    logprobs_K.sum().backward()
    assert not padded.lm_head.weight.grad[11:].any() and padded.lm_head.weight.grad[:11].any()


def test_a_model_with_a_token_for_each_row_computes_as_before(tiny):
    policy = tiny.policy()
    limit_tokens(policy, 16)
    assert not hasattr(policy, "num_tokens")
