"""Decoding by captured steps, on a pretend GPU: the responses of the CPU, whatever rows leave, join and move."""

import dataclasses
import gc
import random
import re
import weakref

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.blocks import HardwareSettings
from stages.models import attention
from stages.models.attention import PACKED
from stages.models.precision import set_precision
from stages.responses import generation, graphs
from stages.responses.generation import can_graph, generate_responses, note_decoding
from stages.responses.graphs import find_obstacle, round_columns, round_rows
from tests.pretend_gpu import pretend_gpu
from tests.pretend_graph import PretendGraph

VOCABULARY, STOP = 24, 1
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": STOP, "pad_token_id": 0, "initializer_range": 0.3}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 160}
GROUPED = {**TOKENS, **SHAPE, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TOKENS, **SHAPE, num_key_value_heads=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TOKENS, **SHAPE, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**GROUPED)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=160)),
}


def make_model(family="llama", attention="sdpa", precision="float32"):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation(attention)
    set_precision(model, HardwareSettings(precision=precision))
    return model


def make_prompts(count=20, longest=20):
    rng = random.Random(0)
    return [[rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def answer(model, prompts, **changes):
    arguments = {"max_new_tokens": 24, "stop_token_ids": {STOP, 2}, "seed": 0, "max_rows": 8}
    return generate_responses(model, prompts, **arguments | changes)


def answer_both(model, prompts, **changes):
    """The CPU's responses, those of the pretend GPU, and how many graphs of it were captured and replayed by them."""
    expected = answer(model, prompts, **changes)
    with pretend_gpu():
        model.to("cuda")
        can_graph(model)  # tries a miniature, whose graphs do not count
        before = PretendGraph.num_captures, PretendGraph.num_replays
        found = answer(model, prompts, **changes)
        counts = PretendGraph.num_captures - before[0], PretendGraph.num_replays - before[1]
    return expected, found, counts


def assert_same(found, expected, tolerance=1e-5):
    assert [response.ids for response in found] == [response.ids for response in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=tolerance)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", PACKED])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_give_the_responses_of_steps_that_are_launched(family, attention, greedy):
    expected, found, (captures, replays) = answer_both(make_model(family, attention), make_prompts(), greedy=greedy)
    assert_same(found, expected)
    assert captures and replays >= 16
    assert greedy or len({len(response.ids) for response in expected}) > 5


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_they_do_so_where_each_row_attends_to_its_own_columns_alone(monkeypatch, family):
    """As bfloat16 does on a GPU; in float32, so that nothing is rounded."""
    attended = []
    attend_cached = attention._attend_cached
    monkeypatch.setattr(attention, "_takes_spans", lambda query: query.is_cuda)
    monkeypatch.setattr(attention, "_attend_cached", lambda *given: (attended.append(given[0].shape), attend_cached(*given))[1])
    monkeypatch.setattr("stages.responses.kv_cache._SPARE", 8)  # columns move to the beginning
    monkeypatch.setattr(graphs, "_COLUMNS", 16)
    generation._try_graph.cache_clear()
    expected, found, (captures, replays) = answer_both(make_model(family, PACKED), make_prompts(40), max_new_tokens=40)
    generation._try_graph.cache_clear()
    assert_same(found, expected)
    assert attended and captures >= 2 and replays > captures


@pytest.mark.parametrize("max_rows", [3, 20])
def test_they_do_so_in_few_and_many_rows_and_windows(monkeypatch, max_rows):
    monkeypatch.setattr(graphs, "_COLUMNS", 16)
    monkeypatch.setattr(graphs, "_FEWEST_ROWS", 1)
    expected, found, (captures, replays) = answer_both(make_model("qwen2"), make_prompts(30), max_new_tokens=100, max_rows=max_rows)
    assert_same(found, expected)
    assert captures >= 4 and replays > captures


def test_they_do_so_when_columns_move_to_the_beginning(monkeypatch):
    monkeypatch.setattr("stages.responses.kv_cache._SPARE", 8)
    moves = []
    move = graphs.KVCache._reallocate
    monkeypatch.setattr(graphs.KVCache, "_reallocate", lambda cache, gap: moves.append(cache.num_columns) or move(cache, gap))
    expected, found, _ = answer_both(make_model("qwen2"), make_prompts(40), max_rows=4, max_new_tokens=24)
    assert_same(found, expected)
    assert sum(columns is not None for columns in moves) > 3


def test_in_bfloat16_they_are_those_of_the_narrow_copy_without_a_graph(gpu, monkeypatch):
    model = make_model("qwen2", precision="bfloat16").to("cuda")
    before = PretendGraph.num_replays
    found = answer(model, make_prompts())
    assert PretendGraph.num_replays > before + 40
    monkeypatch.setattr("stages.responses.generation.can_graph", lambda model: False)
    expected = answer(model, make_prompts())
    same = [ours.ids == theirs.ids for ours, theirs in zip(found, expected, strict=True)]
    assert sum(same) >= 0.8 * len(same)  # the rounding of another window picks another token here and there
    for ours, theirs in zip(found, expected, strict=True):
        if ours.ids == theirs.ids:
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=0.1)


def test_layers_that_are_compiled_for_training_are_captured_as_they_were(gpu):
    def refuse(graph, inputs):
        raise AssertionError("compiled in decoding")

    expected = answer(make_model("qwen2"), make_prompts())
    model = make_model("qwen2").to("cuda")
    for layer in model.model.layers:
        layer.compile(backend=refuse)
    before = PretendGraph.num_replays
    assert_same(answer(model, make_prompts()), expected)
    assert PretendGraph.num_replays > before + 40


def test_what_waits_for_the_gpu_is_decoded_without_a_graph_and_told_once(gpu, monkeypatch, capsys):
    graphs.tell_once.cache_clear()
    expected = answer(make_model(), make_prompts())
    model = make_model().to("cuda")
    assert can_graph(model)
    run = type(model.model.layers[0]).forward

    def wait(layer, states, *given, **more):
        assert states.max().item() < 1e9
        return run(layer, states, *given, **more)

    monkeypatch.setattr(type(model.model.layers[0]), "forward", wait)
    before = PretendGraph.num_captures
    for _ in range(2):
        assert_same(answer(model, make_prompts()), expected)
    assert PretendGraph.num_captures == before
    assert re.findall("without a CUDA graph.*", capsys.readouterr().err) == [
        "without a CUDA graph, slower: RuntimeError: called a synchronizing CUDA operation"
    ]


def test_a_number_that_a_capture_would_freeze_keeps_a_family_from_it(gpu, monkeypatch):
    """Positions that the host counts would stand still."""
    generation._try_graph.cache_clear()
    monkeypatch.setattr("stages.responses.rows.takes_positions", lambda model_class: False)
    model = make_model().to("cuda")
    assert not can_graph(model)
    generation._try_graph.cache_clear()


def test_a_miniature_is_tried_in_the_precision_of_the_rollout(gpu, monkeypatch):
    tried_in_bfloat16 = []
    decode = generation._decode_by_graph
    monkeypatch.setattr(
        generation, "_decode_by_graph", lambda *given: (tried_in_bfloat16.append(torch.is_autocast_enabled("cuda")), decode(*given))[1]
    )
    for precision in ("bfloat16", "float32", "bfloat16"):
        generation._try_graph.cache_clear()
        answer(make_model(precision=precision).to("cuda"), make_prompts(2))
    assert tried_in_bfloat16 == [True, False, True]


@pytest.mark.parametrize("moved", [-1, 1])
def test_a_row_that_sees_a_column_too_many_or_too_few_keeps_a_family_from_it_in_bfloat16(gpu, monkeypatch, moved):
    generation._try_graph.cache_clear()
    model = make_model(attention=PACKED, precision="bfloat16").to("cuda")
    assert can_graph(model)
    generation._try_graph.cache_clear()
    list_seen = graphs.StepGraphs._list_seen

    def move(*given):
        seen = list_seen(*given)
        return dataclasses.replace(seen, key_starts=seen.key_starts + moved)

    monkeypatch.setattr(graphs.StepGraphs, "_list_seen", move)
    assert not can_graph(model)
    generation._try_graph.cache_clear()


def test_a_policy_that_is_decoded_without_a_graph_is_told(gpu):
    notes = []
    context = type("Context", (), {"note": lambda self, message: notes.append(message)})()
    model = make_model().to("cuda")
    note_decoding(context, model)
    assert not notes
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
    assert find_obstacle(model)
    note_decoding(context, model)
    assert notes == ["responses are decoded without a CUDA graph, slower: weights in 4 bits have kernels of their own"]


def test_shapes_are_few():
    assert [round_rows(count, 64) for count in (64, 33, 32, 17, 9, 8, 1)] == [64, 64, 32, 32, 16, 8, 8]
    assert [round_rows(count, 5) for count in (5, 1)] == [5, 5]
    assert all(count <= round_rows(count, 37) <= 37 for count in range(1, 38))
    assert [round_columns(count, 4000) for count in (1, 256, 257, 700, 1100, 2500, 3900)] == [256, 256, 512, 768, 1536, 3072, 4000]
    assert all(count <= round_columns(count, 9999) <= max(512, 1.5 * count) for count in range(1, 9999))


def test_keys_and_values_are_freed_when_the_responses_are_there(gpu, monkeypatch):
    caches = []
    init = graphs.StepGraphs.__init__
    monkeypatch.setattr(
        graphs.StepGraphs, "__init__", lambda self, cache, *given: caches.append(weakref.ref(cache)) or init(self, cache, *given)
    )
    gc.collect()
    gc.disable()  # which would free them some time or other
    try:
        answer(make_model().to("cuda"), make_prompts(4))
        assert caches and all(cache() is None for cache in caches)
    finally:
        gc.enable()
