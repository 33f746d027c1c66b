"""Whether a tokenizer can write a text: answers with characters that it does not know, or capitals that it makes small.

answers, their ids -> which of them read otherwise when the ids are written out
"""

import unicodedata
from collections.abc import Sequence

from data.chat import Tokenizer, encode_answers
from data.schema import DataError

# What a tokenizer of bytes writes as it is, and others in part: capitals, accents, a line break, signs of which hardly one knows all.
_PROBE = "Aé ñ\n\t你 \u0378 \U0001f642 \U0010fffd"


def writes_all(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer writes any text as it is, as those of bytes do."""
    try:
        return not _differs(tokenizer, _PROBE, encode_answers(tokenizer, [_PROBE])[0])
    except DataError:
        return False


def find_altered(tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[Sequence[int]]) -> list[bool]:
    """Find the texts that are others when their ids are written out: characters are unknown or dropped, capitals made small.

    Blanks, and other forms of the same characters (`ﬁ`, `fi`), do not count.

    Args:
        tokenizer: That made ids of them.
        texts: As people wrote them.
        encoded: The ids of each, without an end token.
    """
    if writes_all(tokenizer):
        return [False] * len(texts)
    return [_differs(tokenizer, text, ids) for text, ids in zip(texts, encoded, strict=True)]


def _differs(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> bool:
    return _condense(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) != _condense(text)


def _condense(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
