"""Open a model's weights in float32 and prepare it for our code: nothing left to chance, no dropout, our norms, packed rows.

`load_weights` is what the loaders of stages.models.policy and stages.models.reward_model share.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig

from stages.adapter_base import read_base
from stages.blocks import HardwareSettings
from stages.internals import get_attention, get_own_numbers, is_partitioned
from stages.models import precision
from stages.models.adapters import is_unmerged_adapter, merge_adapter
from stages.models.classifier import find_classifier
from stages.models.head import HEAD, Float32Head
from stages.models.norms import fuse_norms
from stages.models.partition import gathered, partitioned
from stages.models.probe import Ways, enable_packing, find_ways
from stages.models.quiet import quiet
from stages.process.engine import Engine
from stages.process.errors import StageError
from stages.process.gpu import find_device
from stages.spec import ADAPTER_CONFIG, EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR

# What somebody who looked into the model has left in its config.json: what its forwards return, and how. It is no part of the model.
_OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def open_pretrained(auto_class: Any, path: str, **arguments: Any) -> Any:
    """Have a class of transformers open a directory, or a hub id; Python code that lies there is never run.

    Raises:
        StageError: it cannot (exit code 4), or only by code of its own (exit code 2), or its weights are damaged (exit code 3).
    """
    if auto_class in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        arguments["trust_remote_code"] = False  # without a word they would ask the terminal
    if auto_class is AutoConfig:
        arguments |= _OUTPUTS
    try:
        return _refuse_kernels(path, auto_class.from_pretrained(path, **arguments))
    except SafetensorError as error:
        raise StageError(
            f"{path}: found weights that are cut or damaged ({error}); needed whole ones; get them anew", EXIT_VERIFICATION
        ) from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise StageError(
                f"base_model: found Python code in {path} that opening it would run (`auto_map`); needed a model and a tokenizer that "
                "transformers opens by its own code; take another base model",
                EXIT_USAGE,
            ) from error
        if Path(path).is_absolute() and not Path(path).exists():  # of which transformers says that it is no hub id
            needed = "needed a model's directory, as the recipe or an adapter's config names it"
            raise StageError(f"{path}: found nothing there; {needed}; bring it there, or name where it is", EXIT_MISSING) from error
        raise StageError(f"{path} cannot be opened by {auto_class.__name__}.from_pretrained: {said:.400}", EXIT_MISSING) from error


def _refuse_kernels(path: str, opened: Any) -> Any:
    """Refuse a config that names its attention's code by a hub id (`kernels-community/...`): that would be fetched and run.

    Raises:
        StageError: It does (exit 2).
    """
    configs = (opened, opened.get_text_config()) if isinstance(opened, PretrainedConfig) else ()
    if named := next((name for name in map(str, map(get_attention, configs)) if "/" in name), None):
        found = f"base_model: found attn_implementation {named[:80]!r} in {path}/config.json, code of a hub that opening it would run"
        raise StageError(f"{found}; needed a model that transformers computes by its own; take that line out", EXIT_USAGE)
    return opened


def load_weights(
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    path: str,
    hardware: HardwareSettings,
    *,
    engine: Engine | None,
    new_head: bool = False,
    revision: str | None = None,
    on_cpu: bool = False,
) -> Any:
    """Load safetensors weights in float32; an adapter is merged into its base; no parameter may be left to chance.

    They go straight to where the stage computes: through the CPU's memory, eight processes would need eight models of it at once. What
    is loaded in pieces, or `on_cpu` since less of it will stay, comes there later.

    Raises:
        StageError: the family's code computes in none of our ways (see stages.models.probe), or weights are missing.
    """
    adapter = path if is_unmerged_adapter(Path(path)) else None
    path, revision = find_base(path, revision)
    config = open_pretrained(AutoConfig, path, revision=revision, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    ways = find_ways(config)
    model_class = find_classifier(config) if task == "SEQ_CLS" else AutoModelForCausalLM
    place = find_device(hardware)
    goes_straight = place.type != "cpu" and not on_cpu and not (engine and engine.shares_weights)
    with partitioned(engine):
        model, loading = open_pretrained(
            model_class,
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=choose_attention(config, hardware, ways),
            use_safetensors=True,
            revision=revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below: transformers itself raises what no stage would catch
            generation_config=GenerationConfig(),  # how others are to sample is nothing to us, and may be no valid file any more
            **({"device_map": {"": place}} if goes_straight else {}),
        )
    missing = {name for name in loading["missing_keys"] if not ((new_head or adapter) and name.startswith(f"{HEAD}."))}
    if missing or loading["mismatched_keys"]:
        raise StageError(
            f"{path}: weights missing or of another shape: {sorted(map(str, missing | set(loading['mismatched_keys'])))[:5]}; a complete "
            f"{type(model).__name__} is needed; they would have been drawn at random",
            EXIT_VERIFICATION,
        )
    if adapter:
        model = merge_adapter(model, adapter)
    model.unread = sorted(map(str, loading["unexpected_keys"]))  # tensors on the disk that the family's code has no place for
    precision.set_precision(model, hardware)
    finish_loading(model, hardware, ways)
    return model


def find_weights(path: str) -> str:
    """Get the directory (or the hub's name) that holds a model's own weights: the merged model of an adapter, if there is one."""
    directory = Path(path)
    merged = directory.parent / MERGED_DIR
    return str(merged) if (directory / ADAPTER_CONFIG).exists() and merged.exists() else path


def find_base(path: str, revision: str | None) -> tuple[str, str | None]:
    """Get (path, revision) of the whole weights that a model's directory, or that of an unmerged adapter, stands for."""
    directory = Path(path)
    if not is_unmerged_adapter(directory):
        return find_weights(path), revision
    return read_base(directory)


def choose_attention(config: Any, hardware: HardwareSettings, ways: Ways) -> str:
    """Choose the implementation that a model is opened with.

    Raises:
        StageError: the family does not compute by the one that is set; exit code 2.
    """
    if hardware.attention == "sdpa" and ways.attention != "sdpa":
        raise StageError(
            f"hardware.attention: found sdpa, which {config.model_type} does not compute by; needed: {ways.attention} or auto; set it",
            EXIT_USAGE,
        )
    return ways.attention if hardware.attention == "auto" else hardware.attention


def finish_loading(model: Any, hardware: HardwareSettings, ways: Ways, alike: Callable[[Any, Any], bool] | None = None) -> None:
    """Prepare a model that was opened for our code; `alike` tries norms, see `fuse_norms`."""
    if hasattr(model, HEAD):
        head: Any = model.get_submodule(HEAD)
        with gathered([head.weight]):  # a row of numbers: whole on every rank, to be drawn, shared and copied
            setattr(model, HEAD, Float32Head(torch.nn.Parameter(head.weight.detach().clone())))
    quiet(model)
    fuse_norms(model, alike)
    model.ways = ways
    if hardware.attention == "auto":
        enable_packing(model)


def count_broken_weights(model: torch.nn.Module, rank: int, *, frozen: bool = False) -> torch.Tensor:
    """Count the weights that learn, and `frozen` ones, whole tensors, in which this rank holds a number that is not finite."""
    return torch.stack(list(_look_for_broken(model, rank, frozen).values())).sum()


def name_broken_weights(model: torch.nn.Module, rank: int) -> str:
    """Name the first weights in which this rank holds a number that is not finite, as they are called below an adapter."""
    names = [name.removeprefix("base_model.model.") for name, broken in _look_for_broken(model, rank, True).items() if broken]
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _look_for_broken(model: torch.nn.Module, rank: int, frozen: bool) -> dict[str, torch.Tensor]:
    looked_at = {
        name: get_own_numbers(weight, rank) if is_partitioned(weight) else weight
        for name, weight in model.named_parameters()
        if weight.requires_grad or (frozen and weight.is_floating_point())
    }
    return {name: ~weight.detach().isfinite().all() for name, weight in looked_at.items()}
