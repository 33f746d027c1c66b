"""The rollout engine against transformers' own generate and plain forwards; rows that leave and join; sampling."""

import functools
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stages.blocks import HardwareSettings
from stages.models.attention import PACKED
from stages.models.precision import set_precision
from stages.responses.generation import generate_responses
from stages.responses.sampling import sample_tokens

VOCABULARY, STOP = 24, 1
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": STOP, "pad_token_id": 0, "initializer_range": 0.3}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}


def llama():
    return LlamaForCausalLM, LlamaConfig(**TOKENS, **SHAPE, num_key_value_heads=4)


def qwen2():
    return Qwen2ForCausalLM, Qwen2Config(**TOKENS, **SHAPE, num_key_value_heads=2)


def gpt2():
    return GPT2LMHeadModel, GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.5, attn_pdrop=0.5)


def mistral_with_a_window():
    return MistralForCausalLM, MistralConfig(**TOKENS, **SHAPE, num_key_value_heads=2, sliding_window=6)


def make_model(architecture=llama, attention="sdpa", stop_bias=0.0):
    """A random model; `stop_bias` raises the logit of the stop token."""
    torch.manual_seed(0)
    model_class, config = architecture()
    model = model_class._from_config(config, attn_implementation=attention).eval()
    head = torch.nn.Linear(config.hidden_size, VOCABULARY)
    head.weight = model.lm_head.weight
    head.bias.data.zero_()
    head.bias.data[STOP] = stop_bias
    model.lm_head = head
    return model


def make_prompts(count=20, longest=20):
    rng = random.Random(0)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def generate(model, prompts, **changes):
    arguments = {"max_new_tokens": 40, "stop_token_ids": {STOP}, "seed": 0, "max_rows": 64}
    return generate_responses(model, prompts, **arguments | changes)


def ids_of(responses):
    return [response.ids for response in responses]


def plain_logits(model, prompt, ids):
    """Logits from which each response token was drawn, by one forward without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()


def count_forwards(model, action):
    """Run `action`; return its result and the (rows, columns) of each of the model's forwards."""
    fed = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: fed.append(tuple(inputs[0].shape)))
    result = action()
    hook.remove()
    return result, fed


@functools.cache
def generate_by_transformers(architecture):
    """Greedy responses by transformers' own eager attention, the same for each of ours."""
    model = make_model(architecture, "eager", stop_bias=1.5)
    config = GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=STOP, pad_token_id=0)
    return [model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist() for prompt in make_prompts()]


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED])
@pytest.mark.parametrize("architecture", [llama, qwen2, gpt2, mistral_with_a_window], ids=lambda function: function.__name__)
def test_greedy_responses_equal_those_of_transformers_generate(architecture, attention):
    model, prompts = make_model(architecture, attention, stop_bias=1.5), make_prompts()
    expected = generate_by_transformers(architecture)
    assert len({len(ids) for ids in expected}) > 3
    assert ids_of(generate(model, prompts, greedy=True)) == expected
    assert ids_of(generate(model, prompts, greedy=True, max_rows=6)) == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED])
