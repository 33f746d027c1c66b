"""The last layer's MLP on the tokens that are read: nothing that is read changes, gradients included."""

import pytest
import torch

from stages.models.forward import compute_hidden_states, enable_packing
from stages.models.packing import pack
from stages.models.unread import skip_unread
from tests.stages.models.test_packing import DOCUMENTS, PARENTS, check_checkpointing, make_gpt2, make_llama, make_qwen, switch


@pytest.mark.parametrize("make", [make_llama, make_qwen, make_gpt2])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_last_mlp_sees_only_tokens_that_are_read_and_nothing_that_is_read_changes(make, checkpointed):
    models = [switch(make, checkpointed=checkpointed), switch(make, checkpointed=checkpointed)]
    row = pack([*DOCUMENTS, [1] * 30, [2] * 30, [3] * 30], [*PARENTS, -1, -1, -1])
    read_K = torch.tensor([0, 3, 3, 17, 11, 0])  # in no order and with repeats
    seen: list[list[int]] = [[], []]
    gradients, states = [], []
    for index, model in enumerate(models):
        for module in (module for name, module in model.named_modules() if name.endswith("mlp")):
            module.register_forward_hook(lambda _mlp, args, _output, index=index: seen[index].append(args[0].shape[1]))
        found_KH = compute_hidden_states(model.base_model, row, read_K) if index else compute_hidden_states(model.base_model, row)[read_K]
        weights_KH = torch.randn(found_KH.shape, generator=torch.Generator().manual_seed(1))
        (found_KH * weights_KH).sum().backward()
        states.append(found_KH.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-5, rtol=1e-4)
    assert set(seen[0]) == {128}
    assert seen[1].count(64) * models[1].config.num_hidden_layers == len(seen[1])


def test_two_checkpointed_forwards_before_one_backward_each_recompute_their_own_tokens():
    row = pack([[1, 2, 3] * 10, [4, 5, 6] * 10, [7, 8, 9] * 10, [10, 11, 12] * 10])
    reads = (torch.arange(60), torch.arange(60, 120))
    check_checkpointing(make_llama, lambda model: torch.stack([compute_hidden_states(model.base_model, row, read_K) for read_K in reads]))


def test_where_the_last_module_is_not_the_last_to_compute_it_runs_on_all_tokens():
    class Backwards(torch.nn.ModuleList):
        def __getitem__(self, index):
            return list(self)[::-1] if isinstance(index, slice) else super().__getitem__(index)

    model = make_llama()
    model.model.layers = Backwards(model.model.layers)
    assert enable_packing(model) and not skip_unread(model)
    row, read_K = pack([[1] * 30, [2] * 30, [3] * 30]), torch.tensor([29, 59])
    with torch.no_grad():
        expected_KH = compute_hidden_states(model.base_model, row)[read_K]
        torch.testing.assert_close(compute_hidden_states(model.base_model, row, read_K), expected_KH)
    assert not any(layer.mlp._forward_hooks for layer in list(model.model.layers))
