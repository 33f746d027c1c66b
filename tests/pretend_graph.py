"""What stands for a CUDA graph on a pretend GPU: operations that are written down while they run, and run again on the very same tensors.

As on a GPU, a capture leaves all tensors as they were, nothing in it may wait, and a replay repeats what the host decided while it was
captured: a number of Python's that has changed since, or a tensor that was made elsewhere since, is not seen. Unlike there, memory that a
replay would find used by somebody else is held.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


def _find_storages(values):
    return {value.untyped_storage()._cdata: value.untyped_storage() for value in values if isinstance(value, torch.Tensor)}


def _flatten(result):
    return [result] if isinstance(result, torch.Tensor) else tree_flatten(result)[0]


class _Recorder(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.before = {}  # storages that were written to, and what they held
        self.made = {}  # storages of the capture itself

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _find_storages(tree_flatten((args, kwargs))[0])
        if func._schema.is_mutable:
            for key, storage in given.items():
                if key not in self.made and key not in self.before:
                    self.before[key] = storage, storage.clone()
        result = func(*args, **kwargs)
        results = _flatten(result)
        if not func.is_view:  # whose memory is that of its argument, in a replay too
            self.graph.calls.append((func, args, kwargs, results))
        self.made |= {key: storage for key, storage in _find_storages(results).items() if key not in given}
        return result


class PretendGraph:
    """Stands for torch.cuda.CUDAGraph."""

    num_captures = 0
    num_replays = 0

    def __init__(self):
        self.calls = []

    def replay(self):
        PretendGraph.num_replays += 1
        # Autocast has put its casts among the operations.
        with torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
            for func, args, kwargs, results in self.calls:
                for old, new in zip(results, _flatten(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Capture:
    """Stands for torch.cuda.graph."""

    def __init__(self, mode, graph, pool=None, capture_error_mode="global"):
        self.mode, self.recorder = mode, _Recorder(graph)

    def __enter__(self):
        assert not self.mode.capturing, "one capture at a time"
        self.mode.capturing = True
        self.recorder.__enter__()

    def __exit__(self, *error):
        self.recorder.__exit__(*error)
        self.mode.capturing = False
        for storage, held in self.recorder.before.values():
            storage.copy_(held)
        PretendGraph.num_captures += error[0] is None


def make_graph_functions(mode):
    """Make what stands in torch.cuda, by name; `mode` is the pretend GPU."""

    def set_debug(level):
        mode.waits_raise = level == "error"

    return {
        "CUDAGraph": PretendGraph,
        "graph": lambda graph, **given: _Capture(mode, graph, **given),
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda *_: SimpleNamespace(),
        "stream": lambda _stream: nullcontext(),
        "get_sync_debug_mode": lambda: "error" if mode.waits_raise else "default",
        "set_sync_debug_mode": set_debug,
    }
