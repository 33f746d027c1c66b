"""A reward model that is an encoder (BERT, RoBERTa, DeBERTa): it reads prompt and answer as a pair of texts, without a chat template."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from stages.models.weights import open_pretrained
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION

_PAIRS = 32  # scored at once

Pair = tuple[str, str]  # prompt, answer


def is_encoder(tokenizer: Any) -> bool:
    """Whether a tokenizer is that of an encoder: it masks tokens, and no template writes a conversation."""
    return tokenizer.mask_token is not None and not tokenizer.chat_template


def load_encoder(path: str, revision: str | None) -> Any:
    """Open an encoder with a scalar head, in float32.

    Raises:
        StageError: It cannot be opened, has another number of labels than one, or lacks weights.
    """
    config = open_pretrained(AutoConfig, path, revision=revision)
    if config.num_labels != 1:
        found = f"{path}: found an encoder with {config.num_labels} labels, needed one, a score"
        raise StageError(f"{found}; take a reward model, not a classifier", EXIT_USAGE)
    arguments: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    arguments["ignore_mismatched_sizes"] = True  # told below
    model, loading = open_pretrained(AutoModelForSequenceClassification, path, revision=revision, config=config, **arguments)
    if missing := sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]})):
        found = f"{path}: weights missing or of another shape: {missing[:5]}"
        raise StageError(f"{found}; a complete {type(model).__name__} is needed; they would have been drawn at random", EXIT_VERIFICATION)
    return model.eval()


@torch.no_grad()
def score_pairs(tokenizer: Any, model: Any, pairs: Sequence[Pair]) -> list[float]:
    """Score each pair by the logit of the head.

    Raises:
        ValueError: Found, needed; one of them is too long to be read whole.
    """
    limit = min(tokenizer.model_max_length, _count_positions(model) or tokenizer.model_max_length)
    scores: list[float] = []
    for start in range(0, len(pairs), _PAIRS):
        prompts, answers = (list(each) for each in zip(*pairs[start : start + _PAIRS], strict=True))
        encoded = tokenizer(prompts, answers, padding=True, return_tensors="pt", verbose=False)
        if (longest := encoded["input_ids"].shape[1]) > limit:
            raise ValueError(f"found a pair of {longest} tokens, needed at most {limit}; take another judge")
        scores += model(**encoded.to(model.device)).logits[:, 0].float().tolist()
    return scores


def _count_positions(model: Any) -> int | None:
    """Count the tokens that an encoder has positions for; RoBERTa's begin behind that of the padding token. None: as many as there are."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return positions if positions is None or padding is None else positions - padding - 1
