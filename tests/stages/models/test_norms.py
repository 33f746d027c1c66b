"""The RMSNorm with a written-out gradient: hand-worked numbers, transformers' own, what it keeps, and what it leaves alone."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from stages.models.norms import RMSNorm, fuse_norms

SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 4}
BFLOAT16 = torch.autocast("cpu", dtype=torch.bfloat16)


def make_norm(size, feeds_linear_layers=True):
    weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, size))
    return RMSNorm(weight, 1e-6, feeds_linear_layers)


def test_hand_worked_numbers():
    norm = RMSNorm(torch.nn.Parameter(torch.tensor([1.0, 2.0])), 0.0, True)
    hidden = torch.tensor([3.0, 4.0], requires_grad=True)  # mean square 12.5, so the root is 3.5355
    output = norm(hidden)
    torch.testing.assert_close(output, torch.tensor([0.848528, 2.262742]))
    output[0].backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([0.181019, -0.135765]))  # 1 / 3.5355 x (1 - 9 / 25, -12 / 25)
    torch.testing.assert_close(norm.weight.grad, torch.tensor([0.848528, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients_equal_those_of_transformers(dtype):
    torch.manual_seed(0)
    ours = make_norm(48)
    theirs = LlamaRMSNorm(48, eps=1e-6)
    theirs.weight.data.copy_(ours.weight)
    values, gradient = torch.randn(2, 7, 48).to(dtype), torch.randn(2, 7, 48)
    found = []
    for norm in (ours, theirs):
        hidden = values.clone().requires_grad_()
        output = norm(hidden)
        output.backward(gradient.to(output.dtype))
        found.append((output, hidden.grad, norm.weight.grad))
    exact = dtype == torch.float32
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **({"atol": 1e-6, "rtol": 1e-5} if exact else {"atol": 0.05, "rtol": 0.02}))


def test_a_frozen_weight_gets_no_gradient_and_lets_it_through():
    norm = make_norm(8).requires_grad_(False)
    hidden = torch.randn(3, 8, requires_grad=True)
    norm(hidden).square().sum().backward()
    assert norm.weight.grad is None and hidden.grad.abs().sum() > 0


def test_under_autocast_only_what_feeds_the_heads_stays_float32():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    fuse_norms(model)
    dtypes = {}
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: dtypes.update({name: output.dtype}))
    with BFLOAT16:
        model(torch.tensor([[1, 2, 3]]))
    assert dtypes.pop("model.norm") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16} and len(dtypes) == 4


@pytest.mark.parametrize(("model_class", "config", "expected"), [(LlamaForCausalLM, LlamaConfig, 5), (Qwen3ForCausalLM, Qwen3Config, 9)])
def test_a_model_keeps_its_weights_and_its_outputs(model_class, config, expected):
    torch.manual_seed(0)
    model = model_class(config(**SHAPE)).eval()
    ids, before = torch.tensor([[3, 1, 4, 1, 5]]), {name: value.data_ptr() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
        assert fuse_norms(model) == expected
        torch.testing.assert_close(model(ids).logits, logits, atol=1e-6, rtol=1e-5)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before


def test_only_what_linear_layers_read_is_narrowed():
    """Not the norms of queries and keys, which rotary embeddings read, nor what experts or heads read."""
    qwen3, mixtral = Qwen3ForCausalLM(Qwen3Config(**SHAPE)), MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2))
    lfm2 = Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["full_attention", "conv"]))  # its last norm has a name of its own
    for model, narrowed in ((qwen3, {"input_layernorm", "post_attention_layernorm"}), (mixtral, set()), (lfm2, set())):
        assert fuse_norms(model) > 0
        norms = {name: module for name, module in model.named_modules() if isinstance(module, RMSNorm)}
        assert {name.rsplit(".")[-1] for name, norm in norms.items() if norm.feeds_linear_layers} == narrowed


def test_a_second_derivative_is_refused():
    hidden = torch.randn(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(make_norm(4)(hidden).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_a_norm_that_computes_something_else_is_left_alone():
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE))  # adds 1 to the weight
    assert fuse_norms(model) == 0
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE))
    llama.model.norm.forward = lambda hidden: hidden * 2
    assert fuse_norms(llama) == 4


def test_the_backward_pass_needs_the_input_only():
    def count_kept_bytes(norm):
        kept = {}
        hidden = torch.randn(64, 48, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor):
            norm(hidden)
        return sum(tensor.numel() * 4 for tensor in kept.values())

    one_activation = 64 * 48 * 4
    assert count_kept_bytes(make_norm(48)) < 1.1 * one_activation
    assert count_kept_bytes(LlamaRMSNorm(48)) > 1.9 * one_activation
