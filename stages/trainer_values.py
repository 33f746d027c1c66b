"""Which values of TRL's arguments cannot be used, where TRL and transformers would say so only in the stage. Torch-free.

Tests compare the names of optimizers, and what may be chosen elsewhere, with those of the libraries.
"""

import difflib
import importlib.util
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

# Optimizer -> the module that transformers imports for it; empty: torch itself.
OPTIMIZERS: dict[str, str] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"), ""),
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"), "bitsandbytes"),
    **dict.fromkeys(("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), "bitsandbytes"),
    **dict.fromkeys(("lion_8bit", "lion_32bit", "paged_lion_32bit", "paged_lion_8bit"), "bitsandbytes"),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), "bitsandbytes"),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), "galore_torch"),
    **dict.fromkeys(("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), "galore_torch"),
    **dict.fromkeys(("lomo", "adalomo"), "lomo_optim"),
    "grokadamw": "grokadamw",
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), "schedulefree"),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), "apollo_torch"),
    "stable_adamw": "optimi",
}
_OF_PARTS = ("galore_torch", "apollo_torch")  # which learn a part of the weights in few dimensions
_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES: dict[str, tuple[str, ...]] = {
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "loss_type": ("nll", "dft", "chunked_nll"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "dataloader_multiprocessing_context": ("fork", "forkserver", "spawn"),
}
_COMPARED_CHARS = 100
DEBUG = ("underflow_overflow", "tpu_metrics_debug")  # several, with spaces between
_LEAST: dict[str, float] = {
    **dict.fromkeys(("dataloader_num_workers", "data_seed", "eval_delay", "neftune_noise_alpha", "label_smoothing_factor"), 0),
    "router_aux_loss_coef": 0,
    **dict.fromkeys(("torch_empty_cache_steps", "pad_to_multiple_of", "eval_accumulation_steps", "dataloader_prefetch_factor"), 1),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_timeout"), 1),
}
_MOST: dict[str, float] = {"label_smoothing_factor": 1, "data_seed": 2**32 - 1, "ddp_timeout": 10**9}
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "dict": (dict,), "list": (list,)}


def find_bad_value(name: str, arguments: Mapping[str, Any], kind: str, config_class: str) -> str | None:
    """Say what is wrong with the value of a field of TRL's; None: nothing that is known before.

    Args:
        name: The field.
        arguments: All that were given.
        kind: Its type, as the class's source or the class has it.
        config_class: The class's name, for the message.
    """
    value = arguments[name]
    found = f"found {value!r:.60}"
    if not _is_a(value, kind):
        if isinstance(value, str):
            is_quoted = re.fullmatch(r"[-+]?[0-9][0-9_.]*([eE][-+]?[0-9]+)?|true|false", value)
            todo = "write it without quotes" if is_quoted else "change it"
            return f"found the text {value!r:.60}, needed {_read_kind(kind)}, as TRL's {config_class} says; {todo}"
        return f"{found}, needed {_read_kind(kind)}, as TRL's {config_class} says; change it"
    if name == "max_steps" and value != -1 and value < 1:
        return f"{found}, needed at least 1, or -1 for what epochs say; change it"
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = _LEAST.get(name, -math.inf), _MOST.get(name, math.inf)
        if not math.isfinite(value) or value < least:
            return f"{found}, needed {f'at least {least}' if least > -math.inf else 'a finite number'}; change it"
        if value > most:
            return f"{found}, needed at most {most}; lower it"
    if isinstance(value, str):
        return _find_bad_text(name, value, arguments)
    workers = arguments.get("dataloader_num_workers", 0)
    if name in ("dataloader_prefetch_factor", "dataloader_persistent_workers") and value and not workers:
        return f"{found}, which needs dataloader_num_workers; give that too, or leave this out"
    return None


def _find_bad_text(name: str, value: str, arguments: Mapping[str, Any]) -> str | None:
    found = f"found {value!r:.60}"
    if name in CHOICES and value not in CHOICES[name]:
        return f"{found}, needed one of {', '.join(CHOICES[name])}{_suggest(value, CHOICES[name])}"
    if name == "debug" and (unknown := [word for word in value.split() if word not in DEBUG]):
        return f"found {unknown[0]!r:.60}, needed {' or '.join(DEBUG)}{_suggest(unknown[0], DEBUG)}"
    if name == "optim_args" and not re.fullmatch(r"\s*\w+\s*=[^=,]+(,\s*\w+\s*=[^=,]+)*", value):
        return f"{found}, needed key=value, such as 'momentum=0.9, nesterov=true'; write it so"
    if name == "optim":
        module = OPTIMIZERS.get(value)
        if module is None:
            of_torch = [each for each in OPTIMIZERS if not OPTIMIZERS[each]]  # always there: of all only one that is meant is named
            begun = [each for each in OPTIMIZERS if value and each.startswith(value)]
            meant = f"; did you mean {begun[0]}?" if begun else _suggest(value, OPTIMIZERS)
            return f"{found}, needed an optimizer of transformers, such as {', '.join(of_torch)}{meant}"
        if module and importlib.util.find_spec(module) is None:
            return f"{found}, needed the Python package that has {module}, which is not installed; install it, or choose another"
        if module in _OF_PARTS and not arguments.get("optim_target_modules"):
            return f"{found}, which needs optim_target_modules; give it, such as all-linear"
    return None


def _suggest(value: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(value[:_COMPARED_CHARS], known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; choose one"


def _read_kind(kind: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "a block", "list": "a list", "None": "null"}
    parts = _split(kind)
    return " or ".join(dict.fromkeys(words.get(part, "text") for part in parts))


def _split(kind: str) -> list[str]:
    """Split a union into its kinds: `dict[str, Any] | str | None` -> dict, str, None."""
    return [part.strip().rpartition(".")[2] for part in re.sub(r"\[[^\]]*\]*", "", kind).split("|")]


def _is_a(value: object, kind: str) -> bool:
    parts = _split(kind)
    if "Any" in parts or (value is None and ("None" in parts or "NoneType" in parts)):
        return True
    for part in parts:
        if part in _KINDS:
            if isinstance(value, _KINDS[part]) and (part == "bool" or not isinstance(value, bool)):
                return True
        elif part not in ("None", "NoneType") and isinstance(value, str):  # text, or a name of an enumeration
            return True
    return False
