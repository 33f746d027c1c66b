"""Open a model's weights in float32 and prepare it for our code: nothing left to chance, no dropout, our norms, packed rows.

`load_weights` is what the loaders of stages.models.policy and stages.models.reward_model share.
"""

import json
from pathlib import Path
from typing import Any

import torch

from stages.internals import get_piece, is_partitioned
from stages.models import precision
from stages.models.adapters import ADAPTER_CONFIG, is_unmerged_adapter, merge_adapter
from stages.models.forward import enable_packing
from stages.models.head import HEAD, Float32Head
from stages.models.norms import fuse_norms
from stages.models.partition import gathered, gathered_in_forward, partitioned
from stages.process.engine import Engine
from stages.process.errors import StageError
from stages.settings import HardwareSettings
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION, MERGED_DIR


def open_pretrained(auto_class: Any, path: str, **arguments: Any) -> Any:
    """Have a class of transformers open a directory, or a hub id.

    Raises:
        StageError: it cannot; exit code 4.
    """
    try:
        return auto_class.from_pretrained(path, **arguments)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be opened by {auto_class.__name__}.from_pretrained: {error}", EXIT_MISSING) from error


def load_weights(
    auto_class: Any,
    path: str,
    hardware: HardwareSettings,
    *,
    engine: Engine | None,
    new_head: bool = False,
    revision: str | None = None,
    **arguments: Any,
) -> Any:
    """Load safetensors weights in float32; an adapter is merged into its base; no parameter may be left to chance."""
    directory = Path(path)
    adapter = None
    if is_unmerged_adapter(directory):
        adapter = path
        config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        path, revision = config["base_model_name_or_path"], config.get("revision")
    else:
        path = find_weights(path)
    with partitioned(engine):
        model, loading = open_pretrained(
            auto_class,
            path,
            dtype=torch.float32,
            attn_implementation=_attention(hardware),
            use_safetensors=True,
            revision=revision,
            output_loading_info=True,
            **arguments,
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
    precision.set_precision(model, hardware)
    _finish_loading(model, hardware)
    return model


def find_weights(path: str) -> str:
    """Get the directory (or the hub's name) that holds a model's own weights: the merged model of an adapter, if there is one."""
    directory = Path(path)
    merged = directory.parent / MERGED_DIR
    return str(merged) if (directory / ADAPTER_CONFIG).exists() and merged.exists() else path


def _attention(hardware: HardwareSettings) -> str:
    return "sdpa" if hardware.attention == "auto" else hardware.attention


def _finish_loading(model: Any, hardware: HardwareSettings) -> None:
    if hasattr(model, HEAD):
        head: Any = model.get_submodule(HEAD)
        with gathered([head.weight]):  # a row of numbers: whole on every rank, to be drawn, shared and copied
            setattr(model, HEAD, Float32Head(torch.nn.Parameter(head.weight.detach().clone())))
    _disable_dropout(model)
    fuse_norms(model)
    if hardware.attention == "auto":
        with gathered_in_forward(model):
            enable_packing(model)


def _disable_dropout(model: Any) -> None:
    """Switch dropout off everywhere, attention's functional dropout included: log-probs are compared across passes."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    for key in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if getattr(model.config, key, None):
            setattr(model.config, key, 0.0)


def count_broken_weights(model: torch.nn.Module) -> torch.Tensor:
    """Count the weights that learn, whole tensors, in which this rank holds a number that is not finite."""
    learning = [get_piece(weight) if is_partitioned(weight) else weight for weight in model.parameters() if weight.requires_grad]
    return torch.stack([~weight.detach().isfinite().all() for weight in learning]).sum()
