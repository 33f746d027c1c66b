"""Decoding on a GPU: by a narrow copy of the policy, over a cache that is allocated once; tried on a pretend GPU and in bfloat16 here."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.blocks import HardwareSettings
from stages.models.precision import autocast, freeze, set_precision
from stages.responses import rows as rows_module
from stages.responses.generation import generate_responses
from stages.responses.kv_cache import KVCache
from stages.responses.narrow import count_bytes, narrow
from stages.responses.rows import Rows
from tests.pretend_gpu import pretend_gpu
from tests.stages.family_models import make_config

BFLOAT16 = HardwareSettings(precision="bfloat16")
STOP = 1


class CountCasts(TorchDispatchMode):
    """Counts casts of float32 matrices to bfloat16, of a weight's size or more."""

    def __init__(self, least):
        super().__init__()
        self.least, self.casts = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16 and args[0].numel() >= self.least:
            self.casts += 1
        return result


def make_policy(*, tied=True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=40,
        max_position_embeddings=96,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        eos_token_id=STOP,
        pad_token_id=0,
        **sizes,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    set_precision(model, BFLOAT16)
    return model


def with_adapter(model):
    adapted = get_peft_model(freeze(model, BFLOAT16), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return adapted


def make_prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 40, (2 + index % 7,), generator=generator).tolist() for index in range(9)]


def answer(model, **changes):
    return generate_responses(model, make_prompts(), **{"max_new_tokens": 12, "stop_token_ids": {STOP}, "seed": 5, "max_rows": 4} | changes)


def ids_of(responses):
    return [response.ids for response in responses]


@pytest.mark.parametrize("tied", [True, False])
def test_a_narrow_copy_computes_autocasts_very_numbers_without_its_casts(tied):
    policy = make_policy(tied=tied)
    copy = narrow(policy)
    tokens = torch.arange(2, 12)[None]
    least = 16 * 32  # the smallest weight: keys of two heads
    found = {}
    for name, model in (("autocast", policy), ("narrow", copy)):
        with torch.no_grad(), autocast(policy.base_model, torch.device("cpu")), CountCasts(least) as counted:
            found[name] = model(input_ids=tokens, use_cache=False).logits, counted.casts
    assert torch.equal(found["autocast"][0], found["narrow"][0])
    assert found["autocast"][1] >= 15 and found["narrow"][1] == 0  # 2 layers of 7, and the head
    assert all(weight.dtype == torch.float32 for weight in policy.parameters())
    assert count_bytes(policy) == 2 * sum(layer.weight.numel() for layer in policy.modules() if isinstance(layer, torch.nn.Linear))


def test_experts_are_copied_too_and_no_more_is_cast_in_a_step():
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(make_config("mixtral")).eval()
    set_precision(policy, BFLOAT16)
    copy = narrow(policy)
    least = policy.model.layers[0].mlp.experts.down_proj.numel()
    found = {}
    for name, model in (("autocast", policy), ("narrow", copy)):
        with torch.no_grad(), autocast(policy.base_model, torch.device("cpu")), CountCasts(least) as counted:
            found[name] = model(input_ids=torch.arange(2, 12)[None], use_cache=False).logits, counted.casts
    assert torch.equal(found["autocast"][0], found["narrow"][0])
    assert found["autocast"][1] >= 4 and found["narrow"][1] == 0  # 2 layers of two tensors
    assert all(weight.dtype == torch.float32 for weight in policy.parameters())
    narrowed = {name: weight for name, weight in copy.named_parameters() if weight.dtype == torch.bfloat16}
    assert count_bytes(policy) == sum(weight.nbytes for weight in narrowed.values()) and any(".experts." in name for name in narrowed)
    assert count_bytes(freeze(policy, BFLOAT16)) == 0


