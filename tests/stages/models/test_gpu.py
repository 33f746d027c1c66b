"""What models do on a GPU, tried on a pretend one (tests/pretend_gpu.py): attention over spans, loading, adapters, chunks of logits."""

import sys
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from stages.blocks import HardwareSettings, LoRASettings
from stages.internals import skip_input_casts
from stages.models import attention
from stages.models.adapters import apply_lora, find_model
from stages.models.attention import attend
from stages.models.forward import compute_hidden_states
from stages.models.kernels import as_on_a_gpu
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import list_documents, make_spans, pack, pack_rankings
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.models.reward_model import init_reward_model
from tests.pretend_gpu import attend_slowly, pretend_gpu

HARDWARE = HardwareSettings(precision="float32")
BFLOAT16 = HardwareSettings(precision="bfloat16")
# A prompt with three answers, one that nothing continues, and a prompt with one answer.
DOCUMENTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15], [3, 4, 9, 8], [7, 7], [9, 8, 7, 6]]
PARENTS = [-1, 0, 0, 0, -1, -1, 5]


def test_spans_of_the_worked_example():
    spans = make_spans(torch.tensor([[0, 2], [2, 3], [-1, 0]]), 6)
    assert spans.keys_M.tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    assert (spans.query_ends.tolist(), spans.key_ends.tolist()) == ([0, 2, 5, 6], [0, 2, 7, 8])
    assert (spans.longest_query, spans.longest_key) == (3, 5)
    assert spans.query_ends.dtype == spans.key_ends.dtype == torch.int32
    plain = make_spans(torch.tensor([[0, 2], [2, 3], [-1, -1]]), 5)  # nothing is gathered, nothing fills the row up
    assert plain.keys_M is None and plain.query_ends.tolist() == plain.key_ends.tolist() == [0, 2, 5]


@pytest.mark.parametrize("parents", [PARENTS, None], ids=["answers", "documents"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_over_spans_equals_that_over_groups_and_so_do_its_gradients(monkeypatch, parents, key_heads):
    row = pack(DOCUMENTS, parents)
    num_real, num_tokens = sum(map(len, DOCUMENTS)), len(row.ids_N)
    assert num_tokens > num_real  # the row is filled up
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, num_tokens, 8) for heads in (4, key_heads, key_heads)]
    given = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    weights = torch.randn(num_real, 4, 8, generator=generator)
    results = {}
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=attend_slowly))
    for way in ("groups", "spans"):
        monkeypatch.setattr(attention, "_takes_spans", lambda _query, way=way: way == "spans")
        output, _ = attend(None, *given, None, scaling=0.3, packed_row=row)
        assert output.shape == (1, num_tokens, 4, 8)
        real = output[0, :num_real]
        results[way] = [real, *torch.autograd.grad((real * weights).sum(), given)]
    for groups, spans in zip(results["groups"], results["spans"], strict=True):
        torch.testing.assert_close(spans, groups, atol=1e-5, rtol=1e-5)


def test_spans_are_for_gpus_in_bfloat16_alone(monkeypatch, tiny):
    asked = []
    plain = attention._attend_spans
    monkeypatch.setattr(attention, "_attend_spans", lambda *given: (asked.append(1), plain(*given))[1])
    found = {}
    for place in ("cpu", "gpu"):
        for bfloat16 in (False, True):
            model = tiny.policy()
            if bfloat16:
                tiny.compute_in_bfloat16(model)
            asked.clear()
            if place == "cpu":
                found[place, bfloat16] = states(model)
                assert not asked
            else:
                with pretend_gpu():
                    found[place, bfloat16] = states(model.to("cuda")).cpu()
                assert len(asked) == (2 if bfloat16 else 0)  # one for each layer
    torch.testing.assert_close(found["gpu", False], found["cpu", False], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["gpu", True], found["cpu", False], atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("capability", "hip"), [((7, 5), None), ((9, 4), "7.2")], ids=["a T4", "an MI300"])
