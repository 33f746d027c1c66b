"""The one precision policy: what is computed and kept in which precision, in rollouts, scoring and training alike.

`hardware.precision: auto` is settled first, by what the processor states and never by a timing: the same machine always makes the same
model. With bfloat16, matrix products are in bfloat16 (autocast), and so are the weights of frozen linear layers (or in 4
bits: stages.models.quantization). Float32 stay: weights that learn and their optimizer's moments, the residual stream, norms' statistics,
softmaxes over the vocabulary, log-probabilities, the scalar heads, losses and all statistics. With `float32` everything is: the
reference.

Policy, reference and old policy run by the same forward in the same micro-batches, so that the first ratio is 1 and the first KL 0 in
either precision.
"""

import contextlib
import os
from typing import Any

import torch

from stages.models.internals import Conv1D
from stages.models.partition import cast
from stages.process.context import StageContext, device_name, uses_gpu
from stages.process.distributed import decide_in_main
from stages.settings import HardwareSettings

Autocast = contextlib.AbstractContextManager[Any]  # the precision of a forward; entered anew for each

# Instructions for bfloat16 products: of x86, of x86, of Arm (names of `torch.cpu.get_capabilities`).
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
# Values of ONEDNN_MAX_CPU_ISA that leave oneDNN these instructions.
_ISAS_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


def autocast(hardware: HardwareSettings, device: torch.device) -> Autocast:
    """Compute in bfloat16 where the hardware block says so; weights stay float32."""
    if hardware.computes_in_bfloat16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def freeze(model: Any, hardware: HardwareSettings) -> Any:
    """Freeze a model; under bfloat16 its linear layers keep their weights in bfloat16.

    Autocast computes with the same numbers: it would cast float32 weights in every forward. So nothing changes but time, and half of
    the memory. A head tied to the embeddings stays float32, since the embeddings do, and so does the scalar head.
    """
    model.requires_grad_(False)
    if hardware.computes_in_bfloat16:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        for module in model.modules():
            if type(module) in (torch.nn.Linear, Conv1D) and id(module.weight) not in embeddings:
                cast(module, torch.bfloat16)
    return model


def settle_precision(context: StageContext) -> None:
    """Put in place of `hardware.precision: auto` in the stage's spec what this machine has instructions for; alike on all ranks.

    An explicit `bfloat16` stays, and the user is told where it is emulated.
    """
    hardware = context.spec.hardware
    fast = decide_in_main(context, lambda: gpu_has_bfloat16() if uses_gpu(context) else cpu_has_bfloat16())
    if hardware.precision == "auto":
        hardware = hardware.model_copy(update={"precision": "bfloat16" if fast else "float32"})
        context.spec = context.spec.model_copy(update={"hardware": hardware})
    elif hardware.precision == "bfloat16" and not fast:
        context.note(
            f"hardware.precision = bfloat16, but this {'GPU' if uses_gpu(context) else 'CPU'} has no instructions for it and emulates "
            "them, many times slower than float32; set hardware.precision: auto"
        )
    context.event("machine", device=device_name(context), precision=hardware.precision)


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16: compute capability 8.0 and newer."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products (AVX512-BF16, AMX-BF16, Arm BF16) and the libraries may use them.

    ONEDNN_MAX_CPU_ISA hides instructions from oneDNN, which computes the products, ATEN_CPU_CAPABILITY from torch's own kernels.
    """
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS):
        return False
    isa = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT").upper()
    kernels = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    return any(name in isa for name in _ISAS_WITH_BFLOAT16) and kernels not in ("default", "avx2")
