"""Load and save policies and reward models, full or as adapters.

A reward model is an `AutoModelForSequenceClassification` with one label. Its score of a response is

    score = (logit - score_bias) / score_scale

with both in `score.json` beside the weights (and on the loaded model's config), and the bias chosen so that
demonstrations score 0 on average (Ziegler et al. 2019, 2.1).
"""

import copy
import itertools
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.template_check import require_special_tokens
from stages.norms import fuse_norms
from stages.packing import PackedRow, compute_hidden_states, enable_packing, is_packed
from stages.partition import gathered, gathered_in_forward, partitioned
from stages.precision import Float32Head, freeze
from stages.quantization import quantize_layers
from stages.runtime import StageContext, StageError
from stages.settings import HardwareSettings, LoRASettings
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR
from stages.unread import skip_unread

ADAPTER_CONFIG = "adapter_config.json"
CALIBRATION_FILE = "score.json"
HEAD = "score"


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check that it can carry the token stream (template, end token, a pad token of its own)."""
    tokenizer = _load(AutoTokenizer, path, revision=revision)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _choose_pad_token(tokenizer, path)
    require_special_tokens(tokenizer)
    return tokenizer


def load_policy(
    path: str, hardware: HardwareSettings, revision: str | None = None, *, zero3: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load a causal language model in float32, without dropout and with a neutral generation config.

    Args:
        path: a directory, or a hub id.
        hardware: how its attention is computed.
        revision: of a model from the hub.
        zero3: DeepSpeed's configuration where weights are shared out as they are loaded, see `stages.partition`; so in all loaders here.
    """
    model = _load_weights(AutoModelForCausalLM, path, hardware, zero3=zero3, revision=revision)
    # A base model's repetition penalty, top-k or temperature must never leak into rollouts or evaluations.
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    return model


def init_reward_model(path: str, hardware: HardwareSettings, seed: int, *, zero3: dict[str, Any] | None = None) -> PreTrainedModel:
    """Start a reward model from an SFT model: its backbone, and a scalar head drawn from N(0, 1/(d+1)) (N+ details, 10)."""
    if is_unmerged_adapter(Path(path)):
        # peft opens an adapter only on the kind of model that it was trained on: merge there, then take the backbone.
        model: Any = put_head_on(load_policy(path, hardware, zero3=zero3))
    else:
        model = _load_weights(AutoModelForSequenceClassification, path, hardware, zero3=zero3, new_head=True, num_labels=1)
    head = model.get_submodule(HEAD)
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    model.config.score_bias, model.config.score_scale = 0.0, 1.0
    return model


def load_reward_model(path: str, hardware: HardwareSettings, *, zero3: dict[str, Any] | None = None) -> PreTrainedModel:
    """Load a trained reward model; a head that is missing or of another shape is refused, never drawn anew."""
    model = _load_weights(AutoModelForSequenceClassification, path, hardware, zero3=zero3, num_labels=1)
    read_calibration(model, path)
    return model


def load_reward_adapter(policy: PreTrainedModel, path: str) -> Any:
    """Open a reward model that is an adapter on a policy, around the policy's own weights."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(put_head_on(policy), path)
    read_calibration(find_model(model), path)
    return model


def read_calibration(reward_model: Any, path: str) -> None:
    """Put a trained reward model's bias and scale onto its config."""
    try:
        calibration = json.loads((Path(path) / CALIBRATION_FILE).read_text(encoding="utf-8"))
        config = reward_model.config
        config.score_bias, config.score_scale = float(calibration["score_bias"]), float(calibration["score_scale"])
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}: no readable {CALIBRATION_FILE} ({error}); a reward model of this project is needed; run the rm stage",
            EXIT_VERIFICATION,
        ) from error


def put_head_on(policy: PreTrainedModel) -> Any:
    """Make a reward model around a policy's transformer: the tensors are the policy's own, the scalar head is zero."""
    transformer = share_weights(policy).base_model
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):  # a transformer of its own would be thrown away
        model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, transformer)
    head = model.get_submodule(HEAD)
    weight = torch.nn.Parameter(torch.zeros(head.weight.shape, device=policy.device))
    setattr(model, HEAD, Float32Head(weight))
    model.config = transformer.config  # one config: whoever changes the attention changes both
    model.config.num_labels = 1
    return model.eval()


def share_weights(model: Any) -> Any:
    """Copy a model's modules around the very same tensors: an adapter that is put into one of them is not in the other."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's config name the tokenizer's pad and end tokens, so that the saved model ends and pads by them."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def find_model(model: Any) -> Any:
    """Get the transformers model inside peft's wrapper, if there is one; adapters in it stay."""
    return model.get_base_model() if is_adapter(model) else model


def find_backbone(model: Any) -> Any:
    """Get the transformer below a language model's or a reward model's head; adapters in it stay."""
    return find_model(model).base_model


def note_padding(context: StageContext, model: Any) -> None:
    """Tell the user when a model's attention could not be switched to packed rows as `hardware.attention: auto` would."""
    if context.spec.hardware.attention == "auto" and not is_packed(model):
        context.note(f"the attention of {type(find_model(model)).__name__} cannot isolate documents in one row: batches are padded")