def test_an_adapter_is_merged_into_the_narrow_copy_and_stays_on_the_policy():
    policy = with_adapter(make_policy())
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    copy = narrow(policy)
    assert not any("lora" in name for name, _ in copy.named_parameters())
    expected = policy.merge_and_unload()  # by peft itself, in bfloat16; the policy is changed by it
    linears = {name: layer for name, layer in copy.named_modules() if isinstance(layer, torch.nn.Linear)}
    for name, layer in expected.named_modules():
        if isinstance(layer, torch.nn.Linear):
            torch.testing.assert_close(linears[name].weight.float(), layer.weight.float(), atol=0.01, rtol=0.01)
    assert before["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"].dtype == torch.bfloat16


@pytest.fixture
def decoders(monkeypatch):
    """The models that rows were decoded by, the last one last (a family is tried on a miniature first)."""
    used = []
    plain_init = Rows.__init__

    def note(rows, model, *given, **more):
        used.append(model)
        plain_init(rows, model, *given, **more)

    monkeypatch.setattr(Rows, "__init__", note)
    return used


@pytest.mark.parametrize("adapted", [False, True])
def test_on_a_gpu_in_bfloat16_a_policy_decodes_by_the_copy_where_there_is_room(gpu, decoders, monkeypatch, adapted):
    policy = with_adapter(make_policy()) if adapted else make_policy()
    policy.to("cuda")
    by_the_copy = answer(policy)
    assert decoders[-1] is not policy and decoders[-1].lm_head.weight.dtype == torch.bfloat16
    monkeypatch.setattr("stages.responses.narrow.count_free_memory", lambda device: 1000)
    by_itself = answer(policy)
    assert decoders[-1] is policy
    if not adapted:  # merged, a weight is rounded once: a token here and there is another one
        assert ids_of(by_itself) == ids_of(by_the_copy)


def test_on_a_cpu_and_in_float32_a_policy_decodes_by_itself(decoders):
    policy = make_policy()
    answer(policy, max_new_tokens=2)
    assert decoders[-1] is policy
    with pretend_gpu():
        set_precision(policy, HardwareSettings(precision="float32"))
        answer(policy.to("cuda"), max_new_tokens=2)
    assert decoders[-1] is policy


def test_a_cache_that_never_grows_gives_the_responses_of_one_that_does(monkeypatch):
    policy = make_policy()
    expected = answer(policy, max_new_tokens=40)
    buffers = set()

    class OnceAllocated(KVCache):
        def __init__(self, max_rows, _longest_row):
            super().__init__(max_rows, 8 + 40)

        def open_column(self):
            super().open_column()
            buffers.add((self.buffers[0][0].data_ptr(), self.buffers[0][0].shape[2]))

    monkeypatch.setattr("stages.responses.kv_cache._SPARE", 8)  # so that rows are moved to the beginning often
    monkeypatch.setattr(rows_module, "KVCache", OnceAllocated)
    found = answer(policy, max_new_tokens=40)
    assert ids_of(found) == ids_of(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-2)
    assert len(buffers) == 1 and max(map(len, ids_of(found))) == 40


def test_on_a_gpu_the_cache_has_room_for_the_longest_row_from_the_start(gpu):
    rows = Rows(make_policy().to("cuda"), [[3, 4, 5], [6]], torch.rand(2, 20), frozenset({STOP}), None, 1.0, False, 2, None, True)
    assert rows.cache.num_columns >= 3 + 20


@pytest.mark.parametrize(("held", "rows"), [(100, 7), (5.5, 4), (2.5, 2), (0.1, 1)])
def test_on_a_gpu_as_many_rows_are_decoded_at_once_as_its_free_memory_holds(gpu, monkeypatch, held, rows):
    """A row's keys and values: 2 layers, 2 heads of 8 numbers, 160 columns, 4 bytes, twice: 40,960 bytes in float32; its logits 1,280."""
    policy = make_policy().to("cuda")
    set_precision(policy, HardwareSettings(precision="float32"))
    expected = answer(policy, max_rows=7)
    used = []
    plain_answer = Rows.answer
    monkeypatch.setattr(Rows, "answer", lambda self: used.append(self.max_rows) or plain_answer(self))
    monkeypatch.setattr("stages.responses.rows.count_free_memory", lambda device: int(held * 42_240 / 0.8))
    assert ids_of(answer(policy, max_rows=7)) == ids_of(expected) and used == [rows]
