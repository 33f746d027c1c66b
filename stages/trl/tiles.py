"""The tiles of logits of TRL's fused head, as memory holds them on a GPU, where there is none."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl.kernels import chunked_logprob

from stages.internals import replaced


@contextmanager
def head_by_triton() -> Generator[None]:
    """Inside, TRL's head holds what it holds on a GPU: Triton's kernels, which no trace can run, fold its tiles of logits in place.

    Elsewhere torch's operations do, by eight copies of a tile in float32. Tokens of prompts, which a GPU leaves out, count: their number
    is content.
    """

    def fold(*tile: Any, **given: Any) -> None:
        """Make nothing."""

    def multiply_into(sums: Tensor, a: Tensor, b: Tensor) -> None:
        torch.mm(a, b, out=sums.view(a.dtype)[:, : sums.shape[1]])  # the operations of `sums += a @ b`, and nothing that it does not hold

    with replaced(chunked_logprob, _forward_tile=fold, _backward_tile=fold, _addmm_fp32=multiply_into):
        yield
