"""What a process settles on a GPU before it computes there, and what it gives back between phases. On a CPU nothing of it happens."""

import torch
from torch import Tensor

from stages.blocks import HardwareSettings


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
