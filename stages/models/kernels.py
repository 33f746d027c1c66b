"""Whether what computes is a CPU, for which some of our code goes other ways; a trace of a GPU's code runs where there is none."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

_pretended: list[bool] = []


def is_cpu(tensor: torch.Tensor) -> bool:
    """Whether a tensor is computed with on a CPU."""
    return tensor.device.type == "cpu" and not _pretended


def is_pretended() -> bool:
    """Whether code goes the ways of a GPU where there is none."""
    return bool(_pretended)


@contextmanager
def as_on_a_gpu() -> Generator[None]:
    """Inside, code goes the ways that it goes on a GPU."""
    _pretended.append(True)
    try:
        yield
    finally:
        _pretended.pop()
