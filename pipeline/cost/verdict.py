"""What a stage needs of a device, and what the device has -> fits, tight, does not fit."""

from dataclasses import dataclass
from typing import Literal

from pipeline.cost.machines import CONTEXT_BYTES, GPU_ALLOCATOR, NCCL_BYTES, TIGHT
from pipeline.cost.memory import PhaseMemory

CPU_LIBRARIES = 90e6  # libraries that are loaded when they are first used, threads' stacks, kernels that oneDNN makes; see README.md

Word = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Verdict:
    """Whether something fits.

    Args:
        word: In words.
        need: Bytes, all that is added to what tensors hold included.
        room: Bytes that there are.
    """

    word: Word
    need: float
    room: float


def judge(need: float, room: float) -> Verdict:
    """Compare what is needed with what there is: below 80 % it fits."""
    return Verdict("fits" if need <= TIGHT * room else "tight" if need <= room else "does not fit", need, room)


def add_overhead(phase: PhaseMemory, *, on_gpu: bool, processes: int, resident: float, holes: float = 0.0) -> float:
    """Add what a process holds beside its tensors.

    Args:
        phase: What tensors hold.
        on_gpu: Whether that is a GPU's memory.
        processes: On all nodes.
        resident: Bytes of a process before it opens a model.
        holes: Bytes that a CPU's heap keeps between tensors, see `measure_holes`.
    """
    if on_gpu:
        return phase.total * GPU_ALLOCATOR + CONTEXT_BYTES + (NCCL_BYTES if processes > 1 else 0)
    return phase.total + holes + resident + CPU_LIBRARIES
