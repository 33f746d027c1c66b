"""What ends a response in place of the tokenizer's end token: a token, or text of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.process.errors import StageError
from stages.spec import EXIT_USAGE


@dataclass(frozen=True)
class StopText:
    """Text that ends a response, in whatever tokens it is said."""

    text: str
    tokenizer: Any

    def ends(self, response: Sequence[int]) -> bool:
        """Whether the last tokens of a response hold the text; at least one byte of it is in each of them."""
        last = response[-len(self.text.encode()) :]
        return self.text in self.tokenizer.decode(last, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def find_stop(stage: str, stop: str | None, tokenizer: Any) -> tuple[int, StopText | None]:
    """Find what the `stop_token` of a stage stands for.

    Returns:
        (the token that ends a response, the text that does so in its place); the end token and None where nothing is asked for.

    Raises:
        StageError: It is the pad token, or text that the tokenizer cannot write; exit code 2.
    """
    key, token_id, text = f"{stage}.stop_token", tokenizer.eos_token_id, None
    if stop is not None and stop in tokenizer.get_vocab():
        token_id = tokenizer.get_vocab()[stop]
    elif stop is not None:
        text = StopText(stop, tokenizer)
        if not text.ends(tokenizer(stop, add_special_tokens=False)["input_ids"]):
            raise StageError(f"{key} = {stop!r} cannot be written in the tokenizer's tokens; give other text, or null", EXIT_USAGE)
    if stop is not None and token_id == tokenizer.pad_token_id:
        raise StageError(f"{key} = {stop!r} is the pad token; give another token, or null", EXIT_USAGE)
    return token_id, text
