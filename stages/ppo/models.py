"""SFT model + reward model -> policy, critic, reference and reward model, with as few copies of frozen weights as there can be.

    without LoRA   four models
    with LoRA      the policy's base is the reference, the critic's is the reward model
    and where the reward model is an adapter on the very SFT model: one backbone for all four,

        reference      backbone
        policy         backbone + adapter
        reward model   backbone + reward adapter, under its head
        critic         backbone + reward adapter + adapter, under a head of its own

Models that share are modules of their own around the same tensors, so there is nothing to switch between two forwards, and activation
checkpointing recomputes what it saw. With `ppo.lora.quantize` all that is frozen below an adapter is in 4 bits, the reference too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.adapter_base import read_base
from stages.blocks import HardwareSettings, LoRASettings
from stages.models import precision
from stages.models.adapters import (
    apply_lora,
    find_backbone,
    find_model,
    make_lora_config,
    settle_casts,
    share_weights,
    take_adapter,
)
from stages.models.compiling import compile_layers
from stages.models.forward import note_padding
from stages.models.policy import load_policy
from stages.models.quantization import quantize_layers
from stages.models.reward_model import load_reward_adapter, load_reward_model
from stages.models.tokenizer import align_special_tokens
from stages.models.weights import find_weights
from stages.ppo.actor_critic import Actor, ActorCritic, init_critic
from stages.process.context import StageContext
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.responses.generation import note_decoding
from stages.settings import PPOSettings
from stages.spec import EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR

_CRITIC = "critic"  # the name of the critic's adapter, beside the reward model's


@dataclass(frozen=True)
class PPOModels:
    """What PPO trains, and what it only asks."""

    actor_critic: ActorCritic
    ref_policy: Any
    reward_model: Any


def load_models(context: StageContext, settings: PPOSettings, tokenizer: Any) -> PPOModels:
    """Load the four models.

    Raises:
        StageError: policy and reward model have embeddings of different sizes.
    """
    sft, rm, start = (context.spec.models.get(role, "") for role in ("sft", "rm", "start"))
    hardware = context.spec.hardware
    engine = choose_engine(context)

    quantizes = bool(settings.lora and settings.lora.quantize)

    def open_policy(path: str) -> Any:
        model = _quantize(load_policy(path, hardware, engine=engine, on_cpu=quantizes), settings, hardware)
        align_special_tokens(model, tokenizer)
        return model

    def open_reward_model() -> Any:
        return _quantize(load_reward_model(rm, hardware, engine=engine, on_cpu=quantizes), settings, hardware)

    # A full policy opens by itself; an adapter goes on upon the SFT model, below.
    policy = open_policy(sft if settings.lora else start or sft)
    note_padding(context, policy)
    if settings.rollout.engine == "torch":
        note_decoding(context, policy)
    shares_weights = settings.lora is not None and settings.share_weights
    # What does not learn is narrowed as soon as it is there, before the next model comes beside it.
    ref_policy: Any = share_weights(policy) if shares_weights else precision.freeze(open_policy(sft), hardware)
    reward_adapter = find_reward_adapter(sft, rm) if shares_weights else None
    reward_model = load_reward_adapter(ref_policy, reward_adapter) if reward_adapter else open_reward_model()
    if not shares_weights:
        precision.freeze(reward_model, hardware)
    _require_one_vocabulary(context, ref_policy, reward_model)
    critic_source: Any = share_weights(reward_model) if shares_weights else open_reward_model()
    for frozen in (ref_policy, reward_model):
        precision.freeze(frozen, hardware)
    critic = init_critic(critic_source)
    if settings.lora:
        adapter = _without_dropout(context, settings.lora)
        torch.manual_seed(context.spec.seed)  # adapters start alike, however the models were loaded
        policy = apply_lora(policy, adapter, "CAUSAL_LM", hardware)
        if start:
            take_adapter(policy, _adapter_directory(start))
        put_adapter_into(critic_source, adapter, hardware)
    for model in (critic_source, reward_model):
        settle_casts(model, hardware)
    if shares_weights:
        base = _read_base(_adapter_directory(rm))
        why = f"an adapter on {base}, not on {sft}" if base else "no adapter (rm.lora makes it one)"
        said = "one backbone" if reward_adapter else f"two backbones, since the reward model is {why}"
        context.note(f"policy, reference, critic and reward model share their frozen weights: {said}")
    if settings.gradient_checkpointing:
        backbones: list[Any] = [policy, critic.backbone]
        for backbone in backbones:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
    compile_layers(context, policy, critic, ref_policy, reward_model)
    return PPOModels(ActorCritic(Actor(policy), critic), ref_policy, reward_model)


def find_reward_adapter(sft_path: str, rm_path: str) -> str | None:
    """Find the adapter of a reward model that was trained on this very SFT model: `rm_path`, or what was merged into it."""
    directory = _adapter_directory(rm_path)
    base = _read_base(directory)
    return str(directory) if base and Path(base).resolve() == Path(find_weights(sft_path)).resolve() else None


def _adapter_directory(path: str) -> Path:
    directory = Path(path)
    return directory.parent / MODEL_DIR if directory.name == MERGED_DIR else directory


def _read_base(directory: Path) -> str | None:
    """Read which model an adapter stands on; None: it is no adapter."""
    try:
        return read_base(directory)[0]
    except FileNotFoundError:
        return None


def _quantize(model: Any, settings: PPOSettings, hardware: HardwareSettings) -> Any:
    """Hold what adapters will stand on in 4 bits, with `ppo.lora.quantize`; before it is shared, and before there are adapters in it."""
    return quantize_layers(model, hardware) if settings.lora and settings.lora.quantize else model


def _without_dropout(context: StageContext, lora: LoRASettings) -> LoRASettings:
    if lora.dropout:
        context.note(f"ppo.lora.dropout = {lora.dropout} is not used: with dropout the first ratio would not be 1")
    return lora.model_copy(update={"dropout": 0.0})


def put_adapter_into(critic_source: Any, lora: LoRASettings, hardware: HardwareSettings) -> None:
    """Freeze what the critic's backbone is a part of and give it an adapter, on top of the reward model's if there is one."""
    from peft.functional import cast_adapter_dtype, inject_adapter_in_model, set_adapter
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Not the backbone itself: `target_modules` may be names as the whole model has them.
    model, backbone = find_model(critic_source), find_backbone(critic_source)
    below = sorted({name for module in backbone.modules() if isinstance(module, BaseTunerLayer) for name in module.active_adapters})
    inject_adapter_in_model(make_lora_config(model, lora, "SEQ_CLS"), precision.freeze(model, hardware), adapter_name=_CRITIC)
    cast_adapter_dtype(backbone, adapter_name=_CRITIC)  # float32, whatever the frozen weights are held in
    set_adapter(backbone, [*below, _CRITIC])
    for name, parameter in backbone.named_parameters():  # activating has made the reward model's adapter trainable too
        parameter.requires_grad_(_CRITIC in name.split("."))


def _require_one_vocabulary(context: StageContext, ref_policy: Any, reward_model: Any) -> None:
    sft, rm = context.spec.models["sft"], context.spec.models["rm"]
    found, needed = (model.config.get_text_config().vocab_size for model in (reward_model, ref_policy))
    if found != needed:
        raise StageError(
            f"the reward model {rm} has {found} token embeddings, the policy {sft} "
            f"{needed}; both must stem from the same SFT artifact; train the rm stage on this one",
            EXIT_VERIFICATION,
        )
