"""The precision policy: what stays float32 and what may be bfloat16 without changing a bit."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.blocks import HardwareSettings, LoRASettings
from stages.models import precision
from stages.models.adapters import apply_lora, find_backbone, share_weights
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model, put_head_on
from tests.stages.family_models import make_config

HARDWARE = HardwareSettings(device="cpu", precision="float32")
BFLOAT16 = HardwareSettings(device="cpu", precision="bfloat16")


def test_frozen_linear_weights_in_bfloat16_change_no_bit_under_autocast(base_model_dir):
    ids = torch.tensor([[1, 5, 9, 30]])
    outputs = {}
    for hardware in (HARDWARE, BFLOAT16):
        for load in (lambda path: load_policy(path, HARDWARE), lambda path: init_reward_model(path, HARDWARE, seed=1)):
            model = precision.freeze(load(str(base_model_dir)), hardware)
            precision.set_precision(model, BFLOAT16)
            with torch.no_grad(), precision.autocast(model.base_model, torch.device("cpu")):
                outputs[hardware.precision, type(model).__name__] = model(ids).logits
            dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
            assert dtypes["model.layers.0.mlp.up_proj.weight"] == getattr(torch, hardware.precision)
            assert dtypes["model.embed_tokens.weight"] == dtypes["model.norm.weight"] == torch.float32
            assert dtypes.get("score.weight", torch.float32) == torch.float32
            assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in ("LlamaForCausalLM", "LlamaForSequenceClassification"):
        assert torch.equal(outputs["float32", name], outputs["bfloat16", name])


class _SeenGroups(TorchDispatchMode):
    """Notes the precisions in which experts' products are computed."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._grouped_mm.default:
            self.found |= {args[0].dtype, args[1].dtype}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_compute_in_the_precision_of_all_other_products(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family)).eval()
    experts = [name for name, weight in model.named_parameters() if ".experts." in name and weight.dim() == 3]
    ids = torch.randint(2, 200, (2, 12))
    logits, gradients = {}, {}
    for hardware in (HARDWARE, BFLOAT16):
        precision.set_precision(model, hardware)
        model.zero_grad()
        with _SeenGroups() as seen, precision.autocast(model.base_model, torch.device("cpu")):
            output = model(ids).logits
        with seen:  # the backward pass
            output.float().square().sum().backward()
        assert seen.found == {getattr(torch, hardware.precision)}
        logits[hardware.precision] = output.detach().float()
        gradients[hardware.precision] = {name: model.get_parameter(name).grad for name in experts}
    assert (logits["bfloat16"] - logits["float32"]).norm() < 0.02 * logits["float32"].norm()
    for name, gradient in gradients["bfloat16"].items():
        expected = gradients["float32"][name]
        assert gradient.dtype == torch.float32 and (gradient - expected).norm() < 0.05 * expected.norm()


def test_frozen_experts_in_bfloat16_change_no_bit_under_autocast():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config("mixtral")).eval()
    precision.set_precision(model, BFLOAT16)
    outputs = []
    for _ in range(2):
        with torch.no_grad(), precision.autocast(model.base_model, torch.device("cpu")):
            outputs.append(model(torch.tensor([[1, 5, 9, 30]])).logits)
        precision.freeze(model, BFLOAT16)
    assert torch.equal(*outputs)
    assert {weight.dtype for name, weight in model.named_parameters() if ".experts." in name} == {torch.bfloat16}
    assert model.model.norm.weight.dtype == torch.float32


def test_tied_embeddings_stay_float32():
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config.tie_word_embeddings = True
    model = precision.freeze(LlamaForCausalLM(config), BFLOAT16)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float32


def test_float32_head_gives_float32_scores_under_bfloat16_autocast(base_model_dir):
    model = init_reward_model(str(base_model_dir), BFLOAT16, seed=1)
    with torch.no_grad(), precision.autocast(model.base_model, torch.device("cpu")):
        assert model(torch.tensor([[1, 5, 9]])).logits.dtype == torch.float32


def test_a_precision_that_is_not_settled_is_never_taken_for_float32(base_model_dir):
    with pytest.raises(ValueError, match="not settled"):
        load_policy(str(base_model_dir), HardwareSettings())


def test_models_on_one_backbone_compute_in_its_precision(base_model_dir):
    for hardware in (HARDWARE, BFLOAT16):
        policy = load_policy(str(base_model_dir), hardware)
        for model in (policy, share_weights(policy), put_head_on(policy), apply_lora(policy, LoRASettings(rank=2), "CAUSAL_LM", hardware)):
            with precision.autocast(find_backbone(model), torch.device("cpu")):
                assert torch.is_autocast_enabled("cpu") == (hardware is BFLOAT16)
