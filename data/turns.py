"""What a chat template writes around an assistant's answer: the text right before it in a prompt, and the token that ends it.

A template is asked, never read: it renders short conversations, and what stands around the answers in them is looked at.
"""

import re
from collections.abc import Sequence
from typing import Any

from data.chat import Tokenizer
from data.system.watched import limited_memory

# Words that no template holds, and that no template changes: they are trimmed already, and name no tool and no thought.
_QUESTION, _ANSWER, _NEXT_QUESTION = "Q0question", "Q0answer", "Q0more"


def find_end_token(tokenizer: Tokenizer) -> str | None:
    """Find the control token that the chat template writes after an answer; None: it writes none, or ordinary text."""
    first = [_message("user", _QUESTION)]
    answered = [*first, _message("assistant", _ANSWER)]
    try:
        prompt = _render(tokenizer, first, add_generation_prompt=True)
        last = _render(tokenizer, answered).rpartition(_ANSWER)[2]
    except Exception:  # a template that does not render an answer says nothing of its end
        return None
    try:
        middle = _render(tokenizer, [*answered, _message("user", _NEXT_QUESTION)])
        middle = middle.partition(_ANSWER)[2].partition(_NEXT_QUESTION)[0]
    except Exception:
        middle = ""
    control = _control_pattern(tokenizer).search(last)
    # What a template writes behind an answer that stands last may be how it begins the next one.
    if control is None or (control[0] in prompt and control[0] not in middle):
        return None
    return control[0]


def find_openings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Find what an answer must not begin with, because the prompt ends with it, such as `<think>` and a line break; the longest first."""
    try:
        written = _render(tokenizer, [_message("user", _QUESTION)], add_generation_prompt=True).rpartition(_QUESTION)[2]
    except Exception:  # told where prompts are encoded
        return ()
    starts = [i for i in range(len(written)) if i == 0 or written[i] in "<[" or written[i - 1] in ">]" or written[i - 1].isspace()]
    # Not a mere sign (`- `), and no word without an end: `assistants` repeats no `assistant`.
    named = [written[start:] for start in starts if re.search(r"\w", written[start:])]
    return () if written[-1:].isalnum() else tuple(named)


def drop_opening(answer: str, openings: Sequence[str]) -> str:
    """Return an answer without what the prompt before it has written already; as it is where it repeats nothing.

    Blanks between the two may be others than the prompt's: `<think>hmm` repeats `<think>\\n` too.
    """
    for opening in openings:
        if answer.startswith(opening):
            return answer[len(opening) :]
        mark = opening.rstrip()
        if mark != opening and not mark[-1].isalnum() and answer.startswith(mark):
            return answer[len(mark) :].lstrip()
    return answer


def find_missing_opening(tokenizer: Tokenizer) -> str:
    """Find what a template writes before an answer, but not at a prompt's end, though it is asked to; nothing where it is as it should.

    Without it the model would learn to answer behind the user's last word, and be asked so, but see its answers otherwise in a history.
    """
    question = [_message("user", _QUESTION)]
    try:
        plain, prompt = _render(tokenizer, question), _render(tokenizer, question, add_generation_prompt=True)
        answered = _render(tokenizer, [*question, _message("assistant", _ANSWER)])
    except Exception:  # told where prompts are encoded
        return ""
    opening = answered.removeprefix(prompt).partition(_ANSWER)[0]
    unasked = plain == prompt and answered.startswith(prompt) and _ANSWER in answered
    return opening if unasked and opening.strip() else ""


def find_anchor(tokenizer: Tokenizer) -> str:
    """Find what an answer's text is to be encoded behind, so that its ids are those that a history has; nothing where it may stand alone.

    SentencePiece puts a blank before a text that stands alone, which it lacks behind a template's `Assistant:` and a line break: the
    model would learn to begin with another token than the one that its own answers have in the next turn.
    """
    question, answer = [_message("user", _QUESTION)], _message("assistant", _ANSWER)
    try:
        alone, behind = tokenizer.encode(_ANSWER, add_special_tokens=False), _render(tokenizer, question, add_generation_prompt=True)[-1:]
        if tokenizer.encode(f"{behind}{_ANSWER}", add_special_tokens=False)[-len(alone) :] == alone:
            return ""
        history = _render(tokenizer, [*question, answer, _message("user", _NEXT_QUESTION)])
        before = tokenizer.encode(behind, add_special_tokens=False)
        anchored = tokenizer.encode(f"{behind}{_ANSWER}", add_special_tokens=False)[len(before) :]
        ids = tokenizer.encode(history, add_special_tokens=False)
    except Exception:  # told where prompts are encoded
        return ""
    return behind if not _holds(ids, alone) and _holds(ids, anchored) else ""


def _holds(ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(ids[start : start + len(part)]) == list(part) for start in range(len(ids) - len(part) + 1))


def begins_with_prompt(tokenizer: Tokenizer) -> bool:
    """Whether an answered turn is rendered as the prompt and then the answer; templates that strip or add thoughts do otherwise.

    Nothing is trained on such a rendering: an answer is learnt behind the prompt as it is rendered for an answer to come.
    """
    question = [_message("user", _QUESTION)]
    try:
        prompt = _render(tokenizer, question, add_generation_prompt=True)
        return _render(tokenizer, [*question, _message("assistant", _ANSWER)]).startswith(prompt + _ANSWER)
    except Exception:
        return False


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], **options: Any) -> str:
    with limited_memory():
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    control = {*tokenizer.get_added_vocab(), *map(str, tokenizer.all_special_tokens)}
    longest_first = sorted((token for token in control if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
