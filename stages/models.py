"""Load and save policies and reward models, full or as adapters, and refuse a hand-off that would be wrong.

A reward model is an `AutoModelForSequenceClassification` with one label. Its score of a response is

    score = (logit - score_bias) / score_scale

with both in `score.json` beside the weights (and on the loaded model's config), and the bias chosen so that
demonstrations score 0 on average (Ziegler et al. 2019, 2.1).
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.tokens import require_special_tokens
from stages.packing import PackedRow, compute_hidden_states, enable_packing, is_packed
from stages.runtime import StageContext, StageError
from stages.settings import HardwareSettings, LoRASettings
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR, ModelFacts

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


def load_policy(path: str, hardware: HardwareSettings, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model in float32, without dropout and with a neutral generation config."""
    model = _load_weights(AutoModelForCausalLM, path, hardware, revision=revision)
    # A base model's repetition penalty, top-k or temperature must never leak into rollouts or evaluations.
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    return model


def init_reward_model(path: str, hardware: HardwareSettings, seed: int) -> PreTrainedModel:
    """Start a reward model from an SFT model: its backbone, and a scalar head drawn from N(0, 1/(d+1)) (N+ details, 10)."""
    if _is_unmerged_adapter(Path(path)):
        # peft opens an adapter only on the kind of model that it was trained on: merge there, then move the backbone.
        policy: Any = load_policy(path, hardware)
        policy.config.num_labels = 1
        model: Any = AutoModelForSequenceClassification.from_config(
            policy.config, dtype=torch.float32, attn_implementation=_attention(hardware)
        )
        model.base_model.load_state_dict(policy.base_model.state_dict())
        _finish_loading(model, hardware)
    else:
        model = _load_weights(AutoModelForSequenceClassification, path, hardware, new_head=True, num_labels=1)
    head = model.get_submodule(HEAD)
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    model.config.score_bias, model.config.score_scale = 0.0, 1.0
    return model


def load_reward_model(path: str, hardware: HardwareSettings) -> PreTrainedModel:
    """Load a trained reward model; a head that is missing or of another shape is refused, never drawn anew."""
    model = _load_weights(AutoModelForSequenceClassification, path, hardware, num_labels=1)
    try:
        calibration = json.loads((Path(path) / CALIBRATION_FILE).read_text(encoding="utf-8"))
        model.config.score_bias, model.config.score_scale = float(calibration["score_bias"]), float(calibration["score_scale"])
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}: no readable {CALIBRATION_FILE} ({error}); a reward model of this project is needed; run the rm stage",
            EXIT_VERIFICATION,
        ) from error
    return model


class Float32Head(torch.nn.Linear):
    """The scalar head, computed in float32 even under autocast: differences of scores drown in bfloat16's rounding."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


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
    hidden_DH = compute_hidden_states(inner.base_model, row)[row.lasts_D]
    return score_from_logits(inner.get_submodule(HEAD)(hidden_DH)[:, 0], inner.config)


def score_from_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Apply a reward model's bias and scale: (logit - score_bias) / score_scale, in float32."""
    return (logits.float() - config.score_bias) / config.score_scale


def autocast(hardware: HardwareSettings, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute in bfloat16 where the hardware block says so; weights stay float32."""
    if hardware.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def apply_lora(model: PreTrainedModel, lora: LoRASettings, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> Any:
    """Wrap a model in a trainable adapter; a reward model's head is trained and saved in full beside it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=[HEAD] if task == "SEQ_CLS" else None,
    )
    return get_peft_model(model, config)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, output_dir: Path, *, merge: bool = False) -> None:
    """Write `model/` (safetensors, config, tokenizer) and, for an adapter on request, `merged/`."""
    directory = output_dir / MODEL_DIR
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    config = find_model(model).config
    if hasattr(config, "score_scale"):
        # A file of its own: an adapter's directory has no config.json.
        calibration = {"score_bias": config.score_bias, "score_scale": config.score_scale}
        (directory / CALIBRATION_FILE).write_text(json.dumps(calibration), encoding="utf-8")
    if not is_adapter(model):
        return
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if merge:
        merged = model.merge_and_unload()
        merged.save_pretrained(output_dir / MERGED_DIR)
        tokenizer.save_pretrained(output_dir / MERGED_DIR)


def is_adapter(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "peft_config")


