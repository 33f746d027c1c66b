"""Models in pieces: at ZeRO stage 3 each weight is shared out over the ranks as it is loaded; no rank ever holds a whole model.

from_pretrained in `partitioned` (rank 0 reads a weight, each rank keeps its piece) -> what is done to a model before it trains, here

Everything here takes whole models too, and leaves them whole: the code that prepares a model is the same at every stage of ZeRO. What
touches pieces speaks to the other ranks: all must call it.
"""

import ctypes
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stages.internals import (
    HfDeepSpeedConfig,
    count_elements,
    filled_ungathered,
    get_piece,
    is_gathered,
    is_partitioned,
    unset_hf_deepspeed_config,
)
from stages.process.engine import Engine

_LARGE = 2**20  # bytes; what smaller weights leave behind does not add up


@contextmanager
def partitioned(engine: Engine | None) -> Generator[None]:
    """Inside, `from_pretrained` leaves each rank a piece of each weight.

    Args:
        engine: of the stage; None: every rank loads whole models, as it does by all engines but DeepSpeed at stage 3.
    """
    if engine is None or not engine.shares_weights:
        yield
        return
    config = HfDeepSpeedConfig(engine.configure_deepspeed())  # transformers looks at it for as long as it lives
    made = register_module_parameter_registration_hook(lambda _module, _name, weight: None if weight is None else return_freed(weight))
    try:
        with filled_ungathered(return_freed):
            yield
    finally:
        made.remove()
        del config
        unset_hf_deepspeed_config()


def gathered(parameters: Iterable[nn.Parameter], *, modified: bool = False) -> AbstractContextManager[Any]:
    """Inside, weights are whole on every rank; what was whole before, stays so behind it.

    Args:
        parameters: partitioned ones and whole ones.
        modified: they are changed inside; each rank then keeps its piece of what rank 0 made of them.
    """
    pieces = [parameter for parameter in parameters if is_partitioned(parameter) and not is_gathered(parameter)]
    if not pieces:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(pieces, modifier_rank=0 if modified else None)


@contextmanager
def gathered_in_forward(model: nn.Module) -> Generator[None]:
    """Inside, a model in pieces computes, one module's weights after the other; for forwards without DeepSpeed's engine around it."""
    gathers: dict[nn.Module, AbstractContextManager[Any]] = {}

    def gather(module: nn.Module, _inputs: Any) -> None:
        gathers[module] = gathered(module.parameters(recurse=False))
        gathers[module].__enter__()

    def release(module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        gathers.pop(module).__exit__(None, None, None)

    hooks: list[Any] = []
    for module in model.modules():
        if any(is_partitioned(parameter) for parameter in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(gather))
            hooks.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's weights, or this rank's pieces of them."""
    module.to(dtype)
    for parameter in filter(is_partitioned, module.parameters()):
        piece = get_piece(parameter)
        narrow = piece.to(dtype)
        piece.data = narrow.pin_memory() if piece.is_pinned() else narrow
        del narrow
        return_freed(parameter)


def return_freed(weight: torch.Tensor) -> None:
    """Give the system back what others have left behind in the CPU's memory, once a large weight there comes or has gone.

    Whole weights come and go between pieces that stay. glibc keeps the holes, and puts few of the next weights into them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not of every C library
    if trim and weight.device.type == "cpu" and count_elements(weight) * weight.element_size() >= _LARGE:
        trim(0)
