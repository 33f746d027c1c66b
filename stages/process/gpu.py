"""What a process settles on a GPU before it computes there, and what it gives back between phases. On a CPU nothing of it happens."""

import os

import torch
from torch import Tensor

from data.schema import first_line
from stages.blocks import HardwareSettings
from stages.process.errors import StageError, is_out_of_memory
from stages.process.places import has_gpu
from stages.spec import EXIT_FAILED, EXIT_RESOURCE, EXIT_USAGE


def finds_gpu(hardware: HardwareSettings) -> bool:
    """Whether a stage with this hardware block computes on a GPU."""
    return hardware.device != "cpu" and torch.cuda.is_available()


def find_device(hardware: HardwareSettings) -> torch.device:
    """Find where this process computes: of several GPUs, on the one that it was given when it joined the others."""
    return torch.device("cuda", torch.cuda.current_device()) if finds_gpu(hardware) else torch.device("cpu")


def prepare_gpu(hardware: HardwareSettings) -> None:
    """Settle how kernels are chosen. How memory is kept is settled when the process starts, see `pipeline.launch.environment`."""
    if not finds_gpu(hardware):
        return
    # Its attention builds a plan for each shape, on Hopper and later, and shapes change with every token that is decoded.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Float32 is the reference: its products keep all 24 bits unless the recipe says otherwise, whatever the environment says.
    torch.set_float32_matmul_precision("high" if hardware.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = hardware.tf32


def explain_no_gpu() -> str:
    """Say why torch finds no GPU, in its own words: it is built without CUDA, the driver is too old for it, there is none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} says: {first_line(error).partition('. ')[0].rstrip('.')}"
    return f"torch {torch.__version__} finds none"


def find_unused_gpu(hardware: HardwareSettings) -> str | None:
    """Say why a stage computes on the CPU of a machine that has a GPU's driver; None: it does not, or was told to."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hardware.device != "auto" or hidden or finds_gpu(hardware) or not has_gpu():
        return None
    return (
        f"this machine has a GPU's driver, but the stage computes on the CPU: {explain_no_gpu()}; install a build of torch for that "
        "driver, or set hardware.device: cpu"
    )


def require_working_gpu(hardware: HardwareSettings) -> None:
    """Compute a number on this process's GPU, before anything is loaded onto it.

    Raises:
        StageError: it cannot: torch is built for others (exit code 2), somebody else holds it (5), or it is broken (1).
    """
    if not finds_gpu(hardware):
        return
    try:
        (torch.ones(1, device=find_device(hardware)) + 1).item()
    except RuntimeError as error:
        said = first_line(error)
        code, advice = EXIT_FAILED, "see what `nvidia-smi` says of it, or set hardware.device: cpu"
        if "no kernel image" in said:
            code = EXIT_USAGE
            built = ", ".join(torch.cuda.get_arch_list())
            advice = f"torch {torch.__version__} is built for {built}; install a build for this one, or set hardware.device: cpu"
        elif is_out_of_memory(error) or "busy or unavailable" in said:
            code = EXIT_RESOURCE
            advice = "another process holds it, which `nvidia-smi` names; end that, or show this one another GPU by CUDA_VISIBLE_DEVICES"
        version = ".".join(map(str, torch.cuda.get_device_capability()))
        raise StageError(f"{torch.cuda.get_device_name()} (compute capability {version}): {said}; {advice}", code) from error


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device, behind all that this has still to compute, and wait for none of it.

    From memory that may be paged out, more than 64 KB would be waited for, whatever `non_blocking` says.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def release_memory(device: torch.device) -> None:
    """Give memory that no tensor holds back to the GPU, between two phases whose tensors have other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def count_free_memory(device: torch.device) -> int:
    """Count the bytes that new tensors can have on a GPU: those that nobody holds, and those that freed tensors have left behind."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
