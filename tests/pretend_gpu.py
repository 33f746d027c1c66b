"""A pretend GPU: tensors of the CPU that say they lie on `cuda:0`, so that branches for a GPU run where there is none.

    with pretend_gpu() as gpu:
        model.to("cuda")            # is_cuda, device.type == "cuda"; computed by the CPU
        gpu.syncs                   # "update.py:120 code of the line" -> how often the CPU would have waited for the GPU there

What it shows:

- that a branch for a GPU runs: its names, shapes, dtypes, and what it computes (by the CPU's kernels);
- tensors of two devices in one operation, which a GPU refuses: they raise here too; scalars (0 axes) of the CPU are allowed, as there;
- where the CPU waits: `.item()`, `.tolist()`, `int()`, `bool()`, boolean indices, `nonzero`, and copies in either direction that are not
  asked for with `non_blocking=True` (a Python list that becomes a tensor of the GPU is one);
- what a process with several visible GPUs is told (`pretend_gpu(2)`); all tensors lie on the first.

What it does not: kernels of CUDA (numbers, speed, memory, limits of shapes), streams and their races, NCCL, DeepSpeed and bitsandbytes on a
GPU, torch.compile, and whatever C++ decides by a tensor's device: it sees the CPU. Autocast of "cuda" is that of the CPU,
which casts fewer operations. Gradients are marked when they are read. CUDA graphs are replaced by operations that are run again
(tests/pretend_graph.py), and `varlen_attn` by the slow reference below, which other tests compare with the groups that CPUs attend by; that
the kernel does the same only a GPU can show (`make gpu-check`).
"""

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from transformers import PreTrainedModel

from tests.pretend_graph import make_graph_functions

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
_WAITS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique", "numpy", "is_nonzero"}
_WAITS |= {"equal", "allclose", "argwhere", "bincount"}
_MOVES = {"to", "cpu", "cuda"}
# What may see both devices: it copies, or it moves a parameter.
_MIXES = {"copy_", "set_", "_has_compatible_shallow_copy_type", "__set__", "__get__"}
_MEMORY = 80 * 2**30
_find_name = functools.cache(resolve_name)  # which sets up filters of warnings at each call


