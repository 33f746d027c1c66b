"""Where the parts of the check compute: on a GPU, or (to try them where there is none) on a pretend one, at tiny sizes."""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from stages.blocks import HardwareSettings
from stages.process.gpu import prepare_gpu
from tests.bench.sizes import SIZES

MODELS = "RLHF_GPU_CHECK_MODELS"  # names a directory where parts find models that another part has written
# Products of bfloat16 a second that a GPU's maker states, without sparsity.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was found, and the goal if there is one."""

    case: str
    name: str
    value: float | None  # None: nothing was found, the name says why
    unit: str = ""
    goal: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Place:
    """What a part is told."""

    pretend: Any = None  # the pretend GPU; None: a real one

    @property
    def sizes(self) -> tuple[str, ...]:
        """Models that speed is measured on."""
        return ("tiny",) if self.pretend else ("wide", "1b")

    def choose(self, real: Any, pretended: Any) -> Any:
        """Take the one value on a GPU, the other one on a pretend one."""
        return pretended if self.pretend else real

    def reach(self, case: str, name: str, value: float, goal: float, unit: str = "x") -> Figure:
        """Make a figure of speed that must not be lower than a goal; of a pretend GPU it says nothing."""
        return Figure(case, name, value, unit) if self.pretend else at_least(case, name, value, goal, unit)

    @property
    def peak_flops(self) -> float | None:
        """What the GPU could do, if that is known."""
        name = torch.cuda.get_device_name()
        return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def at_most(case: str, name: str, value: float, limit: float, unit: str = "") -> Figure:
    """Make a figure that must not be larger than a limit."""
    return Figure(case, name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(case: str, name: str, value: float, limit: float, unit: str = "") -> Figure:
    """Make a figure that must not be smaller than a limit."""
    return Figure(case, name, value, unit, f">= {limit:g}", value >= limit)


def not_shown(case: str, why: str) -> Figure:
    """Make a line for what this machine cannot show."""
    return Figure(case, why, None)


def attempt(case: str, figures: Iterator[Figure]) -> Iterator[Figure]:
    """Give what a measurement finds; where it fails, a line that says so, and what comes after it is measured all the same."""
    try:
        yield from figures
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.160}"
        yield Figure(case, said.replace("|", "/"), None, holds=False)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Say how far a tensor is from what is expected, relative to that one's norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@contextmanager
def no_gpu() -> Iterator[str]:
    """Inside, what asks a GPU how fast and how full it is hears nothing; all is computed by the CPU."""
    zero, nothing = (lambda *_: 0), (lambda *_: None)
    memory = {"reset_peak_memory_stats": nothing, "max_memory_allocated": zero, "max_memory_reserved": zero}
    with patch.multiple(torch.cuda, **memory, synchronize=nothing, get_device_name=lambda *_: "no GPU"):
        yield "no GPU"


def make_hardware(precision: str, **changes: Any) -> HardwareSettings:
    """Describe the GPU to our code; with `device="cpu"` the CPU."""
    hardware = HardwareSettings.model_validate({"precision": precision, **changes})
    prepare_gpu(hardware)
    return hardware


def begin_anew() -> None:
    """Have accelerate look anew at what it computes on."""
    AcceleratorState._reset_state(reset_partial_state=True)


def measure_s(work: Callable[[], Any]) -> float:
    """Measure the seconds of some work, all of the GPU's included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def free_memory() -> None:
    """Give back what earlier measurements left: trainers refer to themselves, and DeepSpeed's engines outlive whoever made them.

    Hooks that Python's collector does not see into hold an engine's weights, gradients and moments, at ZeRO stage 3 2 GB of buffers too.
    """
    if "deepspeed" in sys.modules:
        import deepspeed

        for engine in [each for each in gc.get_objects() if type(each) is deepspeed.DeepSpeedEngine and vars(each)]:
            engine.destroy()
            for weight in engine.module.parameters():
                for held in (weight, getattr(weight, "ds_tensor", None)):
                    if held is not None:
                        held.data = held.data.new_empty(0)
            for part in (engine.optimizer, *engine.module.parameters(), engine):
                if part is not None:
                    vars(part).clear()
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def peak_memory() -> Iterator[Callable[[], tuple[float, float]]]:
    """Inside, count from zero; gives what reads the most GiB at once: (of tensors, of what the allocator held for them)."""
    free_memory()
    torch.cuda.reset_peak_memory_stats()
    yield lambda: (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)


def count_weights(size: str) -> int:
    """Count the weights that each token is multiplied with: all but the embeddings."""
    return SIZES[size].parameters - SIZES[size].vocabulary * SIZES[size].hidden
