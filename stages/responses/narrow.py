"""A policy for decoding on a GPU: its linear layers' and experts' weights held in bfloat16, adapters merged into them, all else its own.

Each step of decoding reads every weight for a few rows, and autocast would cast anew in each those that are kept in float32: weights that
learn, where autocast's own cache does not hold them (ZeRO stage 3), and a frozen head that is tied to the embeddings. An adapter would add
two small products to each layer. The numbers are those of autocast; with an adapter, those of the sum of both weights, rounded once.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.internals import Conv1D, copy_modules, holds_experts, is_gathered, is_partitioned
from stages.models.adapters import find_backbone, find_model
from stages.models.precision import is_bfloat16
from stages.process.gpu import count_free_memory

_SHARE = 0.5  # of the free memory, at most; the rest is for keys and values


@contextmanager
def narrowed(model: Any) -> Generator[Any]:
    """Give what to decode by: on a GPU in bfloat16, with room for it, a narrow copy of a causal language model; else the model itself."""
    device: torch.device = next(model.parameters()).device
    pays = device.type == "cuda" and is_bfloat16(find_backbone(model)) and _is_whole(model)
    yield narrow(model) if pays and count_bytes(model) <= _SHARE * count_free_memory(device) else model


@torch.no_grad()
def narrow(model: Any) -> Any:
    """Copy a model's modules around its own tensors, but for linear layers' and experts' weights, which become bfloat16."""
    return copy_modules(find_model(model), _narrow_layer)


def count_bytes(model: Any) -> int:
    """Count the bytes that a narrow copy takes beside its model."""
    weights = {id(layer): layer.weight for layer in find_model(model).modules() if _is_linear(layer)}
    merged = {id(_get_base(layer)) for layer in find_model(model).modules() if _can_merge(layer)}
    experts = [weight for layer in find_model(model).modules() if holds_experts(layer) for weight in layer.parameters()]
    linear = sum(2 * weight.numel() for key, weight in weights.items() if key in merged or weight.dtype == torch.float32)
    return linear + sum(2 * weight.numel() for weight in experts if weight.dtype == torch.float32)


def _narrow_layer(layer: nn.Module) -> nn.Module | None:
    """Make the narrow layer that stands for one; None: its children are looked at."""
    if holds_experts(layer):
        experts: Any = copy_modules(layer)
        for name, weight in layer.named_parameters():
            setattr(experts, name, nn.Parameter(weight.to(torch.bfloat16), requires_grad=False))
        return experts
    if _can_merge(layer):
        weight, base = _merge(layer), _get_base(layer)
    elif _is_linear(layer):
        base: Any = layer
        weight: Tensor = base.weight
    else:
        return None
    twin: Any = copy_modules(base)
    twin.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    if twin.bias is not None:
        twin.bias = nn.Parameter(twin.bias.to(torch.bfloat16), requires_grad=False)
    return twin


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, Conv1D)


def _get_base(layer: Any) -> Any:
    return layer.get_base_layer()


def _can_merge(layer: Any) -> bool:
    """Whether a layer is an adapter's whose update can be added to a weight; one in 4 bits cannot."""
    if not hasattr(layer, "get_delta_weight") or not _is_linear(_get_base(layer)):
        return False
    return not layer.merged and not layer.disable_adapters and all(name in layer.lora_A for name in layer.active_adapters)


def _merge(layer: Any) -> Tensor:
    weight: Tensor = _get_base(layer).weight.float()
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name).float()
    return weight


def _is_whole(model: Any) -> bool:
    return all(is_gathered(weight) for weight in model.parameters() if is_partitioned(weight))
