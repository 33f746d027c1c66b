"""Facts that one stage states of its model and the next one relies on, and the hand-offs that are refused."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from stages.models.adapters import find_model, is_adapter
from stages.models.head import HEAD
from stages.models.reward_model import find_calibration
from stages.models.tokenizer import load_tokenizer
from stages.process.errors import StageError
from stages.result import ModelFacts
from stages.spec import EXIT_VERIFICATION


def read_facts(model: Any, tokenizer: PreTrainedTokenizerBase, base_model: str) -> ModelFacts:
    """Collect the hand-off facts of a model that is about to be saved."""
    inner, calibration = find_model(model), find_calibration(model)
    return ModelFacts(
        base_model=base_model,
        **_token_facts(tokenizer),
        vocab_size=inner.config.get_text_config().vocab_size,
        form="adapter" if is_adapter(model) else "full",
        architecture=type(inner).__name__,
        head=f"{HEAD}.weight {[1, inner.get_submodule(HEAD).weight.shape[-1]]}" if calibration else None,
        score_bias=calibration.bias if calibration else None,
        score_scale=calibration.scale if calibration else None,
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


def identify_tokenizer(tokenizer: Any) -> str:
    """Hash all of a tokenizer that makes token ids of a conversation."""
    return _sha256(json.dumps(_token_facts(tokenizer), sort_keys=True))


def _token_facts(tokenizer: Any) -> dict[str, Any]:
    return {
        "tokenizer_hash": _hash_tokenizer(tokenizer),
        "chat_template_hash": _sha256(tokenizer.chat_template or ""),  # pretrain needs none
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


def _has_head(directory: Path) -> bool:
    return any(name.split(".")[-2] == HEAD or f".{HEAD}." in name for name in _tensor_names(directory))


def _tensor_names(directory: Path) -> Iterable[str]:
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            yield from tensors.keys()
