"""Packed rows: each document comes out as it does alone, gradients included, and none sees another."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stages.models.forward import compute_hidden_states, is_packed
from stages.models.packing import list_documents, pack, split_by_tokens
from stages.models.probe import enable_packing

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


def make_llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**SIZES | {"vocab_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64} | changes)
    ).eval()


def make_qwen():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, vocab_size=32, num_key_value_heads=1, max_position_embeddings=64)).eval()


def make_gpt2():
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **no_dropout)
    return GPT2LMHeadModel(config).eval()


DOCUMENTS = [
    [3, 4, 5, 6, 7],
    [8, 9],
    [10, 11, 12, 13],
    [14],
    [15, 16, 17],
    [18, 19, 20],
    [2, 1],
    [21],
    [22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 3, 4],
]
PARENTS = [-1, 0, 0, -1, 0, 3, 3, -1, 7]


def texts(documents, parents):
    """Each document as a text of its own: what it continues, then itself."""
    return [(documents[parent] if parent >= 0 else []) + document for document, parent in zip(documents, parents, strict=True)]


def states_alone(model, documents, parents):
    """The plain way: one unpadded forward per document; the last states of its own tokens."""
    found = []
    for document, text in zip(documents, texts(documents, parents), strict=True):
        found.append(model.base_model(input_ids=torch.tensor([text])).last_hidden_state[0, -len(document) :])
    return torch.cat(found)


def switch(make, *, checkpointed):
    """A model in training with packed rows, that skips what is not read."""
    model = make().train()
    assert enable_packing(model)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def check_checkpointing(make, compute):
    """Activation checkpointing changes no gradient of what `compute` makes of a model."""
    gradients = []
    for checkpointed in (False, True):
        model = switch(make, checkpointed=checkpointed)
        states = compute(model)
        (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        gradients.append([parameter.grad for parameter in model.base_model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("make", [make_llama, make_qwen, make_gpt2])
@pytest.mark.parametrize("parents", [PARENTS, None])
def test_each_token_comes_out_as_it_does_alone_gradients_included(make, parents):
    model, packed_model = make(), make()
    assert enable_packing(packed_model) and is_packed(packed_model.base_model)
    row = pack(DOCUMENTS, parents)
    found = compute_hidden_states(packed_model.base_model, row)
    expected = states_alone(model, DOCUMENTS, parents or [-1] * len(DOCUMENTS))
    found = found[: len(expected)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, parameter), reference in zip(packed_model.named_parameters(), model.parameters(), strict=True):
        if reference.grad is not None:
            torch.testing.assert_close(parameter.grad, reference.grad, atol=2e-5, rtol=1e-4, msg=name)


def test_a_row_holds_every_token_once():
    row = pack(DOCUMENTS, PARENTS)
    tokens = [token for document in DOCUMENTS for token in document]
    assert row.ids_N[: len(tokens)].tolist() == tokens
    assert len(row.ids_N) == len(row.positions_N) == 64  # filled up
    assert row.ids_N[row.lasts_D].tolist() == [document[-1] for document in DOCUMENTS]
    assert row.positions_N[: len(tokens)].tolist() == [
        position
        for document, text in zip(DOCUMENTS, texts(DOCUMENTS, PARENTS), strict=True)
        for position in range(len(text) - len(document), len(text))
    ]


def test_a_document_does_not_see_its_neighbours():
    model = make_llama()
    assert enable_packing(model)
    changed = [[(token + 7) % 31 + 1 for token in document] if index in (2, 3, 8) else document for index, document in enumerate(DOCUMENTS)]
    with torch.no_grad():
        before, after = (
            compute_hidden_states(model.base_model, pack(documents, PARENTS))[: sum(map(len, DOCUMENTS))]
            for documents in (DOCUMENTS, changed)
        )
    owners = [index for index, document in enumerate(DOCUMENTS) for _ in document]
    untouched = torch.tensor([index not in (2, 3, 5, 6, 8) for index in owners])  # 5 and 6 continue 3
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.isclose(before[~untouched], after[~untouched]).all(dim=1).any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_is_not_switched_gives_the_same_from_a_padded_batch(attention):
    model = make_llama()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        found = compute_hidden_states(model.base_model, pack(DOCUMENTS, PARENTS))
        expected = states_alone(model, DOCUMENTS, PARENTS)
    torch.testing.assert_close(found[: len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_a_switched_model_treats_ordinary_batches_as_before():
    model, packed_model = make_llama(), make_llama()
    assert enable_packing(packed_model)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    for mask in (None, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])):
        with torch.no_grad():
            found, expected = (one(input_ids=ids, attention_mask=mask).logits for one in (packed_model, model))
        real = torch.ones_like(ids).bool() if mask is None else mask.bool()
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    found, expected = (one.generate(ids[:1], max_new_tokens=6, do_sample=False) for one in (packed_model, model))
    assert found.tolist() == expected.tolist()


def test_bfloat16_on_a_cpu_is_the_float32_result_but_for_rounding():
    model = make_llama()
    assert enable_packing(model)
    row = pack(DOCUMENTS, PARENTS)
    with torch.no_grad():
        exact = compute_hidden_states(model.base_model, row)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = compute_hidden_states(model.base_model, row)
    assert 0 < (found - exact).abs().max() < 0.2 < exact.abs().max()


def test_activation_checkpointing_leaves_the_gradients_as_they_are():
    check_checkpointing(make_llama, lambda model: compute_hidden_states(model.base_model, pack(DOCUMENTS, PARENTS)))


def test_models_that_cannot_pack_are_left_as_they_were():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()

    def mistral(window):
        return MistralForCausalLM(MistralConfig(**SIZES, vocab_size=32, num_key_value_heads=2, sliding_window=window)).eval()

    windowed = mistral(4)
    wide = mistral(4096)  # what is tried fits into this window, what a run brings may not
    for model in (mamba, windowed, wide):
        before = model.config._attn_implementation
        assert not enable_packing(model)
        assert model.config._attn_implementation == before
    with torch.no_grad():
        found = compute_hidden_states(windowed.base_model, pack(DOCUMENTS, PARENTS))
        expected = states_alone(windowed, DOCUMENTS, PARENTS)
    torch.testing.assert_close(found[: len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_rankings_list_each_prompt_once():
    documents, parents = list_documents([([1, 2], [[3], [4, 5]]), ([6], [[7]])])
    assert documents == [[1, 2], [3], [4, 5], [6], [7]]
    assert parents == [-1, 0, 0, -1, 3]


def test_an_empty_document_and_a_second_level_are_refused():
    with pytest.raises(ValueError, match="empty"):
        pack([[1], []])
    with pytest.raises(ValueError, match="one level"):
        pack([[1], [2], [3]], [-1, 0, 1])


def test_shapes_recur_and_hold_little_padding():
    generator = torch.Generator().manual_seed(0)
    shapes, padded, real = set(), 0, 0
    for _ in range(50):
        lengths = torch.randint(20, 90, (40,), generator=generator).tolist()
        row = pack([[1] * length for length in lengths])
        shapes |= {len(row.ids_N)} | {tuple(group.queries_GQ.shape) for group in row.groups}
        padded, real = padded + sum(group.queries_GQ.numel() for group in row.groups), real + sum(lengths)
    assert len(shapes) < 30
    assert padded < 1.35 * real


@pytest.mark.parametrize(
    ("lengths", "limits", "expected"),
    [
        ([3, 4, 9, 2], (8, None), [[3, 4], [9], [2]]),
        ([4, 4, 1], (8, None), [[4, 4], [1]]),
        ([1, 1, 1, 1, 1], (8, 2), [[1, 1], [1, 1], [1]]),
        ([20], (8, None), [[20]]),
        ([0, 0], (8, None), [[0, 0]]),
        ([], (8, None), []),
    ],
)
def test_items_are_split_by_their_tokens(lengths, limits, expected):
    assert [lengths[run] for run in split_by_tokens(iter(lengths), *limits)] == expected
