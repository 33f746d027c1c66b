"""Adapters (LoRA, by peft): put one on a model, merge one, and find the model that one is wrapped around."""

import copy
import itertools
import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from stages.blocks import HardwareSettings, LoRASettings
from stages.internals import find_refused_modules, skip_input_casts
from stages.models.head import HEAD
from stages.models.kernels import is_pretended
from stages.models.partition import gathered
from stages.models.precision import freeze
from stages.models.quantization import quantize_layers
from stages.process.errors import StageError
from stages.process.gpu import finds_gpu
from stages.spec import ADAPTER_CONFIG, EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR


def share_weights(model: Any) -> Any:
    """Copy a model's modules around the very same tensors: an adapter that is put into one of them is not in the other."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def find_model(model: Any) -> Any:
    """Get the transformers model inside peft's wrapper, if there is one; adapters in it stay."""
    return model.get_base_model() if is_adapter(model) else model


def find_backbone(model: Any) -> Any:
    """Get the transformer below a language model's or a reward model's head; adapters in it stay."""
    return find_model(model).base_model


def apply_lora(
    model: PreTrainedModel,
    lora: LoRASettings,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    hardware: HardwareSettings,
    revision: str | None = None,
) -> Any:
    """Freeze a model (in 4 bits with `lora.quantize`) and wrap it in a trainable adapter.

    A reward model's head is trained and saved in full beside it.

    Raises:
        StageError: peft refuses the target modules, or one of them shares its weight with another module, or would learn nothing; exit
            code 2.
    """
    from peft import get_peft_model

    config = make_lora_config(model, lora, task, revision=revision, modules_to_save=[HEAD] if task == "SEQ_CLS" else None)
    if lora.quantize:
        quantize_layers(model, hardware)
    try:
        adapted = get_peft_model(freeze(model, hardware), config)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise StageError(
            f"lora.target_modules: found {lora.target_modules} for {type(model).__name__}, which peft refuses: {said}", EXIT_USAGE
        ) from error
    _refuse_missing_targets(adapted, lora)
    refuse_tied_targets(adapted)
    _refuse_bypassed_targets(adapted)
    settle_casts(adapted, hardware)
    adapted.create_or_update_model_card = lambda directory: None  # an empty one, made anew with each checkpoint
    return adapted


def _refuse_missing_targets(adapted: Any, lora: LoRASettings) -> None:
    """Refuse a name in a list of targets that no module has: peft is content with one that is found, and half an adapter would learn."""
    if isinstance(lora.target_modules, str):
        return
    adapted_names = [f".{name}" for name in adapted.targeted_module_names]
    plain = [name for name in lora.target_modules if "." not in name]  # others may name a layer, of which a miniature has few
    if missing := [name for name in plain if not any(found.endswith(f".{name}") for found in adapted_names)]:
        there = {name.rpartition(".")[2] for name, module in find_model(adapted).named_modules() if hasattr(module, "lora_A")}
        found = f"{', '.join(missing)}, which no module is called; beside it is {', '.join(sorted(there))}"
        raise StageError(f"lora.target_modules: found {found}; needed names of modules; mend or leave it out", EXIT_USAGE)


def settle_casts(model: Any, hardware: HardwareSettings) -> None:
    """Have adapters on a GPU compute in bfloat16 without a detour by float32, where the precision is that; to be done last."""
    if (finds_gpu(hardware) or is_pretended()) and hardware.computes_in_bfloat16:
        skip_input_casts(model)


def _refuse_bypassed_targets(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    bypassed: frozenset[str] = find_model(model).ways.bypassed
    targets = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if found := sorted(targets & bypassed):
        raise StageError(
            f"lora.target_modules: found {', '.join(found)}, whose weights {type(find_model(model)).__name__} reads without a call of the "
            "layer; needed: layers that are called, since an adapter elsewhere would learn nothing; leave it out",
            EXIT_USAGE,
        )


def refuse_head_target(model: Any) -> None:
    """Refuse an adapter on a language model's head, by whose weight the loss of SFT and pre-training multiplies without a call of it.

    Raises:
        StageError: exit code 2.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = find_model(model).get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        found = next(name for name, module in find_model(model).named_modules() if module is head)
        raise StageError(
            f"lora.target_modules: found {found}, by whose weight the loss multiplies without a call of the layer; needed: layers that are "
            "called, since an adapter elsewhere would learn nothing; leave it out, or train without lora",
            EXIT_USAGE,
        )


def require_target_below_head(model: Any) -> None:
    """Refuse an adapter on the head alone: the critic, which has none of a language model, would get no adapter.

    Raises:
        StageError: exit code 2.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in find_backbone(model).modules()):
        head = next(name for name, module in find_model(model).named_modules() if isinstance(module, BaseTunerLayer))
        raise StageError(
            f"lora.target_modules: found {head} alone, which the critic has not; needed a module below the head as well, such as "
            "q_proj; give one, or all-linear",
            EXIT_USAGE,
        )


