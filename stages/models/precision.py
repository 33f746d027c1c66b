"""The one precision policy: what is computed and kept in which precision, in rollouts, scoring and training alike.

`hardware.precision: auto` is settled before anything else (stages.process.machine). With bfloat16, matrix products are in bfloat16
(autocast; those of experts too, which autocast does not know), and so are the weights of frozen linear layers (or in 4 bits:
stages.models.quantization) and experts. Float32 stay: weights that learn and their optimizer's moments, the residual stream, norms'
statistics, softmaxes over the vocabulary, log-probabilities, the scalar heads, losses and all statistics. With `float32` everything is:
the reference.

Policy, reference and old policy run by the same forward in the same micro-batches, so that the first ratio is 1 and the first KL 0 in
either precision.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from stages.blocks import HardwareSettings
from stages.internals import Conv1D, holds_experts
from stages.models.partition import cast


def set_precision(model: Any, hardware: HardwareSettings) -> None:
    """Note on a model's backbone, once, in which precision it computes: whoever shares or copies the backbone has it too."""
    model.base_model.computes_in_bfloat16 = hardware.computes_in_bfloat16


def autocast(backbone: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Enter the precision of a backbone, and of the head above it, for a forward; weights stay float32.

    A backbone that `set_precision` has not seen computes as it is.
    """
    if is_bfloat16(backbone):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def is_bfloat16(backbone: Any) -> bool:
    """Whether a backbone computes in bfloat16."""
    return getattr(backbone, "computes_in_bfloat16", False)


def freeze(model: Any, hardware: HardwareSettings) -> Any:
    """Freeze a model; under bfloat16 its linear layers and experts keep their weights in bfloat16.

    Autocast computes with the same numbers: it would cast float32 weights in every forward. So nothing changes but time, and half of
    the memory. A head tied to the embeddings stays float32, since the embeddings do, and so does the scalar head.
    """
    model.requires_grad_(False)
    if hardware.computes_in_bfloat16:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        for module in model.modules():
            is_linear = type(module) in (torch.nn.Linear, Conv1D) and id(module.weight) not in embeddings
            if is_linear or holds_experts(module):
                cast(module, torch.bfloat16)
    return model
