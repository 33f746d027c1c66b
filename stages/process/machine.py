"""What this machine has instructions for, and so what `hardware.precision: auto` is; and how much of its memory a process took.

The processor states it; no timing decides: the same machine always makes the same model.
"""

import json
import os
import resource
import sys
from contextlib import suppress

import torch

from stages.process.context import StageContext, device_name, uses_gpu
from stages.process.distributed import decide_in_main
from stages.process.places import hides_bfloat16

# Instructions for bfloat16 products: of x86, of x86, of Arm (names of `torch.cpu.get_capabilities`).
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


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
    before = find_earlier_precision(context)
    if before not in (None, hardware.precision):
        context.note(
            f"this run was begun in {before} and goes on in {hardware.precision}, which is what this machine has instructions for; "
            f"set hardware.precision: {before} to begin anew in that"
        )
    context.event("machine", device=device_name(context), precision=hardware.precision)


def find_earlier_precision(context: StageContext) -> str | None:
    """Find what an earlier attempt computed in, if it left a checkpoint to go on from; None otherwise."""
    events_path = context.spec.events_path
    if not any(context.spec.checkpoint_dir.glob("checkpoint-*")) or not events_path.exists():
        return None
    machines = [line for line in events_path.read_bytes().split(b"\n") if b'"event": "machine"' in line]
    with suppress(ValueError, TypeError, KeyError):  # a damaged line says nothing
        return str(json.loads(machines[-1])["precision"]) if machines else None
    return None


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16: compute capability 8.0 and newer."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products (AVX512-BF16, AMX-BF16, Arm BF16) and the libraries may use them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS) and not hides_bfloat16(os.environ)


def choose_precision(precision: str) -> tuple[str, str]:
    """Say in what a model that was made elsewhere is asked here: not in bfloat16 where it would be emulated.

    Returns:
        The precision, and what to tell of it: nothing where it is the model's own.
    """
    on_gpu = torch.cuda.is_available()
    if precision != "bfloat16" or (gpu_has_bfloat16() if on_gpu else cpu_has_bfloat16()):
        return precision, ""
    return "float32", f"computes in float32, not in bfloat16 as it was made: this {'GPU' if on_gpu else 'CPU'} has no instructions for that"


def measure_peak_memory() -> int:
    """Read the most bytes that this process has held at once: of its GPU, where it used one, else of main memory."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_reserved()) > 0:
        return held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
