"""The only file that touches private parts of transformers, torch, peft, DeepSpeed and bitsandbytes: look here when one is upgraded.

What is imported here `as` itself is for others, and has no public name; the functions read and write what has no public accessor.
"""

import copy
import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import transformers.modeling_utils
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from transformers.integrations import deepspeed as transformers_deepspeed
from transformers.integrations import moe
from transformers.integrations.deepspeed import HfDeepSpeedConfig as HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config as unset_hf_deepspeed_config
from transformers.integrations.sdpa_attention import repeat_kv as repeat_kv
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa_attention_forward
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput as SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D as Conv1D
from transformers.utils import logging as transformers_logging

# peft opens bitsandbytes wherever it is installed, which then misses a kernel that it would download: a line in every log.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# accelerate asks for what is installed whenever it wraps or unwraps a model, and Python reads the answer anew: 9 ms, 40 times a stage.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
importlib.metadata.version = functools.cache(importlib.metadata.version)


def _compile_when_called(model: Any = None, **settings: Any) -> Any:
    """torch.compile, which reads its compiler before there is anything to compile: functions of bitsandbytes wait for their first call.

    It hands over four as peft opens it, of which LoRA in 4 bits needs two: 1.1 of the 6.6 CPU seconds of a stage's imports, and 44 MB.
    """
    if not getattr(model, "__module__", "").startswith("bitsandbytes."):
        return _compile(model, **settings)
    compiled = functools.cache(lambda: _compile(model, **settings))
    return lambda *inputs, **more: compiled()(*inputs, **more)


_torch: Any = torch
_compile, _torch.compile = _torch.compile, _compile_when_called


