"""What the token stream rests on, tried before anything is encoded: special tokens, and a chat template under limits of time and size.

A template comes with a model from anywhere. It runs in transformers' sandbox, which limits what it reaches but not how long it runs: that
`data.system.watched` does.
"""

import re
from collections.abc import Callable

from data.chat import Tokenizer, encode_answers
from data.schema import DataError, Problem, first_line
from data.system.watched import ITEM_SECONDS, Unfinished, work_one_by_one

MAX_TEMPLATE_CHARACTERS = 100_000
_MARKED = re.compile(r"[<\[{|].*[>\]}|]$")  # how tokens that are no words are written


def require_special_tokens(tokenizer: Tokenizer, *, tried: bool = False) -> None:
    """Check what the token stream rests on: a chat template that renders, an end token, and another token for padding.

    Args:
        tokenizer: What is looked at.
        tried: Whether this is part of what `require_ends` tries, or has tried: the template is then rendered in this process.

    Raises:
        DataError: One of them is missing or wrong; all such faults are in it.
    """
    name = str(tokenizer.name_or_path or "tokenizer")
    faults: list[tuple[str, str]] = []
    if not tokenizer.chat_template:
        faults.append(("chat_template", "missing; needed a template that renders messages; take the model that the sft stage left"))
    if tokenizer.eos_token_id is None:
        faults.append(("eos_token", "missing; needed a token that ends a response; set eos_token"))
    if tokenizer.pad_token_id is None:
        faults.append(("pad_token", "missing; needed a token for padding; set pad_token to an unused special token"))
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        found = f"is the end token {tokenizer.eos_token!r} too, so the model would never learn to stop"
        faults.append(("pad_token", f"{found}; needed another token; set pad_token to an unused special token"))
    if not faults:
        faults = _try_template(tokenizer, tried) or _try_tokens(tokenizer)
    if faults:
        raise DataError([Problem(name, field, message) for field, message in faults])


def require_ends(tokenizer: Tokenizer, trial: Callable[[], object]) -> None:
    """Try what asks a template or a tokenizer in a child process, so that it may be done here: of the same, the same comes.

    Raises:
        DataError: It takes too much time or memory; or the trial raises one.
    """

    def attempt(_: None) -> None:
        try:
            trial()
        except (MemoryError, DataError):
            raise
        except Exception:  # raised again here
            return

    try:
        list(work_one_by_one([None], attempt, lambda _: ITEM_SECONDS))
    except Unfinished as error:
        raise DataError([Problem(str(tokenizer.name_or_path or "tokenizer"), *_describe_endless(error))]) from None


def require_template(tokenizer: Tokenizer) -> None:
    """Refuse a chat template that does not end, floods, or does not write what it is given: it is tried in a child, with limits.

    Raises:
        DataError: It does.
    """
    if tokenizer.chat_template and (problems := _try_template(tokenizer, tried=False)):
        raise DataError([Problem(str(tokenizer.name_or_path or "tokenizer"), *problem) for problem in problems])


def _describe_endless(error: Unfinished) -> tuple[str, str]:
    return "chat_template", f"with a message of one word, it or the tokenizer {error}; needed ones that end; replace them"


def _try_template(tokenizer: Tokenizer, tried: bool) -> list[tuple[str, str]]:
    def render(_: None) -> list[str]:
        return [_render(tokenizer, word) for word in ("Hello", "Goodbye", "Hello")]

    try:
        (hello, goodbye, again) = render(None) if tried else next(work_one_by_one([None], render, lambda _: ITEM_SECONDS))
    except Unfinished as error:
        return [_describe_endless(error)]
    except MemoryError:
        raise
    except Exception as error:  # whatever a template raises is its own fault
        return [("chat_template", f"cannot render a user's message ({first_line(error)}); needed one that can; replace it")]
    if len(hello) > MAX_TEMPLATE_CHARACTERS:
        return [("chat_template", f"wrote {len(hello):,} characters for one word; needed a template without floods; replace it")]
    if hello != again:
        return [("chat_template", "wrote two texts for the same message (chance?); needed the same each time; replace it")]
    if hello == goodbye:
        return [("chat_template", "wrote the same for Hello and Goodbye; needed a template that writes the user's message; replace it")]
    return []


def _render(tokenizer: Tokenizer, word: str) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": word}], add_generation_prompt=True, tokenize=False)


def _try_tokens(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Find an end or pad token that text turns into: a response would stop at it, or lose it where special tokens are left out."""
    faults: list[tuple[str, str]] = []
    for field, what in (("eos_token", "end"), ("pad_token", "pad")):
        if field == "pad_token" and tokenizer.pad_token_id == tokenizer.unk_token_id:  # of which texts may be full: masks are of lengths
            continue
        token, number = str(getattr(tokenizer, field)), getattr(tokenizer, f"{field}_id")
        try:
            typed = encode_answers(tokenizer, [token])[0]
        except DataError:  # so is each record that holds it: few do, where it is no word (in a Unigram vocabulary it is a piece)
            typed = [] if _MARKED.match(token) else [number]
        if number in typed:
            found = f"{token!r} typed in a text becomes the {what} token's id"
            faults.append((field, f"{found}; needed a special token that no text turns into; set another {field}"))
    return faults
