"""The end token and the pad token of a base model, and the embedding rows behind them.

    end   what the chat template writes after an answer, else the tokenizer's own
    pad   the tokenizer's own if it is not the end; else a padding, reserved or unused special token of the vocabulary; else a new token
          in a spare embedding row; else in one new row

With pad = end a model never learns to stop (Huang et al. 2024, N+ details, 1).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from data.chat import encode_answers
from data.schema import DataError
from data.turns import find_end_token
from stages.internals import is_partitioned
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION

_PADDING = re.compile(r"(?<![a-z])pad(ding)?(?![a-z])", re.IGNORECASE)
_RESERVED = re.compile(r"reserved|unused|dummy|placeholder|extra", re.IGNORECASE)
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_RARE_TEXT = "\U0010fffd \u0378 \u4d7f"  # what a tokenizer that makes an unknown token of anything makes it of


def ensure_end_token(tokenizer: Any, config: Any) -> None:
    """Give a tokenizer an end token if it has none: that of the model's config, else a usual one, else a new token."""
    if tokenizer.eos_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    ids = getattr(config, "eos_token_id", None)
    stated = ids if isinstance(ids, list) else [ids]
    candidates = [token for token, index in vocabulary.items() if index in stated] + [end for end in _USUAL_ENDS if end in vocabulary]
    _set_token(tokenizer, "eos_token", candidates[0] if candidates else "<|endoftext|>")


def settle_end_token(tokenizer: Any, wanted: str) -> str:
    """Set the token that ends an answer; its chat template is settled before.

    Args:
        tokenizer: That of the base model.
        wanted: `tokens.end_token`.

    Returns:
        Why it is this one, for the user.

    Raises:
        StageError: What was asked for is not one token of the vocabulary.
    """
    written = find_end_token(tokenizer)
    if wanted != "auto":
        if wanted not in tokenizer.get_vocab():
            needed = f"one token of the vocabulary of {tokenizer.name_or_path}"
            raise StageError(f"tokens.end_token: found {wanted!r}, needed {needed}; give one, or auto", EXIT_USAGE)
        _set_token(tokenizer, "eos_token", wanted)
        other = f"; the chat template writes {written} after an answer" if written not in (None, wanted) else ""
        return f"as tokens.end_token says{other}"
    if written is None:
        return "the tokenizer's own: the chat template writes no control token after an answer"
    _set_token(tokenizer, "eos_token", written)
    return "what the chat template writes after an answer"


def settle_pad_token(tokenizer: Any, num_rows: int) -> str:
    """Set a pad token that is not the end token.

    Args:
        tokenizer: That of the base model, with its template and end token settled.
        num_rows: The model's token embeddings.

    Returns:
        Why it is this one, for the user.
    """
    own = tokenizer.pad_token_id
    if own is not None and own != tokenizer.eos_token_id and own < num_rows:
        return "the tokenizer's own"
    found = next(_find_unused(tokenizer, num_rows), None)
    if found:
        token, what = found
        _set_token(tokenizer, "pad_token", token)
        return f"{what}, since the tokenizer has no pad token of its own"
    vocabulary = tokenizer.get_vocab()
    name = next(name for name in ("<|pad|>", "<|padding|>", "<|rlhf_pad|>") if name not in vocabulary)
    _set_token(tokenizer, "pad_token", name)
    spare = tokenizer.pad_token_id < num_rows
    return "new, in a spare embedding row of the model" if spare else "new, in one more embedding row: no token and no row is spare"


def require_rows(tokenizer: Any, tokens: Mapping[str, int], num_rows: int) -> list[str]:
    """Check that each token that can occur has an embedding row.

    Args:
        tokenizer: With its special tokens settled.
        tokens: Its vocabulary before that: for a new token a row is made.
        num_rows: The model's token embeddings, before that.

    Returns:
        The tokens without a row, which cannot occur: special ones, which no text turns into, that the template does not write.

    Raises:
        StageError: A token without a row can occur.
    """
    missing = {index: token for token, index in tokens.items() if index >= num_rows}
    added = tokenizer.added_tokens_decoder
    used = [
        token
        for index, token in sorted(missing.items())
        if index == tokenizer.eos_token_id or not (index in added and added[index].special) or token in tokenizer.chat_template
    ]
    if used:
        shown = ", ".join(used[:3]) + (", ..." if len(used) > 3 else "")
        raise StageError(
            f"{tokenizer.name_or_path}: the tokenizer has {max(tokens.values()) + 1} tokens, the model {num_rows} embedding rows ({shown} "
            "would have none); needed a row for each token; take the tokenizer that belongs to the model, or save the model with "
            "resize_token_embeddings",
            EXIT_VERIFICATION,
        )
    return [token for _, token in sorted(missing.items())]


def count_tokens(tokenizer: Any) -> int:
    """Count the ids from 0 to that of the tokenizer's last token."""
    return max(tokenizer.get_vocab().values()) + 1


def grow_embeddings(model: Any, tokenizer: Any) -> bool:
    """Give a model rows for end and pad token where it has none; a new row is the mean of the others, whatever the seed.

    Returns:
        Whether it had fewer.

    Raises:
        StageError: its weights are shared out.
    """
    num_rows, num_old = max(tokenizer.eos_token_id, tokenizer.pad_token_id or 0) + 1, model.config.get_text_config().vocab_size
    if num_rows <= num_old:
        return False
    if is_partitioned(model.get_input_embeddings().weight):
        found = "found 3, and a model without a spare embedding row for the pad token"
        raise StageError(f"hardware.zero_stage: {found}; needed whole weights to make one; set hardware.zero_stage: 2", EXIT_USAGE)
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    with torch.no_grad():
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            layer.weight[num_old:] = layer.weight[:num_old].mean(dim=0)
            if getattr(layer, "bias", None) is not None:
                layer.bias[num_old:] = layer.bias[:num_old].mean()
    model.grown = True
    return True


def has_grown(model: Any) -> bool:
    """Whether `grow_embeddings` gave a model more rows than it has on the disk."""
    return getattr(model, "grown", False)


def _set_token(tokenizer: Any, name: str, token: str) -> None:
    """Make a token a special one: text does not turn into it, and the tokenizer is saved with it."""
    if getattr(tokenizer, name) != token:
        tokenizer.add_special_tokens({name: token})


def _find_unused(tokenizer: Any, num_rows: int) -> Iterator[tuple[str, str]]:
    """Find control tokens that neither texts nor the template use, the best first, each with what it is."""
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    special_first = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: (not item[1].special, item[0]))
    added = [
        (token.content, token.special)
        for index, token in special_first
        if index < num_rows and token.content not in taken and token.content not in tokenizer.chat_template
    ]
    unknown = tokenizer.unk_token
    yield from ((token, "a padding token") for token, _ in added if _PADDING.search(token))
    yield from ((token, "a reserved token") for token, _ in added if _RESERVED.search(token))
    unknown_id = tokenizer.unk_token_id
    if unknown is not None and unknown not in taken and unknown_id < num_rows and not _turns_into(tokenizer, unknown_id):
        yield unknown, "a token that no text turns into"
    yield from ((token, "an unused special token") for token, special in added if special and token != unknown)


def _turns_into(tokenizer: Any, token_id: int) -> bool:
    try:
        return token_id in encode_answers(tokenizer, [_RARE_TEXT])[0]
    except DataError:
        return True
