"""The one precision policy: what is computed and kept in which precision, in rollouts, scoring and training alike.

With `hardware.precision: bfloat16`, matrix products are in bfloat16 (autocast), and so are the weights of frozen linear layers (or in 4
bits: stages.models.quantization). Float32 stay: weights that learn and their optimizer's moments, the residual stream, norms' statistics,
softmaxes over the vocabulary, log-probabilities, the scalar heads, losses and all statistics. With `float32` everything is: the
reference.

Policy, reference and old policy run by the same forward in the same micro-batches, so that the first ratio is 1 and the first KL 0 in
either precision.
"""

import contextlib
import time
from typing import Any

import torch

from stages.models.internals import Conv1D
from stages.models.partition import cast
from stages.process.context import StageContext, uses_gpu
from stages.settings import HardwareSettings

Autocast = contextlib.AbstractContextManager[Any]  # the precision of a forward; entered anew for each

_PHASES = {"training": 1024, "decoding": 32}  # rows of the products that are tried
_WIDTH = 512
_TRIES = 5


def autocast(hardware: HardwareSettings, device: torch.device) -> Autocast:
    """Compute in bfloat16 where the hardware block says so; weights stay float32."""
    if hardware.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def freeze(model: Any, hardware: HardwareSettings) -> Any:
    """Freeze a model; under bfloat16 its linear layers keep their weights in bfloat16.

    Autocast computes with the same numbers: it would cast float32 weights in every forward. So nothing changes but time, and half of
    the memory. A head tied to the embeddings stays float32, since the embeddings do, and so does the scalar head.
    """
    model.requires_grad_(False)
    if hardware.precision == "bfloat16":
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        for module in model.modules():
            if type(module) in (torch.nn.Linear, Conv1D) and id(module.weight) not in embeddings:
                cast(module, torch.bfloat16)
    return model


def note_slow_bfloat16(context: StageContext) -> None:
    """Tell the user where this CPU computes bfloat16 products slower than float32 ones: one without instructions for them emulates them.

    It is said and not acted on: a choice by measurement would give another model on another day.
    """
    if context.spec.hardware.precision != "bfloat16" or uses_gpu(context):
        return
    slowdowns = {phase: measure_slowdown(rows) for phase, rows in _PHASES.items()}
    if min(slowdowns.values()) > 1.0 and max(slowdowns.values()) > 1.5:  # a margin: both are measured on a machine that may be busy
        told = " and ".join(f"{slowdown:.1f} times as long in {phase}" for phase, slowdown in slowdowns.items())
        context.note(f"bfloat16 products take {told} as float32 ones on this CPU; hardware.precision: float32 is faster here")


@torch.no_grad()
def measure_slowdown(rows: int) -> float:
    """Measure how many times as long a product of this many rows takes in bfloat16 as in float32; the best of a few tries."""
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(rows, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
        durations: list[float] = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            left @ right  # pyright: ignore[reportUnusedExpression]
            durations.append(time.perf_counter() - start)
        seconds[dtype] = min(durations)
    return seconds[torch.bfloat16] / seconds[torch.float32]
