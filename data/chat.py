"""Conversations -> ids: the chat template in transformers' sandbox, and control tokens in people's text kept as text."""

import json
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TypeAlias, cast

from data.schema import DataError, Message, Problem, first_line

Messages = Sequence[Message]
# transformers' `PreTrainedTokenizerBase`; it declares most of its attributes at run time only, so no type describes it.
Tokenizer: TypeAlias = Any

BATCH_SIZE = 4096  # conversations per tokenizer call: enough for its threads, little memory
# An answer goes through the same code as a prompt, with a template that writes its text and nothing else.
ANSWER_TEMPLATE = "{{ messages[0]['content'] }}"
_WHOSE = {"system": "a system", "user": "a user's", "assistant": "an assistant's", "tool": "a tool's"}


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Messages]) -> list[list[int]]:
    """Encode prompts up to where the assistant's answer begins, uncut.

    Raises:
        DataError: The template refuses conversations, or leaves messages of them out; each is named.
    """
    left_out = {roles: _find_left_out(tokenizer, roles) for roles in {tuple(message.role for message in prompt) for prompt in prompts}}
    problems: list[Problem] = []
    for i, prompt in enumerate(prompts):
        if (place := left_out[tuple(message.role for message in prompt)]) is not None:
            role = prompt[place].role
            needed = f"needed a template that {'knows the role tool' if role == 'tool' else 'writes it'}; take one"
            found = f"found {_WHOSE[role]} message, which the chat template leaves out"
            problems.append(Problem(f"record {i + 1}", "prompt" if role == "tool" else f"prompt[{place}]", f"{found}; {needed}"))
    try:
        encoded = _encode_chats(tokenizer, prompts, "prompt", {"add_generation_prompt": True})
    except DataError as error:
        raise DataError([*problems, *error.problems]) from None
    if problems:
        raise DataError(problems)
    return encoded


def _find_left_out(tokenizer: Tokenizer, roles: Sequence[str]) -> int | None:
    """Find the first message of a conversation of these roles that the template does not write; None: it writes, or refuses, them all."""
    words = [f"Q{place}said" for place in range(len(roles))]
    messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).casefold()
    except Exception:
        return None
    return next((place for place, word in enumerate(words) if word.casefold() not in written), None)


def encode_answers(tokenizer: Tokenizer, texts: Sequence[str], behind: str = "") -> list[list[int]]:
    """Encode answers' texts, without an end token.

    Args:
        tokenizer: Of the policy.
        texts: The answers.
        behind: What stands before each, of which no ids are returned: a tokenizer may put a blank of its own before a text that
            stands alone (SentencePiece); see `data.turns.find_anchor`.
    """
    answers = [[Message("assistant", text)] for text in texts]
    alone = {"chat_template": ANSWER_TEMPLATE}
    if not behind:
        return _encode_chats(tokenizer, answers, "answer", alone)
    before = _encode_chats(tokenizer, [[Message("assistant", behind)]], "answer", alone)[0]
    anchored = _encode_chats(tokenizer, answers, "answer", {"chat_template": f"{{{{ {json.dumps(behind)} }}}}{ANSWER_TEMPLATE}"})
    encoded = [ids[len(before) :] if ids[: len(before)] == before else None for ids in anchored]  # None: both became one token
    return [_encode_chats(tokenizer, [answers[i]], "answer", alone)[0] if ids is None else ids for i, ids in enumerate(encoded)]


def encode_conversations(tokenizer: Tokenizer, conversations: Sequence[Messages]) -> list[list[int]]:
    """Encode whole conversations, as the template writes them."""
    return _encode_chats(tokenizer, conversations, "conversation", {})


def _encode_chats(tokenizer: Tokenizer, chats: Sequence[Messages], field: str, options: dict[str, Any]) -> list[list[int]]:
    """Render and encode conversations; those that hold an added token's text go transformers' slower, sanitising way.

    There, special tokens in the text are encoded as text, and in what others than the assistant say also further added tokens that the
    template itself writes. The assistant's own (`<tool_call>`, `</think>`) are those that it writes in an answer, with the same ids; and a
    template that looks for them, to take thoughts out of a history, finds them.

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
    # Ids only, and no warning about the model's own limit: lengths are this package's business.
    bare = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    if not sanitize:
        batch = [[{"role": message.role, "content": message.content} for message in chat] for chat in chats]
        return cast(list[list[int]], tokenizer.apply_chat_template(batch, return_dict=False, tokenizer_kwargs=bare, **options))
    # What `apply_chat_template(sanitize_control_tokens=True)` does, but for the assistant's messages: it knows no roles.
    own, others = (
        find_control_tokens(tokenizer, ""),
        find_control_tokens(tokenizer, options.get("chat_template") or tokenizer.chat_template),
    )
    batch = [
        [{"role": message.role, "content": _mark(message.content, own if message.role == "assistant" else others)} for message in chat]
        for chat in chats
    ]
    rendered = tokenizer.apply_chat_template(batch, tokenize=False, **options)
    encoded = tokenizer(rendered, add_special_tokens=False, sanitize_control_tokens=True, **bare)
    return cast(list[list[int]], encoded["input_ids"])


def _mark(text: str, control: re.Pattern[str]) -> str:
    mark: Any = import_module("transformers.utils.chat_template_utils").mark_control_tokens  # by name: it carries no types
    return mark(text, control)


def find_control_tokens(tokenizer: Tokenizer, template: str) -> re.Pattern[str]:
    """Find the tokens that text must not turn into: special ones, and other added ones that the template writes or the tokenizer names."""
    named = getattr(tokenizer, "chat_control_tokens", None)

    def is_written(token: str) -> bool:
        return not token.isspace() and (token in template if named is None else bool(template) and token in named)

    tokens = tokenizer.added_tokens_decoder.values()
    found = [token.content for token in tokens if token.special or is_written(token.content)]
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or r"(?!)")


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
