"""Texts -> ids, of which no token is dropped.

    document ids = the begin token where the tokenizer puts one before a text, the text, then the tokenizer's end token

As everywhere, the text of a control token is encoded as ordinary text. `data.pieces` splits documents for rows.
"""

import re
from collections.abc import Sequence

from data import chat
from data.chat import Tokenizer
from data.schema import Text
from data.tokens import EncodedRecord


def encode_texts(tokenizer: Tokenizer, records: Sequence[Text], *, end: bool = True) -> list[EncodedRecord]:
    """Encode texts in order, each as one answer without a prompt; one of which no token can be learnt (an empty one) is not used.

    Args:
        tokenizer: Of the base model; it needs no chat template.
        records: Texts.
        end: Whether the end token is learnt too.
    """
    begin = _find_begin_token(tokenizer)
    ending: list[int] = [tokenizer.eos_token_id] if end else []
    control = re.compile("|".join(map(re.escape, tokenizer.get_added_vocab())) or r"(?!)")
    encoded: list[EncodedRecord] = []
    for record, ids in zip(records, chat.encode_answers(tokenizer, [record.text for record in records]), strict=True):
        document = [*begin, *ids, *ending]
        used = record.text != "" and len(document) > max(1, len(begin) + len(ending))
        has_control = control.search(record.text) is not None
        responses, ranks = ([document], (1,)) if used else ([], ())
        encoded.append(EncodedRecord([], responses, ranks, cut=False, dropped=0, repeated=0, used=used, control=has_control))
    return encoded


def _find_begin_token(tokenizer: Tokenizer) -> list[int]:
    """Find what the tokenizer puts before every text, as Llama's and Gemma's do: their models have never seen a text without it."""
    added: list[int] = tokenizer("")["input_ids"]
    return added[:1] if added and added[0] == tokenizer.bos_token_id else []
