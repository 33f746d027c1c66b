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
    with_tools = [i for i, prompt in enumerate(prompts) if any(message.role == "tool" for message in prompt)]
    if with_tools and not _shows_tools(tokenizer):
        message = "found a tool's message, which the chat template leaves out; needed a template that knows the role tool; take one"
        raise DataError([Problem(f"record {i + 1}", "prompt", message) for i in with_tools])
    return _encode_chats(tokenizer, prompts, "prompt", {"add_generation_prompt": True})


def _shows_tools(tokenizer: Tokenizer) -> bool:
    """Whether the template writes what a tool answered; where it refuses to render that, it is asked again with the prompt."""
    word = "Q0answered"
    messages = [{"role": role, "content": word if role == "tool" else "Q0"} for role in ("user", "assistant", "tool")]
    try:
        return word in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:
        return True


def encode_answers(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode answers' texts, without an end token."""
    return _encode_chats(tokenizer, [[Message("assistant", text)] for text in texts], "answer", {"chat_template": ANSWER_TEMPLATE})


def encode_conversations(tokenizer: Tokenizer, conversations: Sequence[Messages]) -> list[list[int]]:
    """Encode whole conversations, as the template writes them."""
    return _encode_chats(tokenizer, conversations, "conversation", {})


def _encode_chats(tokenizer: Tokenizer, chats: Sequence[Messages], field: str, options: dict[str, Any]) -> list[list[int]]:
    """Render and encode conversations; those that hold an added token's text go transformers' slower, sanitising way.

    There, special tokens in the text, and other added tokens that the template itself writes, are encoded as text.

    Raises:
        DataError: The template refuses conversations, or the tokenizer makes a control token of text; each is named.
    """
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, added)) or r"(?!)")
    encoded: dict[int, list[int]] = {}
    problems: list[Problem] = []
    for sanitize in (False, True):
        rows = [i for i, chat in enumerate(chats) if any(control.search(message.content) for message in chat) == sanitize]
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            try:
                encoded.update(zip(batch, _encode_batch(tokenizer, [chats[i] for i in batch], sanitize, options), strict=True))
            except MemoryError:
                raise  # see data.system.watched
            except Exception:  # a template refuses by raising (roles do not alternate), transformers a control token that text turns into
                problems += _find_refused(tokenizer, {i: chats[i] for i in batch}, field, sanitize, options)
    if problems:
        raise DataError(problems)
    return [encoded[i] for i in range(len(chats))]


def _encode_batch(tokenizer: Tokenizer, chats: Sequence[Messages], sanitize: bool, options: dict[str, Any]) -> list[list[int]]:
    batch = [[{"role": message.role, "content": message.content} for message in chat] for chat in chats]
    # Ids only, and no warning about the model's own limit: lengths are this package's business.
    bare = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    options = {**options, "return_dict": False, "sanitize_control_tokens": sanitize, "tokenizer_kwargs": bare}
    return cast(list[list[int]], tokenizer.apply_chat_template(batch, **options))


def _find_refused(tokenizer: Tokenizer, chats: dict[int, Messages], field: str, sanitize: bool, options: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    for i, chat in chats.items():
        try:
            _encode_batch(tokenizer, [chat], sanitize, options)
        except MemoryError:
            raise
        except Exception as error:
            message = f"refused by the chat template or tokenizer ({first_line(error)}); needed messages as they want them; change them"
            problems.append(Problem(f"record {i + 1}", field, message))
    return problems
