"""How much memory tensors hold while real code runs, and how many floating-point operations it makes: of fake tensors or of real ones.

code under `Live` -> bytes of all storages that live, at each moment -> the peak of each phase

Under fake tensors indices stay real: what is computed of whole numbers alone (lengths, masks, where documents lie) is computed, so that
code which reads such numbers runs; floating-point tensors have a shape and no content. What is too large for lengths and masks has none
either: a comparison of each token with each entry of the vocabulary, which nobody reads, would take most of the time.
"""

import math
import weakref
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from stages.internals import TorchDispatchMode, find_asked_device, get_storage_key, is_fake, is_grouped_product, without_fakes

_INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
# Torch counts none of these by itself.
_IN_PLACE: dict[Any, Any] = {torch.ops.aten.addmm_: torch.ops.aten.addmm, torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}
_READ = 2**22  # elements of the largest tensor of whole numbers that code under a trace may read


class Live(TorchDispatchMode):
    """Counts the storages that are made, or seen for the first time, inside of it, and the operations of products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self.flops = 0
        self._sizes: dict[int, int] = {}

    def start(self) -> int:
        """Begin a phase: its peak and its operations are counted from here; returns the bytes that live already."""
        self.peak, self.flops = self.now, 0
        return self.now

    def hold(self, tensors: Any) -> None:
        """Count tensors that were made elsewhere, for as long as they live."""
        for tensor in get_leaves(tensors):
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (device := find_asked_device(function, args)) is not None:
            return device
        kwargs = kwargs or {}
        given = get_leaves((args, kwargs))
        made = _run(function, given, args, kwargs)
        packet: Any = getattr(function, "overloadpacket", None)
        packet = _IN_PLACE.get(packet, packet)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=made)
        elif is_grouped_product(function):
            self.flops += _count_grouped(args[0], args[1])
        self.hold(given)
        self.hold(made)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = get_storage_key(storage), storage.nbytes()
        before = self._sizes.get(key)
        if before is None:
            weakref.finalize(storage, self._drop, key)
        if size != before:  # a storage can grow, and shrink to nothing (DeepSpeed frees gathered weights so)
            self._sizes[key] = size
            self.now += size - (before or 0)
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _run(function: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """Compute what is made of whole numbers alone and may be read, and everything where nothing is fake."""
    if any(map(is_fake, given)):
        if function in _INDEX:
            args = (args[0], [_list_places(index) for index in args[1]], *args[2:])
        return _multiply_groups(*args, **kwargs) if is_grouped_product(function) else function(*args, **kwargs)
    if given:
        if _makes_too_much(function, given):
            return function(*args, **kwargs)
        with without_fakes():
            return function(*args, **kwargs)
    made = function(*args, **kwargs)
    leaves = get_leaves(made)
    if any(map(is_fake, leaves)) and not any(leaf.is_floating_point() for leaf in leaves):
        with without_fakes():
            return function(*args, **kwargs)
    return made


def _makes_too_much(function: Any, given: list[torch.Tensor]) -> bool:
    """Whether what an operation makes, element by element, is too large for lengths and masks."""
    if torch.Tag.pointwise not in getattr(function, "tags", ()):
        return False
    return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in given))) > _READ


def _multiply_groups(left: torch.Tensor, right: torch.Tensor, groups: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    """Make the product without content, in any precision: rows of one side belong to groups, or what is summed over does."""
    sizes = [*left.shape[:-1], right.shape[-1]]
    if left.dim() == right.dim() == 2 and groups is not None:  # weights' gradients: a matrix of each group
        sizes = [len(groups), *sizes]
    elif left.dim() > right.dim():
        sizes = sizes[1:]
    return left.new_empty(sizes, dtype=kwargs.get("out_dtype") or left.dtype)


def _count_grouped(left: torch.Tensor, right: torch.Tensor) -> int:
    """Count operations: each row meets the matrix of its group alone."""
    rows = left.shape[-2] * (left.shape[0] if left.dim() == right.dim() == 3 else 1)
    return 2 * rows * left.shape[-1] * right.shape[-1]


def _list_places(index: Any) -> Any:
    """Say where a mask is True: of what is fake, only indices say how much is left."""
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim() == 1 and not is_fake(index):
        with without_fakes():
            return index.nonzero()[:, 0]
    return index


def get_leaves(tree: Any) -> list[torch.Tensor]:
    """List the tensors in nested lists, tuples and dictionaries."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [leaf for part in parts for leaf in get_leaves(part)]
