"""Records -> prompt ids and response ids: THE one token stream of all three stages.

    prompt ids    = the chat template over the prompt's messages, up to where the assistant's answer begins
    response ids  = the answer's text, without what the prompt ends with (`<think>`), then the end token

Text that was joined is never tokenised again: SFT, RM and PPO all concatenate these two lists. The text of a control
token inside a message or an answer (`<|end|>` typed by a user) is encoded as ordinary text, never as the control id.
Too long prompts are cut (see `cutting.py`) and counted; too long answers are dropped and counted, because an answer
that is cut and then ended teaches the model to stop in the middle.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from data import chat
from data.chat import Tokenizer
from data.cutting import cut_prompt
from data.lossless import find_altered
from data.schema import Comparison, Conversation, DataError, Message, Problem, RecordKind
from data.turns import drop_opening, find_anchor, find_openings

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's ids, and whether it was cut to fit."""

    ids: list[int]
    cut: bool


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A demonstration."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedComparison:
    """A comparison: `responses` and `ranks` belong together, with at least two different ranks."""

    prompt_ids: list[int]
    responses: list[list[int]]
    ranks: tuple[int, ...]
    source: str
    grades: tuple[float, ...] = ()  # NaN for a response without one; empty where none has one


@dataclass(frozen=True, slots=True)
class EncodedPromptRecord:
    """A prompt's ids beside its messages (what a judge reads)."""

    prompt_ids: list[int]
    prompt: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record of any kind, with what can be used of it.

    Args:
        prompt_ids: Its prompt's.
        responses: Ids of its answers; none where it is not used.
        ranks: One for each of them.
        cut: Whether its prompt was cut to fit.
        dropped: How many of its answers are too long.
        repeated: How many of its answers begin with what the prompt ends with; it is not written twice.
        used: Whether it can be trained on.
        control: Whether it holds the text of a control token, in what was asked or answered, or in a text.
        grades: Of its responses, NaN for one without; empty where none has one.
        altered: How many of its answers are others when their ids are written out; see `data.lossless`.
    """

    prompt_ids: list[int]
    responses: list[list[int]]
    ranks: tuple[int, ...]
    cut: bool
    dropped: int
    repeated: int
    used: bool
    control: bool = False
    grades: tuple[float, ...] = ()
    altered: int = 0


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message], max_prompt_tokens: int) -> EncodedPrompt:
    """Encode one prompt with the chat template, cut to at most `max_prompt_tokens` ids.

    Raises:
        DataError: The template refuses the messages, or the prompt cannot be cut short enough.
    """
    return _encode_prompts(tokenizer, [prompt], max_prompt_tokens)[0]


def encode_response(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode one answer and end it with the end token."""
    return _encode_responses(tokenizer, [drop_opening(text, find_openings(tokenizer))])[0]


def encode_records(tokenizer: Tokenizer, records: Sequence[Conversation], limits: tuple[int, int]) -> list[EncodedRecord]:
    """Encode records in order, each with what can be used of it.

    A too long answer is dropped, and with it the demonstration; a comparison is used while a pair is left of it, a prompt always.

    Args:
        tokenizer: The policy's tokenizer, with a chat template.
        records: Of one kind or several.
        limits: max_prompt_tokens and max_response_tokens, both with control and end tokens counted.

    Raises:
        DataError: As `encode_prompt`; records are named by their number.
    """
    max_prompt_tokens, max_response_tokens = limits
    prompts = _encode_prompts(tokenizer, [record.prompt for record in records], max_prompt_tokens)
    openings, control = find_openings(tokenizer), chat.find_control_tokens(tokenizer, "")
    texts = [drop_opening(text, openings) for record in records for text in record.answers]
    all_responses = _encode_responses(tokenizer, texts)
    responses, altered = iter(all_responses), iter(find_altered(tokenizer, texts, [ids[:-1] for ids in all_responses]))
    encoded: list[EncodedRecord] = []
    for record, prompt in zip(records, prompts, strict=True):
        answers = [next(responses) for _ in record.answers]
        ranks = record.ranks if isinstance(record, Comparison) else (1,) * len(answers)
        grades = [math.nan if grade is None else grade for grade in getattr(record, "grades", ())] or [math.nan] * len(answers)
        kept = [each for each in zip(answers, ranks, grades, strict=True) if len(each[0]) <= max_response_tokens]
        used = len({rank for _, rank, _ in kept}) > 1 if isinstance(record, Comparison) else len(kept) == len(answers)
        kept = kept if used else []
        dropped = sum(len(ids) > max_response_tokens for ids in answers)
        repeated = sum(drop_opening(text, openings) != text for text in record.answers)
        own = [ids for ids, _, _ in kept], tuple(rank for _, rank, _ in kept)
        graded = tuple(grade for _, _, grade in kept) if any(not math.isnan(grade) for _, _, grade in kept) else ()
        lossy = sum(islice(altered, len(answers)))
        typed = any(control.search(text) for text in (*(message.content for message in record.prompt), *record.answers))
        encoded.append(EncodedRecord(prompt.ids, *own, prompt.cut, dropped, repeated, used, typed, graded, lossy))
    return encoded


def count_records(kind: RecordKind, *, used: int, records: int, prompts_cut: int, responses_dropped: int) -> Counts:
    """Say how many records were read, used, cut and dropped.

    Args:
        kind: Of the records.
        used: Those that train.
        records: All.
        prompts_cut: Of those that are used.
        responses_dropped: For being too long.

    Returns:
        `<kind>`, `prompts_cut`; but for prompts `<kind>_used`, `responses_dropped`; for comparisons `comparisons_without_pair` (ties in
        the data and what the drops left).
    """
    if kind == "prompts":
        return {kind: records, "prompts_cut": prompts_cut}
    counts = {kind: records, f"{kind}_used": used, "prompts_cut": prompts_cut, "responses_dropped": responses_dropped}
    return counts | ({"comparisons_without_pair": records - used} if kind == "comparisons" else {})


def refuse_none_left(kind: str, num_records: int, num_used: int, max_response_tokens: int) -> None:
    """Refuse a set of records none of which can be used.

    Raises:
        DataError: None is left of some.
    """
    if num_records and not num_used:
        found = f"none of {num_records} can be used: answers are longer than {max_response_tokens} tokens or make no pair"
        raise DataError([Problem(kind, "max_response_tokens", f"{found}; needed at least one; raise the limit or check the records")])


def _encode_responses(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [[*ids, tokenizer.eos_token_id] for ids in chat.encode_answers(tokenizer, texts, find_anchor(tokenizer))]


def _encode_prompts(tokenizer: Tokenizer, prompts: Sequence[chat.Messages], max_prompt_tokens: int) -> list[EncodedPrompt]:
    encoded = zip(prompts, chat.encode_prompts(tokenizer, prompts), strict=True)
    return [
        EncodedPrompt(ids, cut=False)
        if len(ids) <= max_prompt_tokens
        else EncodedPrompt(cut_prompt(tokenizer, prompt, max_prompt_tokens), cut=True)
        for prompt, ids in encoded
    ]