class PretendGPU(TorchFunctionMode):
    """Marks storages as the GPU's; see the page above."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()
        self.loaded_straight: list[str] = []  # classes of models that were loaded by a device map
        self.capturing = self.waits_raise = False  # see tests/pretend_graph.py
        self._marked: dict[int, StorageWeakRef] = {}

    @property
    def num_syncs(self) -> int:
        return self.syncs.total()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies on the pretend GPU."""
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return False
        key = tensor.untyped_storage()._cdata
        found = self._marked.get(key)
        if found is not None and found.expired():
            del self._marked[key]
            return False
        return found is not None

    def mark(self, result):
        """Put all tensors of a result onto the pretend GPU."""
        for tensor in _find_tensors(result):
            if tensor.device.type == "cpu" and tensor.layout == torch.strided:
                self._marked[tensor.untyped_storage()._cdata] = StorageWeakRef(tensor.untyped_storage())
        return result

    def wait(self) -> None:
        """Count a wait, at the line of ours that asked for it."""
        if self.capturing or self.waits_raise:
            raise RuntimeError("called a synchronizing CUDA operation")
        frame = sys._getframe(1)
        while frame is not None and "/stages/" not in frame.f_code.co_filename.replace("/tests/stages/", "/tests/"):
            frame = frame.f_back
        self.syncs["elsewhere" if frame is None else f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"] += 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return self._call(func, getattr(func, "__name__", str(func)), list(args), dict(kwargs or {}))

    def _call(self, func, name, args, kwargs):
        full_name = _find_name(func) or name
        if full_name.endswith(("device.__get__", "is_cuda.__get__")):
            held = self.holds(args[0])
            return held if "is_cuda" in full_name else CUDA if held else func(*args)
        kwargs.pop("pin_memory", None)
        if name == "pin_memory":
            return args[0].clone()
        given = _find_tensors((args, kwargs))
        held = [tensor for tensor in given if self.holds(tensor)]
        if name in _MOVES and isinstance(args[0], torch.Tensor):
            return self._move(func, name, args, kwargs)
        place = _as_device(kwargs.get("device"))
        if place is not None and place.type == "cuda":
            kwargs["device"] = CPU
            if name in ("tensor", "as_tensor") and not held:
                self.wait()  # numbers of the CPU: copied
            return self.mark(func(*args, **kwargs))
        if held:
            self._check(full_name, name, args, given)
        if name == "histc" and not args[0].is_floating_point():  # which the CPU's kernel refuses
            return self.mark(func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype))
        result = func(*args, **kwargs)
        if name == "copy_":
            return result  # what is copied into stays where it is
        goes_on = name not in _WAITS or name in ("nonzero", "masked_select", "unique", "argwhere", "bincount")
        return self.mark(result) if held and goes_on and (place is None or place.type != "cpu") else result

    def _check(self, full_name, name, args, given):
        """Count waits, and refuse tensors of two devices."""
        if name in _WAITS or (name == "where" and len(args) == 1) or (name == "repeat_interleave" and len(given) > 1):
            self.wait()
        if name in ("__getitem__", "__setitem__") and any(index.dtype == torch.bool for index in _find_tensors(args[1])):
            self.wait()
        others = [tensor for tensor in given if tensor.device.type == "cpu" and not self.holds(tensor)]
        strange = [tensor for tensor in others if tensor.dim() or name in ("stack", "cat", "concat")]
        if not strange or name in _MIXES:
            if name == "copy_" and strange and not (len(args) > 2 and args[2]):
                self.wait()
            return
        if name in ("__getitem__", "__setitem__") and self.holds(args[0]):
            self.wait()  # an index of the CPU is copied
            return
        raise RuntimeError(f"{full_name}: tensors of two devices: {[(tuple(tensor.shape), self.holds(tensor)) for tensor in given]}")

    def _move(self, func, name, args, kwargs):
        before = self.holds(args[0])
        places = [(index, place) for index, value in enumerate(args[1:], 1) if (place := _as_device(value)) is not None]
        target = places[0][1] if places else _as_device(kwargs.get("device"))
        like = next((value for value in args[1:] if isinstance(value, torch.Tensor)), None)
        if like is not None:
            target = CUDA if self.holds(like) else CPU
        for index, _ in places:
            args[index] = CPU
        if "device" in kwargs:
            kwargs["device"] = CPU
        if name in ("cpu", "cuda"):
            target, func, args = torch.device(name), torch.Tensor.to, [args[0], CPU]
        waits = not kwargs.get("non_blocking", False) and True not in args[2:]
        after = before if target is None else target.type == "cuda"
        moved = func(*args, **kwargs)
        if before == after:
            return self.mark(moved) if after else moved
        if waits or before:
            self.wait()
        if moved.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
            moved = moved.clone()
        return self.mark(moved) if after else moved


def _as_device(value):
    if isinstance(value, int) and not isinstance(value, bool):
        return None
    if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda"):
        value = torch.device(value)
    return value if isinstance(value, torch.device) and value.type in ("cpu", "cuda") else None


def _find_tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    found = []
    for item in value:
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, list | tuple | dict):
            found += _find_tensors(item)
    return found