def _multiply_experts(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """Multiply rows with their experts' weights in the precision of autocast, which knows all products but these."""
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
    return _grouped_mm(input, weight, offs)


_grouped_mm, moe._grouped_mm = moe._grouped_mm, _multiply_experts


def holds_experts(module: Any) -> bool:
    """Whether a module's weights are those of a mixture of experts, each one tensor of all of them, and nothing else."""
    return hasattr(module, "_is_expert_parallel") and not module.has_post_expert_norm


def list_layers(model: Any) -> list[Any]:
    """List a model's transformer layers, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def silent_transformers() -> Generator[None]:
    """Inside, transformers does not warn: what is tried may well fail."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def replaced(module: Any, **others: Any) -> Generator[None]:
    """Inside, functions of a library's module, by their names, are others."""
    before = {name: getattr(module, name) for name in others}
    vars(module).update(others)
    try:
        yield
    finally:
        vars(module).update(before)


@contextmanager
def whole_models() -> Generator[None]:
    """Inside, transformers makes models whole, whatever configuration of DeepSpeed's stands: the arguments of a trainer set one."""
    with replaced(transformers_deepspeed, _hf_deepspeed_config_weak_ref=None):
        yield


def use_one_gpu(arguments: Any) -> None:
    """Have a trainer of transformers compute on this process's GPU alone, however many it sees: it would copy the model onto all."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def get_attention(config: Any) -> str:
    """Name the attention that a model computes by, as transformers registers it."""
    return config._attn_implementation


def replace_child(model: Any, name: str, child: torch.nn.Module) -> Any:
    """Copy a module around the very same tensors and children but one, which another takes the place of."""
    twin = copy.copy(model)
    twin._modules = {**model._modules, name: child}
    return twin


def copy_modules(module: Any, replace: Callable[[Any], Any] = lambda module: None) -> Any:
    """Copy a tree of modules around the very same tensors, uncompiled; of each that `replace` gives another for, that one is taken.

    What wraps a forward (a trainer's autocast) is left off: it would call the original.
    """
    if (found := replace(module)) is not None:
        return found
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin._compiled_call_impl = None
    twin._parameters = dict(module._parameters)
    twin._modules = {name: child if child is None else copy_modules(child, replace) for name, child in module._modules.items()}
    return twin


def is_compiled(module: Any) -> bool:
    """Whether `module.compile` was called."""
    return module._compiled_call_impl is not None


def allow_recompiles(limit: int) -> None:
    """Let torch.compile make so many variants of one function, at least."""
    torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)


def keep_kernels_apart() -> None:
    """Keep what torch.compile makes by the instructions that it is made for, unless the user says where.

    Its cache is looked up without them: one that was filled where ATEN_CPU_CAPABILITY, or the machine, was another gave NaN for states.
    """
    default = default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}-{torch.backends.cpu.get_cpu_capability().lower()}"


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Whether DeepSpeed shares a weight out over the ranks: this one holds a piece, and the tensor itself is empty."""
    return hasattr(parameter, "ds_tensor")


def get_piece(parameter: Any) -> torch.Tensor:
    """Get this rank's piece of a weight that is shared out."""
    return parameter.ds_tensor


def get_own_numbers(parameter: Any, rank: int) -> torch.Tensor:
    """Get a rank's piece of a weight that is shared out, without the padding behind the last number, in which DeepSpeed leaves anything."""
    piece = parameter.ds_tensor
    return piece[: max(0, parameter.ds_numel - rank * piece.numel())]


def count_elements(parameter: Any) -> int:
    """Count the numbers of a tensor: also of one that is shared out over the ranks, or held in 4 bits."""
    if is_partitioned(parameter):
        return parameter.ds_numel
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def is_gathered(parameter: Any) -> bool:
    """Whether a weight that is shared out is whole here at the moment."""
    return parameter.ds_status.name == "AVAILABLE"


@contextmanager
def filled_ungathered(tell: Callable[[torch.Tensor], None]) -> Generator[None]:
    """Inside, what transformers reads into a weight that is shared out is read into an empty one.

    Else it is gathered to be overwritten: by gloo, into a copy, two whole weights. `tell` hears of each, whole and shared out again.
    """
    import deepspeed

    loading: Any = transformers.modeling_utils
    gather, read = deepspeed.zero.GatheredParameters, loading._load_state_dict_into_zero3_model

    @contextmanager
    def fill(parameters: list[Any], modifier_rank: int) -> Generator[None]:
        for parameter in parameters:
            parameter.data = torch.empty(parameter.ds_shape, dtype=parameter.dtype, device=parameter.device)
            parameter.ds_status = type(parameter.ds_status).AVAILABLE
            tell(parameter)
        with gather(parameters, modifier_rank=modifier_rank):  # what is whole stays as it is; on leaving it is shared out
            yield
        for parameter in parameters:
            tell(parameter)

    def read_all(*arguments: Any, **keywords: Any) -> Any:
        with replaced(deepspeed.zero, GatheredParameters=fill):
            return read(*arguments, **keywords)

    with replaced(loading, _load_state_dict_into_zero3_model=read_all):
        yield


def skip_inference_kernel() -> None:
    """Have DeepSpeed do without a kernel for inference on one machine, which nothing here uses: it would be compiled for a minute.

    Nor does it look which of its other kernels could be compiled, as it does when it is first asked (with the C compiler, in each process,
    for a fifth of a second): only of this one it asks itself.
    """
    import deepspeed

    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def skip_input_casts(model: Any) -> None:
    """Have peft's layers take their inputs as they are: they would widen bfloat16 to their weights' float32, and autocast narrow it."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def find_refused_modules(model: Any) -> set[str]:
    """Name the linear layers of a model on which peft refuses an adapter: their fused kernels would pass it by."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    refused: set[str] = set()
    for name in {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name)
        except ValueError:
            refused.add(name)
    return refused


@contextmanager
def fakes() -> Generator[None]:
    """Inside, tensors that are made have a shape and no content; a module's weights are cast and moved in place, as those of real ones."""
    before = torch.nn.Module._apply

    def apply_in_place(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        for child in self.children() if recurse else ():
            child._apply(fn)
        with torch.no_grad():
            for tensor in (*self._parameters.values(), *self._buffers.values()):
                if tensor is not None and (made := fn(tensor)) is not tensor:
                    tensor.data = made
        return self

    torch.nn.Module._apply = apply_in_place  # torch's own swaps fake tensors, which it refuses where something refers to them
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.nn.Module._apply = before


def without_fakes() -> Any:
    """Inside of `fakes`, compute for real."""
    return unset_fake_temporarily()


def is_grouped_product(function: Any) -> bool:
    """Whether an operation is the products of a mixture of experts, of which torch knows shapes in bfloat16 alone."""
    return function is torch.ops.aten._grouped_mm.default


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no content."""
    return isinstance(tensor, FakeTensor)


def find_asked_device(function: Any, args: Any) -> torch.device | None:
    """Find the device of a fake tensor, where an operation is that question: torch asks it more often than it computes; None: it is not."""
    if function is not torch.ops.prim.device.default or not isinstance(args[0], FakeTensor):
        return None
    return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else args[0].fake_device


def get_storage_key(storage: Any) -> int:
    """Tell a storage from all others that live."""
    return storage._cdata