@pytest.mark.parametrize("architecture", [llama, qwen2, gpt2, mistral_with_a_window], ids=lambda function: function.__name__)
def test_logprobs_equal_those_of_a_plain_forward(architecture, attention):
    model, prompts = make_model(architecture, attention, stop_bias=1.0), make_prompts()
    for prompt, response in zip(prompts, generate(model, prompts, temperature=0.7, max_rows=5), strict=True):
        logprobs = (plain_logits(model, prompt, response.ids) / 0.7).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(response.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_response_depends_on_seed_and_prompt_and_not_on_the_rows_beside_it():
    model, prompts = make_model(stop_bias=1.0), make_prompts(40)
    together = ids_of(generate(model, prompts))
    assert ids_of(generate(model, prompts, max_rows=1)) == together
    assert ids_of(generate(model, prompts, max_rows=3)) == together
    assert ids_of(generate(model, prompts[:7], max_rows=3)) == together[:7]
    assert ids_of(generate(model, prompts, seed=1)) != together
    assert len(set(map(tuple, ids_of(generate(model, [prompts[0]] * 8))))) > 4


def test_each_sampled_token_is_the_inverse_of_the_cumulative_distribution_at_its_own_uniform_number():
    model, prompts = make_model(stop_bias=1.0), make_prompts(8)
    uniforms = torch.rand(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    for prompt, response, numbers in zip(prompts, generate(model, prompts, seed=5, max_rows=3), uniforms, strict=True):
        for logits, token, number in zip(plain_logits(model, prompt, response.ids), response.ids, numbers, strict=False):
            below = logits.double().softmax(-1)[:token].sum().item()
            assert below - 1e-5 <= number <= below + logits.double().softmax(-1)[token].item() + 1e-5


def test_finished_rows_leave():
    model, prompts = make_model(stop_bias=2.0), make_prompts(32)
    responses, fed = count_forwards(model, lambda: generate(model, prompts))
    lengths = [len(response.ids) for response in responses]
    decoded = sum(rows for rows, columns in fed if columns == 1)
    needed, without = sum(length - 1 for length in lengths), len(prompts) * (max(lengths) - 1)
    assert needed <= decoded < 1.15 * needed + 32 < 0.7 * without


def test_waiting_prompts_come_in_when_places_are_free():
    model, prompts = make_model(stop_bias=2.0), make_prompts(48)
    responses, fed = count_forwards(model, lambda: generate(model, prompts, max_rows=8))
    assert max(rows for rows, _ in fed) == 8
    steps = sum(columns == 1 and rows > 1 for rows, columns in fed)
    assert steps < 0.7 * sum(max(len(response.ids) for response in responses[start : start + 8]) for start in range(0, 48, 8))
    assert all(response.ids[-1] == STOP or len(response.ids) == 40 for response in responses)


def test_prompts_of_similar_length_are_prefilled_together():
    model, prompts = make_model(), make_prompts(64)
    _, fed = count_forwards(model, lambda: generate(model, prompts, max_new_tokens=1))
    assert sum(rows * columns for rows, columns in fed) < 0.65 * len(prompts) * max(map(len, prompts))


def test_a_response_ends_after_its_first_stop_token_and_nothing_is_forced_onto_an_unfinished_one():
    model, prompts = make_model(), make_prompts()
    free = ids_of(generate(model, prompts, stop_token_ids=set()))
    assert {len(ids) for ids in free} == {40}
    stops = {3, 4}
    for ids, stopped in zip(free, ids_of(generate(model, prompts, stop_token_ids=stops)), strict=True):
        end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
        assert stopped == ids[: end + 1]


def test_responses_may_fill_all_positions_of_the_model():
    model = make_model(gpt2)
    prompts = [[2] * 24, [3] * 23]
    assert {len(ids) for ids in ids_of(generate(model, prompts, stop_token_ids=set()))} == {40}


def test_tokens_come_as_often_as_the_models_own_distribution_says():
    """Not greedy, no top-k, no top-p."""
    model, count = make_model(), 4000
    responses = generate(model, [[5, 6, 7]] * count, max_new_tokens=1, temperature=1.3, max_rows=count)
    probabilities = (plain_logits(model, [5, 6, 7], [0])[0] / 1.3).softmax(-1)
    frequencies = torch.tensor(ids_of(responses))[:, 0].bincount(minlength=VOCABULARY) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() < 4.5 * error + 1e-3).all()


def test_a_token_of_probability_0_is_never_picked():
    nothing = -torch.inf
    logits = torch.tensor([[nothing, 0.0, nothing, 0.0, nothing]]).expand(4, -1)
    uniforms = torch.tensor([[0.0], [0.5 - 2**-50], [0.5 + 2**-50], [1 - 2**-53]], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, uniforms, 1.0)
    assert tokens[:, 0].tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(logprobs[:, 0], torch.tensor([0.5] * 4).log())
    rounded = torch.cat([torch.randn(500, 9, generator=torch.Generator().manual_seed(0)), torch.full((500, 1), nothing)], dim=1)
    tokens, logprobs = sample_tokens(rounded, torch.full((500, 1), 1 - 2**-53, dtype=torch.float64), 1.0)
    assert (tokens == 8).all() and logprobs.isfinite().all()


def test_a_models_generation_config_never_leaks_in():
    plain, loaded = make_model(stop_bias=1.0), make_model(stop_bias=1.0)
    own = loaded.generation_config
    own.repetition_penalty, own.top_k, own.min_p, own.suppress_tokens, own.no_repeat_ngram_size = 5.0, 1, 0.9, [3, 4, 5, 6], 1
    own.min_new_tokens, own.max_new_tokens, own.forced_eos_token_id = 7, 2, STOP
    assert generate(loaded, make_prompts()) == generate(plain, make_prompts())
    assert loaded.generation_config is own and own.repetition_penalty == 5.0


def test_the_global_generator_and_the_models_mode_are_left_as_found():
    model = make_model(gpt2)  # with dropout
    before = torch.get_rng_state()
    evaluated = generate(model, make_prompts())
    assert not model.training
    assert generate(model.train(), make_prompts()) == evaluated
    assert model.training and model.transformer.h[0].attn.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_wrapped_by_peft_answers_with_its_adapter():
    plain, prompts = make_model(stop_bias=1.0), make_prompts()
    wrapped = get_peft_model(make_model(stop_bias=1.0), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    responses = generate(wrapped, prompts, max_rows=6)
    assert ids_of(responses) != ids_of(generate(plain, prompts))
    for prompt, response in zip(prompts, responses, strict=True):
        expected = plain_logits(wrapped, prompt, response.ids).log_softmax(-1).gather(1, torch.tensor(response.ids)[:, None])[:, 0]
        # An adapter that was drawn makes larger logits: an Intel CPU without bfloat16 rounds one in thirty 1.06e-5 apart.
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED])
@pytest.mark.parametrize("architecture", [llama, gpt2], ids=lambda function: function.__name__)
def test_bfloat16_autocast_changes_logprobs_by_rounding_only(architecture, attention):
    model, prompts = make_model(architecture, attention, stop_bias=1.0), make_prompts()
    set_precision(model, HardwareSettings(precision="bfloat16"))
    gaps = []
    for prompt, response in zip(prompts, generate(model, prompts, max_rows=6), strict=True):
        expected = plain_logits(model, prompt, response.ids).log_softmax(-1).gather(1, torch.tensor(response.ids)[:, None])[:, 0]
        gaps += (torch.tensor(response.logprobs) - expected).abs().tolist()
    assert 0 < sum(gaps) / len(gaps) < 0.03


def test_logits_that_are_not_numbers_are_refused():
    model = make_model()
    model.lm_head.bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="NaN; needed: finite logits"):
        generate(model, [[5]])


def test_an_empty_prompt_is_refused_and_no_prompts_have_no_answers():
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        generate(make_model(), [[5], []])
    assert generate(make_model(), []) == []