def attend_slowly(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """Compute what `torch.nn.attention.varlen.varlen_attn` is documented to, one document and head after the other.

    With a window, the last query of a document is the one that stands at its last key (bottom right).
    """
    assert query.dim() == 3 and key.shape == value.shape and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.shape[1] % key.shape[1] == 0 and (enable_gqa or query.shape[1] == key.shape[1])
    scale = query.shape[2] ** -0.5 if scale is None else scale
    if seqused_k is not None:
        return attend_parts_slowly(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, seqused_k)
    starts_q, starts_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (starts_q[-1], starts_k[-1]) == (len(query), len(key)), "every token must belong to a document: others come out undefined"
    lengths_q, lengths_k = (torch.tensor(starts).diff().tolist() for starts in (starts_q, starts_k))
    assert (max(lengths_q), max(lengths_k)) == (max_q, max_k)
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for start_q, length_q, start_k, length_k in zip(starts_q, lengths_q, starts_k, lengths_k, strict=False):
        place_Q1 = torch.arange(length_q, device=query.device)[:, None] + (length_k - length_q)
        place_K = torch.arange(length_k, device=query.device)
        seen_QK = torch.ones(length_q, length_k, dtype=torch.bool, device=query.device)
        if window_size[0] >= 0:
            seen_QK = seen_QK & (place_K >= place_Q1 - window_size[0])
        if window_size[1] >= 0:
            seen_QK = seen_QK & (place_K <= place_Q1 + window_size[1])
        heads = []
        for head in range(query.shape[1]):
            query_QE = query[start_q : start_q + length_q, head].float()
            key_KE, value_KE = (tensor[start_k : start_k + length_k, head // repeats].float() for tensor in (key, value))
            weights_QK = (query_QE @ key_KE.T * scale).masked_fill(~seen_QK, -torch.inf).softmax(dim=-1)
            heads.append((weights_QK @ value_KE).to(query.dtype))
        outputs.append(torch.stack(heads, dim=1))
    return torch.cat(outputs)


def attend_parts_slowly(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, seqused_k):
    """The same for one query a document, which sees the first keys of it; without reading a number, since a graph may be captured."""
    assert max_q == 1 and len(query) == len(seqused_k) == len(cu_seq_q) - 1 == len(cu_seq_k) - 1 and seqused_k.dtype == torch.int32
    place_K = torch.arange(max_k, device=query.device)
    place_BK = (cu_seq_k[:-1, None] + place_K).clamp(max=len(key) - 1)
    key_BKHE, value_BKHE = (tensor[place_BK].float().repeat_interleave(query.shape[1] // key.shape[1], 2) for tensor in (key, value))
    weights_BHK = torch.einsum("bhe,bkhe->bhk", query.float(), key_BKHE) * scale
    weights_BHK = weights_BHK.masked_fill(place_K >= seqused_k[:, None, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("bhk,bkhe->bhe", weights_BHK, value_BKHE).to(query.dtype)


@contextmanager
def pretend_gpu(count: int = 1, *, has_bfloat16: bool = True, capability: tuple[int, int] = (9, 0)) -> Iterator[PretendGPU]:
    """Inside, torch finds so many GPUs, of a Hopper's compute capability."""
    mode = PretendGPU()
    autocast, is_enabled, get_dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    def real(device_type):
        return "cpu" if device_type == "cuda" else device_type

    def attend(*given, **more):
        with torch._C.DisableTorchFunction():  # a kernel does not wait, and this one reads lengths
            result = attend_slowly(*given, **more)
        return mode.mark(result)

    class Autocast(autocast):
        def __init__(self, device_type, *given, **more):
            super().__init__(real(device_type), *given, **more)

    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "get_device_name": lambda *_: "a pretend GPU",
        "get_device_capability": lambda *_: capability,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
        "is_bf16_supported": lambda including_emulation=True: has_bfloat16,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "mem_get_info": lambda *_: (_MEMORY, _MEMORY),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 1,
        "max_memory_allocated": lambda *_: 1,
        "reset_peak_memory_stats": lambda *_: None,
        "_lazy_init": lambda: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "get_rng_state_all": lambda: [],
        "set_rng_state_all": lambda _states: None,
        "manual_seed_all": lambda _seed: None,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **cuda, **make_graph_functions(mode)))
        stack.enter_context(
            patch.multiple(torch.cuda.random, get_rng_state=lambda *_: torch.get_rng_state(), set_rng_state=lambda *_: None)
        )
        stack.enter_context(patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True))
        stack.enter_context(patch.object(torch, "autocast", Autocast))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda kind="cuda": is_enabled(real(kind))))
        stack.enter_context(patch.object(torch, "get_autocast_dtype", lambda kind: get_dtype(real(kind))))
        stack.enter_context(patch.dict(sys.modules, {"torch.nn.attention.varlen": SimpleNamespace(varlen_attn=attend)}))
        for state in (PartialState, AcceleratorState, GradientState):  # as in a process that has just begun
            stack.enter_context(patch.dict(state._shared_state, clear=True))
        load = PreTrainedModel.from_pretrained.__func__

        def load_and_move(cls, *given, device_map=None, **more):
            loaded = load(cls, *given, **more)
            if device_map is not None:
                model = loaded[0] if isinstance(loaded, tuple) else loaded
                mode.loaded_straight.append(type(model).__name__)
                model.to(device_map[""])
            return loaded

        stack.enter_context(patch.object(PreTrainedModel, "from_pretrained", classmethod(load_and_move)))
        stack.enter_context(mode)
        yield mode
