"""A base model's configuration and a number of layers -> the models of a stage as the stage would open them, without a weight.

To be used inside of `stages.internals.fakes`; or outside, where the weights are drawn at random.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PretrainedConfig

from stages.blocks import HardwareSettings, LoRASettings
from stages.internals import is_fake, without_fakes
from stages.models import precision
from stages.models.adapters import apply_lora, find_model, make_lora_config, share_weights
from stages.models.calibration import Calibration
from stages.models.head import HEAD
from stages.models.miniature import keep_layers
from stages.models.norms import compute_alike
from stages.models.probe import Ways
from stages.models.quantization import quantize_layers
from stages.models.reward_model import put_head_on
from stages.models.weights import choose_attention, finish_loading
from stages.ppo.actor_critic import Actor, ActorCritic, init_critic
from stages.ppo.models import PPOModels, put_adapter_into
from stages.settings import PPOSettings

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight, see stages.models.quantization


def build_policy(config: PretrainedConfig, hardware: HardwareSettings, ways: Ways, layers: int) -> Any:
    """Make a causal language model as `stages.models.policy.load_policy` leaves it."""
    config = copy.deepcopy(config)
    keep_layers(config.get_text_config(), layers)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=choose_attention(config, hardware, ways), trust_remote_code=False
    )
    precision.set_precision(model, hardware)
    finish_loading(model, hardware, ways, _compute_alike)
    return model


def build_reward_model(policy: Any) -> Any:
    """Make a reward model around a policy's own transformer."""
    model = put_head_on(policy).requires_grad_(True)
    model.calibration = Calibration()
    return model


def adapt(model: Any, lora: LoRASettings | None, task: Any, hardware: HardwareSettings) -> Any:
    """Put an adapter on a model, in 4 bits where they shall be, if there is one."""
    if lora is None:
        return model
    return apply_lora(_quantize(model, lora, hardware), lora.model_copy(update={"quantize": None}), task, hardware)


def merge_anew(config: PretrainedConfig, ways: Ways, layers: int, lora: LoRASettings) -> Any:
    """Make what `stages.models.save.save_merged` holds: the whole model once more, in float32, and an adapter that is merged into it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = HardwareSettings.model_validate({"precision": "float32"})
    model = apply_lora(build_policy(config, plain, ways, layers), lora.model_copy(update={"quantize": None}), "CAUSAL_LM", plain)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    return model


def build_ppo_models(
    config: PretrainedConfig, hardware: HardwareSettings, ways: Ways, layers: int, settings: PPOSettings, reward_lora: LoRASettings | None
) -> PPOModels:
    """Make the four models as `stages.ppo.models.load_models` leaves them; `reward_lora` is the reward model's adapter on the SFT model."""

    def open_policy() -> Any:
        return _quantize(build_policy(config, hardware, ways, layers), settings.lora, hardware)

    def open_reward_model() -> Any:
        return _quantize(build_reward_model(build_policy(config, hardware, ways, layers)), settings.lora, hardware)

    policy = open_policy()
    shares = settings.lora is not None and settings.share_weights
    ref_policy = share_weights(policy) if shares else open_policy()
    if shares and reward_lora is not None:
        reward_model: Any = _put_reward_adapter_on(ref_policy, reward_lora)
    else:
        reward_model = open_reward_model()
    critic_source = share_weights(reward_model) if shares else open_reward_model()
    for frozen in (ref_policy, reward_model):
        precision.freeze(frozen, hardware)
    critic = init_critic(critic_source)
    if settings.lora:
        lora = settings.lora.model_copy(update={"quantize": None, "dropout": 0.0})
        policy = apply_lora(policy, lora, "CAUSAL_LM", hardware)
        put_adapter_into(critic_source, lora, hardware)
    if settings.gradient_checkpointing:
        for backbone in (policy, critic.backbone):
            backbone.activation_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    return PPOModels(ActorCritic(Actor(policy), critic), ref_policy, reward_model)


def _put_reward_adapter_on(policy: Any, lora: LoRASettings) -> Any:
    """Make what `load_reward_adapter` opens."""
    from peft import get_peft_model

    lora = lora.model_copy(update={"quantize": None})
    base = put_head_on(policy)
    model = get_peft_model(base, make_lora_config(base, lora, "SEQ_CLS", modules_to_save=[HEAD]))
    find_model(model).calibration = Calibration()
    return model.eval()


def _compute_alike(ours: nn.Module, norm: nn.Module) -> bool:
    """Try a norm without content by weights that are real."""
    if not is_fake(norm.weight):  # pyright: ignore[reportArgumentType]
        return compute_alike(ours, norm)  # pyright: ignore[reportArgumentType]
    with without_fakes(), torch.no_grad():
        size = ours.weight.numel()  # pyright: ignore[reportCallIssue]
        hidden, weights = torch.linspace(-2.0, 3.0, 2 * size).view(2, -1), {"weight": torch.linspace(0.5, 1.5, size)}
        expected = functional_call(norm, weights, (hidden,))
        alike = torch.allclose(functional_call(ours, weights, (hidden,)), expected, atol=1e-5, rtol=1e-5)
    return alike and expected.dtype == torch.float32


def _quantize(model: Any, lora: LoRASettings | None, hardware: HardwareSettings) -> Any:
    """Hold linear layers in 4 bits as `quantize_layers` does; of weights without content by a stand-in of the same size."""
    if lora is None or lora.quantize is None:
        return model
    if not is_fake(next(model.parameters())):
        return quantize_layers(model, hardware)
    dtype = torch.bfloat16 if hardware.computes_in_bfloat16 else torch.float32
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(parent, name, _Linear4bit(layer, dtype))
    return model


class _Linear4bit(nn.Linear):
    """Stands in for bitsandbytes' layer, whose kernels fake tensors do not know: the same bytes held and made, the same products."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        size = int(NF4_BYTES * layer.in_features * layer.out_features)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.compute_dtype = dtype
        if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            self.bias = nn.Parameter(torch.empty(layer.out_features, dtype=dtype), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: Any = _Product4bit.apply(input.to(self.compute_dtype), self.out_features)
        product = product if self.bias is None else product + self.bias  # pyright: ignore[reportUnnecessaryComparison]
        return product.to(input.dtype)


class _Product4bit(torch.autograd.Function):
    """x wᵀ, w made anew in each pass."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, out_features: int) -> torch.Tensor:
        ctx.out_features, ctx.in_features = out_features, input.shape[-1]
        return input @ input.new_empty(input.shape[-1], out_features)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradients[0]
        return gradient @ gradient.new_empty(ctx.out_features, ctx.in_features), None
