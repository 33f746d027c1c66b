"""Conversations -> ids: the chat template in transformers' sandbox, and control tokens in people's text kept as text."""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from data.schema import DataError, Message, Problem, first_line

Messages = Sequence[Message]
# transformers' `PreTrainedTokenizerBase`; it declares most of its attributes at run time only, so no type describes it.
Tokenizer: TypeAlias = Any

BATCH_SIZE = 4096  # conversations per tokenizer call: enough for its threads, little memory
# An answer goes through the same code as a prompt, with a template that writes its text and nothing else.
ANSWER_TEMPLATE = "{{ messages[0]['content'] }}"


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Messages]) -> list[list[int]]:
    """Encode prompts up to where the assistant's answer begins, uncut."""
    return _encode_chats(tokenizer, prompts, {"add_generation_prompt": True})


def encode_answers(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode answers' texts, without an end token."""
    return _encode_chats(tokenizer, [[Message("assistant", text)] for text in texts], {"chat_template": ANSWER_TEMPLATE})


def _encode_chats(tokenizer: Tokenizer, chats: Sequence[Messages], options: dict[str, Any]) -> list[list[int]]:
    """Render and encode conversations; those that hold an added token's text go transformers' slower, sanitising way.

    There, special tokens in the text, and other added tokens that the template itself writes, are encoded as text.
    """
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, added)) or r"(?!)")
    encoded: dict[int, list[int]] = {}
    for sanitize in (False, True):
        rows = [i for i, chat in enumerate(chats) if any(control.search(message.content) for message in chat) == sanitize]
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            encoded.update(
                zip(batch, _encode_batch(tokenizer, chats, batch, {**options, "sanitize_control_tokens": sanitize}), strict=True)
            )
    return [encoded[i] for i in range(len(chats))]


def _encode_batch(tokenizer: Tokenizer, chats: Sequence[Messages], rows: list[int], options: dict[str, Any]) -> list[list[int]]:
    import jinja2  # here, not at the top: `rlhf plan` imports this package and renders nothing

    def encode(rows: list[int]) -> list[list[int]]:
        batch = [[{"role": message.role, "content": message.content} for message in chats[i]] for i in rows]
        # Ids only, and no warning about the model's own limit: lengths are this package's business.
        bare = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return cast(list[list[int]], tokenizer.apply_chat_template(batch, return_dict=False, tokenizer_kwargs=bare, **options))

    try:
        return encode(rows)
    except jinja2.TemplateError:
        # A template refuses by raising, e.g. when roles do not alternate: find every conversation that it refuses.
        problems: list[Problem] = []
        for i in rows:
            try:
                encode([i])
            except jinja2.TemplateError as error:
                message = f"refused by the chat template ({first_line(error)}); needed messages as it wants them; change them"
                problems.append(Problem(f"record {i + 1}", "prompt", message))
        raise DataError(problems) from None
