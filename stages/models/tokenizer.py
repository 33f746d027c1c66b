"""Load a tokenizer that can carry the token stream, and make a model go by it."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.template_check import require_special_tokens
from stages.models.weights import open_pretrained
from stages.process.errors import StageError
from stages.spec import EXIT_VERIFICATION


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check that it can carry the token stream (template, end token, a pad token of its own)."""
    tokenizer = open_pretrained(AutoTokenizer, path, revision=revision)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _choose_pad_token(tokenizer, path)
    require_special_tokens(tokenizer)
    return tokenizer


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's config name the tokenizer's pad and end tokens, so that the saved model ends and pads by them."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


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
