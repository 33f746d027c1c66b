"""What the token stream rests on, tried before anything is encoded: special tokens, and a chat template under a limit of time and size.

A template comes with a model from anywhere. It runs in transformers' sandbox, which limits what it reaches but not how long it runs.
"""

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

from data.chat import Tokenizer, encode_answers
from data.schema import DataError, Problem, first_line

MAX_TEMPLATE_SECONDS = 10
MAX_TEMPLATE_CHARACTERS = 100_000


def require_special_tokens(tokenizer: Tokenizer) -> None:
    """Check what the token stream rests on: a chat template that renders, an end token, and another token for padding.

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
        faults = _try_template(tokenizer) or _try_end_token(tokenizer)
    if faults:
        raise DataError([Problem(name, field, message) for field, message in faults])


def require_template(tokenizer: Tokenizer) -> None:
    """Check that the chat template renders a user's message, in time and at a sane length.

    Raises:
        DataError: It does not.
    """
    if faults := _try_template(tokenizer):
        raise DataError([Problem(str(tokenizer.name_or_path or "tokenizer"), field, message) for field, message in faults])


def _try_template(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    try:
        with time_limit():
            text: str = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False)
    except TimeoutError:
        return [("chat_template", f"did not end in {MAX_TEMPLATE_SECONDS} s; needed a template that ends; replace it")]
    except Exception as error:  # whatever a template raises is its own fault
        return [("chat_template", f"cannot render a user's message ({first_line(error)}); needed one that can; replace it")]
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        return [("chat_template", f"wrote {len(text):,} characters for one word; needed a template without floods; replace it")]
    return []


def _try_end_token(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    try:
        typed = encode_answers(tokenizer, [str(tokenizer.eos_token)])[0]
    except DataError:
        typed = [tokenizer.eos_token_id]
    if tokenizer.eos_token_id in typed:
        found = f"{tokenizer.eos_token!r} typed in a text becomes the end token's id"
        return [("eos_token", f"{found}; needed a special token that no text turns into; set another eos_token")]
    return []


@contextlib.contextmanager
def time_limit() -> Generator[None]:
    """Raise TimeoutError in the main thread after `MAX_TEMPLATE_SECONDS`; in another thread there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, MAX_TEMPLATE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