def refuse_tied_targets(model: Any) -> None:
    """Refuse an adapter on a weight that two modules share: what is merged into one would change the other.

    Raises:
        StageError: exit code 2.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners: dict[int, list[str]] = {}
    for name, parameter in model.get_base_model().named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.replace(".base_layer", "").removesuffix(".weight"))
    for module in model.modules():
        names = owners.get(id(getattr(module.get_base_layer(), "weight", None)), []) if isinstance(module, BaseTunerLayer) else []
        if len(names) > 1:
            found = next(name for name in names if module is model.get_base_model().get_submodule(name))
            others = ", ".join(name for name in names if name != found)
            raise StageError(
                f"lora.target_modules: found {found.rpartition('.')[2]}, whose weight is also that of {others}; needed: modules with "
                "weights of their own, since merging the adapter into one would change the other; leave it out, or train without lora",
                EXIT_USAGE,
            )


def make_lora_config(
    model: Any,
    lora: LoRASettings,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    *,
    revision: str | None = None,
    modules_to_save: list[str] | None = None,
) -> Any:
    """Say in peft's terms what an adapter on a model is; `all-linear` leaves out where one is refused, or would learn nothing."""
    from peft import LoraConfig

    bypassed: frozenset[str] = model.ways.bypassed
    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=sorted(find_refused_modules(model) | bypassed) if lora.target_modules == "all-linear" else None,
        modules_to_save=modules_to_save,
        revision=revision,
    )


def is_adapter(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "get_base_model")  # `peft_config` also stays on a model whose adapter was merged


def require_adapter_base(path: str, setting: str, made_by: str = "sft") -> None:
    """Refuse to train an adapter on a base that does not open by itself.

    Args:
        path: the base.
        setting: that asks for an adapter on it.
        made_by: the stage that left it.

    Raises:
        StageError: `path` holds an adapter and there is no merged model beside it.
    """
    if is_unmerged_adapter(Path(path)):
        raise StageError(
            f"{setting} trains an adapter on {path}, which is itself an adapter; a base that opens by itself is needed; "
            f"set {made_by}.lora.merge: true",
            EXIT_VERIFICATION,
        )


def is_unmerged_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and there is no merged model beside it."""
    return (directory / ADAPTER_CONFIG).exists() and not (directory.parent / MERGED_DIR).exists()


def take_adapter(model: Any, directory: Path) -> None:
    """Set the adapter of a model to one that was trained on the same base, in the same places.

    Raises:
        StageError: It has other places or sizes; exit code 3.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    found, own = load_peft_weights(str(directory), device="cpu"), get_peft_model_state_dict(model)
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in own.items()}:
        told = f"found an adapter in {directory} with other places or ranks than lora says"
        raise StageError(f"{told}; needed the same, to go on with it; set lora as it was made", EXIT_VERIFICATION)
    set_peft_model_state_dict(model, found)


def merge_adapter(model: Any, adapter: str) -> Any:
    """Add an adapter, from its directory, to the weights of the model that it was trained on; all of them can learn then.

    Raises:
        StageError: It is of tokens before the prompt, not of weights; exit code 2.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged: Any = PeftModel.from_pretrained(model, adapter)
    if not hasattr(merged.base_model, "merge_and_unload"):
        kind = merged.peft_config[merged.active_adapter].peft_type
        found = f"found an adapter that cannot be merged ({getattr(kind, 'value', kind)})"
        raise StageError(f"{adapter}: {found}; needed one that changes weights, as LoRA does, or a whole model; take such one", EXIT_USAGE)
    for layer in merged.modules():
        if isinstance(layer, BaseTunerLayer):
            with gathered(layer.get_base_layer().parameters(), modified=True):
                layer.merge()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = merged.merge_and_unload()
    return merged.requires_grad_(True)  # peft has frozen what lies below the adapter
