"""A tokenizer that can carry the token stream: settled when a base model is opened, then read from each artifact as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.schema import DataError
from data.template_check import require_ends, require_special_tokens
from data.turns import begins_with_prompt, find_missing_opening, find_openings
from stages.adapter_base import read_base
from stages.blocks import TokenSettings
from stages.models.adapters import is_unmerged_adapter
from stages.models.chat_template import add_opening, bake, choose_template, find_pinned_day
from stages.models.special_tokens import count_tokens, ensure_end_token, require_rows, settle_end_token, settle_pad_token
from stages.models.weights import open_pretrained
from stages.process.errors import StageError
from stages.spec import EXIT_VERIFICATION


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model that a stage left, and check that it can carry the token stream."""
    tokenizer = open_pretrained(AutoTokenizer, path)
    require_special_tokens(tokenizer)
    return tokenizer


def open_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer as it is, with template and pad token or without; where it has no end token, with one.

    Raises:
        StageError: The end token would have no embedding row.
    """
    tokenizer = open_pretrained(AutoTokenizer, path, revision=revision)
    config = _read_config(path, revision).get_text_config()
    ensure_end_token(tokenizer, config)
    if tokenizer.eos_token_id >= config.vocab_size:
        found = f"{path}: found no end token, and no spare embedding row for one"
        raise StageError(f"{found}; needed one that ends a text; set eos_token in its tokenizer_config.json", EXIT_VERIFICATION)
    return tokenizer


def settle_tokenizer(path: str, tokens: TokenSettings, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, str]:
    """Load a base model's tokenizer, and settle its chat template, end token and pad token; doing so twice changes nothing.

    Args:
        path: The base model's directory, or hub id.
        tokens: What the recipe says of them.
        revision: Of a model from the hub.

    Returns:
        (the tokenizer, what was taken and why: for the user).

    Raises:
        StageError: The recipe asks for what is not there, or tokens have no embedding row.
        DataError: The chat template does not render, or text turns into the end token.
    """
    tokenizer = open_pretrained(AutoTokenizer, path, revision=revision)
    try:
        require_ends(tokenizer, lambda: _settle(tokenizer, path, tokens, revision))
        return tokenizer, _settle(tokenizer, path, tokens, revision)
    except DataError as error:  # a template of the user's own is not the base model's fault
        own = Path(tokens.chat_template).is_absolute()
        raise DataError(
            [replace(p, where=tokens.chat_template) if own and p.field == "chat_template" else p for p in error.problems]
        ) from None


def _settle(tokenizer: Any, path: str, tokens: TokenSettings, revision: str | None) -> str:
    tokens_before = tokenizer.get_vocab()
    config = _read_config(path, revision).get_text_config()
    ensure_end_token(tokenizer, config)
    template, what = choose_template(tokenizer, tokens.chat_template, tools="tools" in tokens.template_args)
    tokenizer.chat_template = bake(template, tokens.template_args)
    if opening := find_missing_opening(tokenizer):
        tokenizer.chat_template = add_opening(tokenizer.chat_template, opening)
        what += f", with {opening!r} added before an answer to come"
    why_end = settle_end_token(tokenizer, tokens.end_token)
    why_pad = settle_pad_token(tokenizer, config.vocab_size)
    rowless = require_rows(tokenizer, tokens_before, config.vocab_size)
    require_special_tokens(tokenizer, tried=True)
    parts = [
        f"chat template: {what}",
        f"end token: {tokenizer.eos_token} ({why_end})",
        f"pad token: {tokenizer.pad_token} ({why_pad})",
    ]
    return "; ".join([*parts, *_describe_oddities(tokenizer, rowless)])


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's config name the tokenizer's pad and end tokens, so that the saved model ends and pads by them.

    Embedding rows behind the last token stand for nothing (Pythia's and Qwen's tables are rounded up): they are not sampled.
    """
    for config in (model.config, model.config.get_text_config()):  # one and the same, but where other parts than text have settings too
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        limit_tokens(model, count_tokens(tokenizer))


def limit_tokens(model: Any, num_tokens: int) -> None:
    """Have a language model choose among its first `num_tokens` tokens only; see `stages.models.logprobs`."""
    if num_tokens < model.config.get_text_config().vocab_size:
        model.num_tokens = num_tokens


def _read_config(path: str, revision: str | None) -> Any:
    if is_unmerged_adapter(Path(path)):
        path, revision = read_base(Path(path))
    return open_pretrained(AutoConfig, path, revision=revision)


def _describe_oddities(tokenizer: Any, rowless: list[str]) -> list[str]:
    said: list[str] = []
    if day := find_pinned_day(tokenizer.chat_template):
        said.append(f"the template's clock stands at {day} (tokens.template_args.date)")
    opening = find_openings(tokenizer)[:1]
    if not begins_with_prompt(tokenizer):
        ends = f", which ends with {opening[0][-40:]!r}" if opening else ""
        said.append(
            f"the template renders an answered turn otherwise: answers are learnt behind the prompt as it stands at inference{ends}"
        )
    if rowless:
        said.append(f"{len(rowless)} special tokens without an embedding row are never used ({', '.join(rowless[:3])})")
    return said
