"""Too long prompt -> the longest part of it that still makes sense: later turns first, then whole paragraphs, sentences, words."""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from data.chat import Messages, Tokenizer, encode_prompts
from data.schema import DataError, Message, Problem

# From the best place for a cut to the worst.
PARAGRAPH = re.compile(r"\n\s*\n")
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s|(?<=[。！？])[”’」』]*|\n")
WORD = re.compile(r"\s")
BOUNDARIES = (PARAGRAPH, SENTENCE, WORD)
# A better boundary is taken when it keeps at least this share of what fits.
MIN_KEPT = 0.5


def cut_prompt(tokenizer: Tokenizer, prompt: Messages, max_tokens: int) -> list[int]:
    """Shorten a prompt until it fits: drop its oldest turns (a system message stays), then cut the longest message's end.

    Args:
        tokenizer: With a chat template.
        prompt: Messages that end with the user's.
        max_tokens: Most ids to return, template included.

    Returns:
        The ids of the shortened prompt.

    Raises:
        DataError: The template alone is longer than `max_tokens`.
    """
    messages = _drop_oldest_turns(prompt, lambda messages: len(encode_prompts(tokenizer, [messages])[0]) <= max_tokens)
    while len(ids := encode_prompts(tokenizer, [messages])[0]) > max_tokens:
        longest = max(range(len(messages)), key=lambda i: len(messages[i].content))
        text = messages[longest].content
        shorter = _cut_tokens(tokenizer, text, len(ids) - max_tokens)
        if not shorter:
            needed = "needed room for the chat template and a few words; raise it"
            raise DataError([Problem("", "tokens.max_prompt_tokens", f"found {max_tokens}, too short for a prompt; {needed}")])
        messages[longest] = replace(messages[longest], content=shorter)
    return ids


def _drop_oldest_turns(prompt: Messages, fits: Callable[[Messages], bool]) -> list[Message]:
    """Keep a leading system message and as many of the last turns as fit, from a user's message on; at least the last."""
    system = [message for message in prompt[:1] if message.role == "system"]
    starts = [i for i, message in enumerate(prompt) if message.role == "user" and i >= len(system)]
    first = bisect_left(starts, True, hi=len(starts) - 1, key=lambda start: fits([*system, *prompt[start:]]))
    return [*system, *prompt[starts[first] :]]


def _cut_tokens(tokenizer: Tokenizer, text: str, excess: int) -> str:
    """Cut about `excess` tokens (at most all but one) off the end of a text; always shorter, perhaps empty."""
    if (stripped := text.strip()) != text:
        return stripped  # blanks around the text go first: they may already be what is too much
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    num_tokens = len(encoded["input_ids"])
    num_kept = max(num_tokens - excess, 1)
    if tokenizer.is_fast:
        limit = int(encoded["offset_mapping"][num_kept - 1][1]) if num_tokens else 0
    else:
        limit = len(text) * num_kept // max(num_tokens, 1)
    return cut_text(text, min(limit, len(text) - 1))


def cut_text(text: str, limit: int) -> str:
    """Cut a text to at most `limit` characters, at the end of a paragraph, else a sentence, else a word, else anywhere.

    A better boundary wins when it keeps at least half of what fits; blanks at the end go too.
    """
    for boundary in BOUNDARIES:
        # One character more is looked at: a boundary right behind the limit keeps everything that fits.
        ends = [end for match in boundary.finditer(text[: limit + 1]) if (end := _kept_by(match)) <= limit]
        if ends and ends[-1] >= MIN_KEPT * limit and (kept := text[: ends[-1]].rstrip()):
            return kept
    return text[:limit].rstrip()


def _kept_by(match: re.Match[str]) -> int:
    """Where the kept text ends: before the blanks of a boundary, after a sentence's closing quotes."""
    return match.end() - (len(match.group()) - len(match.group().rstrip()))
