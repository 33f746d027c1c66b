"""Texts -> ids, and pieces of them that fit into a row; no token is dropped.

    document ids = the begin token where the tokenizer puts one before a text, the text, then the tokenizer's end token

A piece is a pair like a demonstration: its first token, which nothing in its row precedes, and the tokens that are learnt. The next piece
of a long document begins with the last token of the one before, so each token but the document's first is learnt once. As everywhere,
the text of a control token is encoded as ordinary text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data import chat
from data.chat import Tokenizer
from data.schema import DataError, Problem, Text
from data.system.watched import Unfinished, work_in_children
from data.tokens import Counts, EncodedPair

_CHUNK = 512


def encode_documents(tokenizer: Tokenizer, records: Sequence[Text], *, end: bool = True) -> tuple[list[list[int]], Counts]:
    """Encode texts in order; one of which no token can be learnt (an empty one) is left out.

    Args:
        tokenizer: Of the base model; it needs no chat template.
        records: Texts.
        end: Whether the end token is learnt too.

    Returns:
        Each document's ids, uncut; and counts: `texts` read, `texts_used`, `texts_with_control_tokens` (in their text), `text_tokens`
        to learn.
    """
    begin = _find_begin_token(tokenizer)
    ending: list[int] = [tokenizer.eos_token_id] if end else []
    texts = [record.text for record in records if record.text]
    documents = [[*begin, *ids, *ending] for ids in _encode(tokenizer, texts)]
    documents = [ids for ids in documents if len(ids) > max(1, len(begin) + len(ending))]
    control = re.compile("|".join(map(re.escape, tokenizer.get_added_vocab())) or r"(?!)")
    counts = {
        "texts": len(records),
        "texts_used": len(documents),
        "texts_with_control_tokens": sum(control.search(text) is not None for text in texts),
        "text_tokens": sum(len(ids) - 1 for ids in documents),
    }
    return documents, counts


def split_documents(documents: Iterable[Sequence[int]], max_tokens: int) -> list[EncodedPair]:
    """Split documents into pieces of at most `max_tokens` (2 or more), in order."""
    pieces = [ids[start : start + max_tokens] for ids in documents for start in range(0, len(ids) - 1, max_tokens - 1)]
    return [EncodedPair(list(piece[:1]), list(piece[1:])) for piece in pieces]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Encode texts in a child process: a tokenizer may never end."""
    chunks = (list(enumerate(texts[start : start + _CHUNK], start)) for start in range(0, len(texts), _CHUNK))

    def work(chunk: list[tuple[int, str]]) -> list[NDArray[np.int32]]:
        return [np.array(ids, np.int32) for ids in chat.encode_answers(tokenizer, [text for _, text in chunk])]

    try:
        for found in work_in_children(chunks, work, lambda item: len(item[1]), workers=1):
            yield from (ids.tolist() for ids in found)
    except Unfinished as error:
        number, text = cast(tuple[int, str], error.item)
        found = f"found {len(text):,} characters, of which tokenising {error}"
        raise DataError([Problem(f"text {number + 1} ({text[:40]!r})", "", f"{found}; needed a tokenizer that ends; split it")]) from None


def _find_begin_token(tokenizer: Tokenizer) -> list[int]:
    """Find what the tokenizer puts before every text, as Llama's and Gemma's do: their models have never seen a text without it."""
    added: list[int] = tokenizer("")["input_ids"]
    return added[:1] if added and added[0] == tokenizer.bos_token_id else []