def test_a_gpu_without_the_kernel_attends_over_groups(monkeypatch, tiny, capability, hip):
    """ROCm's says `mha_varlen_fwd: seqused_k must be nullopt`; its GPUs have versions above 8.0."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(attention, "_attend_spans", None)
    expected = states(tiny.policy())
    with pretend_gpu(capability=capability):
        model = tiny.policy()
        tiny.compute_in_bfloat16(model)
        torch.testing.assert_close(states(model.to("cuda")).cpu(), expected, atol=0.1, rtol=0.1)


@torch.no_grad()
def states(model):
    row = pack(DOCUMENTS, PARENTS, device=next(model.parameters()).device)
    with autocast(model.base_model, row.ids_N.device):
        return compute_hidden_states(model.base_model, row)[: sum(map(len, DOCUMENTS))].float()


def test_models_are_loaded_straight_onto_the_gpu_and_narrowed_there(gpu, base_model_dir):
    policy = load_policy(str(base_model_dir), BFLOAT16)
    reward_model = init_reward_model(str(base_model_dir), BFLOAT16, seed=1)
    assert len(gpu.loaded_straight) == 2
    for model in (policy, reward_model):
        assert all(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    on_cpu = load_policy(str(base_model_dir), BFLOAT16, on_cpu=True)  # as what will be held in 4 bits is
    assert len(gpu.loaded_straight) == 2 and not any(weight.is_cuda for weight in on_cpu.parameters())
    in_the_cpus_memory = load_policy(str(base_model_dir), HardwareSettings(device="cpu", precision="float32"))
    assert len(gpu.loaded_straight) == 2 and not any(weight.is_cuda for weight in in_the_cpus_memory.parameters())


def test_on_a_gpu_adapters_take_bfloat16_as_it_is_and_say_the_same(base_model_dir):
    tokens = torch.arange(4, 24)[None]
    logits = {}
    for place in ("cpu", "gpu"):
        model = apply_lora(load_policy(str(base_model_dir), BFLOAT16, on_cpu=True), LoRASettings(rank=4), "CAUSAL_LM", BFLOAT16)
        torch.manual_seed(2)
        for name, weight in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, std=0.05)
        layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
        assert layers and all(layer.cast_input_dtype_enabled for layer in layers)
        if place == "gpu":
            skip_input_casts(model)
        seen = []
        hook = layers[0].lora_A["default"].register_forward_hook(lambda _layer, given, _out, seen=seen: seen.append(given[0].dtype))
        with torch.no_grad(), autocast(find_model(model).base_model, torch.device("cpu")):
            logits[place] = model(input_ids=tokens, use_cache=False).logits
        hook.remove()
        assert seen == [torch.float32 if place == "cpu" else torch.bfloat16]
    assert torch.equal(logits["gpu"], logits["cpu"])
    with pretend_gpu():
        model = apply_lora(load_policy(str(base_model_dir), BFLOAT16), LoRASettings(rank=4), "CAUSAL_LM", BFLOAT16)
        assert not any(layer.cast_input_dtype_enabled for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def test_a_gpu_computes_more_logits_at_once(monkeypatch, tiny):
    monkeypatch.setattr("stages.models.logprobs._MAX_LOGITS", 16 * 4)  # of a vocabulary of 16: 4 tokens
    monkeypatch.setattr("stages.models.logprobs._MAX_LOGITS_ON_GPU", 16 * 64)
    model, calls, found = tiny.policy(), [], {}
    model.lm_head.register_forward_hook(lambda _head, given, _out: calls.append(len(given[0])))
    for place in ("cpu", "gpu"):
        calls.clear()
        if place == "cpu":
            found[place], _ = compute_token_logprobs(model, pack(DOCUMENTS), torch.arange(8), 1.0)
            assert max(calls) == 4
        else:
            with pretend_gpu():
                row = pack(DOCUMENTS, device=torch.device("cuda"))
                logprobs, _ = compute_token_logprobs(model.to("cuda"), row, torch.arange(8, device="cuda"), 1.0)
                found[place] = logprobs.cpu()
            assert len(calls) == 1
    calls.clear()
    with as_on_a_gpu():  # a plan for GPUs is traced where there is none
        compute_token_logprobs(model.to("cpu"), pack(DOCUMENTS), torch.arange(8), 1.0)
    assert len(calls) == 1
    torch.testing.assert_close(found["gpu"], found["cpu"], atol=1e-5, rtol=1e-5)


def test_ranked_answers_are_scored_in_rows_of_so_many_tokens_however_many_answers_a_prompt_has():
    rankings = [([4] * 300, [[5] * length for length in (900, 700, 800, 600)]) for _ in range(20)]
    rankings.insert(3, ([4] * 2000, [[5] * 2000] * 9))  # longer than a row: alone
    rows = list(pack_rankings(rankings, torch.device("cpu")))
    sizes = [int(row.lengths_D.sum()) for row, _ in rows]
    assert sum(sizes) == sum(len(document) for document in list_documents(rankings)[0]) and rows[-1][1] == 21
    assert sorted(sizes)[-1] == 20_000 and sorted(sizes)[-2] <= 16_384