def compute_scores(reward_model: Any, row: PackedRow) -> torch.Tensor:
    """Score each document at its last token: (logit - score_bias) / score_scale, in float32, shape D."""
    inner = find_model(reward_model)
    hidden_DH = compute_hidden_states(inner.base_model, row, row.lasts_D)
    return score_from_logits(inner.get_submodule(HEAD)(hidden_DH)[:, 0], inner.config)


def score_from_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Apply a reward model's bias and scale: (logit - score_bias) / score_scale, in float32."""
    return (logits.float() - config.score_bias) / config.score_scale


def apply_lora(
    model: PreTrainedModel,
    lora: LoRASettings,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    hardware: HardwareSettings,
    revision: str | None = None,
) -> Any:
    """Freeze a model (in 4 bits with `lora.quantize`) and wrap it in a trainable adapter.

    A reward model's head is trained and saved in full beside it.
    """
    from peft import get_peft_model

    config = make_lora_config(lora, task, revision=revision, modules_to_save=[HEAD] if task == "SEQ_CLS" else None)
    if lora.quantize:
        quantize_layers(model, hardware)
    return get_peft_model(freeze(model, hardware), config)


def make_lora_config(
    lora: LoRASettings, task: Literal["CAUSAL_LM", "SEQ_CLS"], *, revision: str | None = None, modules_to_save: list[str] | None = None
) -> Any:
    """Say in peft's terms what an adapter is."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=modules_to_save,
        revision=revision,
    )


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, output_dir: Path, *, merge: bool = False) -> None:
    """Write `model/` (safetensors, config, tokenizer) and, for an adapter on request, `merged/`.

    An adapter is merged into the weights on the disk. Trained on the same in 4 bits, it there computes slightly other numbers.
    """
    directory = output_dir / MODEL_DIR
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_calibration(model, directory)
    if not is_adapter(model):
        return
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if merge:
        shutil.rmtree(output_dir / MERGED_DIR, ignore_errors=True)  # of an attempt that was killed: it would be taken for the model
        # Onto the base as it lies on the disk: the one in memory may be held in bfloat16 or 4 bits.
        load = load_policy if model.can_generate() else load_reward_model
        merged = load(str(directory), HardwareSettings.model_validate({"attention": "sdpa"}))
        align_special_tokens(merged, tokenizer)
        merged.save_pretrained(output_dir / MERGED_DIR)
        _write_calibration(merged, output_dir / MERGED_DIR)
        tokenizer.save_pretrained(output_dir / MERGED_DIR)


def _write_calibration(model: Any, directory: Path) -> None:
    """Write a reward model's bias and scale; a file of its own, for an adapter's directory has no config.json."""
    config = find_model(model).config
    if hasattr(config, "score_scale"):
        calibration = {"score_bias": config.score_bias, "score_scale": config.score_scale}
        (directory / CALIBRATION_FILE).write_text(json.dumps(calibration), encoding="utf-8")


def is_adapter(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "peft_config")


def require_adapter_base(path: str, setting: str) -> None:
    """Refuse to train an adapter on a base that does not open by itself.

    Raises:
        StageError: `path` holds an adapter and there is no merged model beside it.
    """
    if is_unmerged_adapter(Path(path)):
        raise StageError(
            f"{setting} trains an adapter on {path}, which is itself an adapter; a base that opens by itself is needed; "
            "set sft.lora.merge: true",
            EXIT_VERIFICATION,
        )


def _choose_pad_token(tokenizer: Any, path: str) -> None:
    """Take an unused token of the vocabulary as pad: with pad = end token a model never learns to stop (N+ details, 1)."""
    vocabulary = tokenizer.get_vocab()
    for candidate in ("<|pad|>", "<pad>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>"):
        if candidate in vocabulary and candidate != tokenizer.eos_token:
            tokenizer.pad_token = candidate
            return
    raise StageError(
        f"{path}: pad token {tokenizer.pad_token!r} is missing or equals the end token {tokenizer.eos_token!r}; "
        "a pad token of its own is needed; add one to the tokenizer (tokenizer.add_special_tokens) and "
        "save the model with resized embeddings",
        EXIT_VERIFICATION,
    )


def _load(auto_class: Any, path: str, **arguments: Any) -> Any:
    try:
        return auto_class.from_pretrained(path, **arguments)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be opened by {auto_class.__name__}.from_pretrained: {error}", EXIT_MISSING) from error


def _load_weights(
    auto_class: Any,
    path: str,
    hardware: HardwareSettings,
    *,
    zero3: dict[str, Any] | None,
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
    with partitioned(zero3):
        model, loading = _load(
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
        model = _merge_adapter(model, adapter)
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
            if enable_packing(model):
                skip_unread(model)


def is_unmerged_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and there is no merged model beside it."""
    return (directory / ADAPTER_CONFIG).exists() and not (directory.parent / MERGED_DIR).exists()


def _merge_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged: Any = PeftModel.from_pretrained(model, adapter)
    for layer in merged.modules():
        if isinstance(layer, BaseTunerLayer):
            with gathered(layer.get_base_layer().parameters(), modified=True):
                layer.merge()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = merged.merge_and_unload()
    return merged.requires_grad_(True)  # peft has frozen what lies below the adapter


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