def require_adapter_base(path: str, setting: str) -> None:
    """Refuse to train an adapter on a base that does not open by itself.

    Raises:
        StageError: `path` holds an adapter and there is no merged model beside it.
    """
    if _is_unmerged_adapter(Path(path)):
        raise StageError(
            f"{setting} trains an adapter on {path}, which is itself an adapter; a base that opens by itself is needed; "
            "set sft.lora.merge: true",
            EXIT_VERIFICATION,
        )


def read_facts(
    model: Any, tokenizer: PreTrainedTokenizerBase, base_model: str, *, score_bias: float | None = None, score_scale: float | None = None
) -> ModelFacts:
    """Collect the hand-off facts of a model that is about to be saved."""
    inner = find_model(model)
    head = None
    if score_scale is not None:
        head = f"{HEAD}.weight {[1, inner.config.get_text_config().hidden_size]}"
    return ModelFacts(
        base_model=base_model,
        **_token_facts(tokenizer),
        vocab_size=inner.config.get_text_config().vocab_size,
        dtype="float32",
        form="adapter" if is_adapter(model) else "full",
        architecture=type(inner).__name__,
        head=head,
        score_bias=score_bias,
        score_scale=score_scale,
    )


def check_handoff(sft_path: str, rm_path: str) -> None:
    """Check that a reward model reads the very token ids that the policy writes.

    Raises:
        StageError: tokenizer, chat template, special tokens, vocabulary or head differ; exit code 3.
    """
    sft, rm = (_token_facts(load_tokenizer(path)) for path in (sft_path, rm_path))
    words = {
        "tokenizer_hash": "another tokenizer",
        "chat_template_hash": "another chat template",
        "pad_token_id": "another pad token",
        "eos_token_id": "another end token",
    }
    for key, what in words.items():
        if sft[key] != rm[key]:
            raise StageError(
                f"the reward model {rm_path} has {what} ({key} {_short(rm[key])}) than the policy {sft_path} ({_short(sft[key])}); "
                "both must stem from the same SFT artifact; train the rm stage on this one",
                EXIT_VERIFICATION,
            )
    if not _has_head(Path(rm_path)):
        raise StageError(
            f"{rm_path} holds no weight for the scalar head `{HEAD}`; a trained reward model is needed; run the rm stage", EXIT_VERIFICATION
        )


def _token_facts(tokenizer: Any) -> dict[str, Any]:
    return {
        "tokenizer_hash": _hash_tokenizer(tokenizer),
        "chat_template_hash": _sha256(tokenizer.chat_template),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _hash_tokenizer(tokenizer: Any) -> str:
    """Hash vocabulary, merges, normalisation and special tokens; padding and truncation are state, not identity."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = tokenizer.get_vocab()
    return _sha256(json.dumps([state, sorted(map(str, tokenizer.all_special_tokens))], sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: object) -> str:
    return str(value)[:12]


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


def _has_head(directory: Path) -> bool:
    return any(name.split(".")[-2] == HEAD or f".{HEAD}." in name for name in _tensor_names(directory))


def _tensor_names(directory: Path) -> Iterable[str]:
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            yield from tensors.keys()


def _load(auto_class: Any, path: str, **arguments: Any) -> Any:
    try:
        return auto_class.from_pretrained(path, **arguments)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be opened by {auto_class.__name__}.from_pretrained: {error}", EXIT_MISSING) from error


def _load_weights(
    auto_class: Any, path: str, hardware: HardwareSettings, *, new_head: bool = False, revision: str | None = None, **arguments: Any
) -> Any:
    """Load safetensors weights in float32; an adapter is merged into its base; no parameter may be left to chance."""
    directory = Path(path)
    adapter = None
    if _is_unmerged_adapter(directory):
        adapter = path
        path = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        revision = None
    elif (directory / ADAPTER_CONFIG).exists():
        path = str(directory.parent / MERGED_DIR)
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


def _attention(hardware: HardwareSettings) -> str:
    return "sdpa" if hardware.attention == "auto" else hardware.attention


def _finish_loading(model: Any, hardware: HardwareSettings) -> None:
    if hasattr(model, HEAD):
        setattr(model, HEAD, Float32Head(model.get_submodule(HEAD).weight))
    _disable_dropout(model)
    if hardware.attention == "auto":
        enable_packing(model)


def _is_unmerged_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).exists() and not (directory.parent / MERGED_DIR).exists()


def _merge_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(model, adapter)
    return merged.merge_and_unload()


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
