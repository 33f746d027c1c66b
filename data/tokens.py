"""Records -> prompt ids and response ids: THE one token stream of all three stages.

    prompt ids    = the chat template over the prompt's messages, up to where the assistant's answer begins
    response ids  = the answer's text, without what the prompt ends with (`<think>`), then the end token

Text that was joined is never tokenised again: SFT, RM and PPO all concatenate these two lists. The text of a control
token inside a message or an answer (`<|end|>` typed by a user) is encoded as ordinary text, never as the control id.
Too long prompts are cut (see `cutting.py`) and counted; too long answers are dropped and counted, because an answer
that is cut and then ended teaches the model to stop in the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data import chat
from data.chat import Tokenizer
from data.cutting import cut_prompt
from data.schema import Comparison, DataError, Demonstration, Message, Problem, Prompt
from data.turns import drop_opening, find_openings

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


@dataclass(frozen=True, slots=True)
class EncodedPromptRecord:
    """A prompt's ids beside its messages (what a judge reads)."""

    prompt_ids: list[int]
    prompt: tuple[Message, ...]


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message], max_prompt_tokens: int) -> EncodedPrompt:
    """Encode one prompt with the chat template, cut to at most `max_prompt_tokens` ids.

    Raises:
        DataError: The template refuses the messages, or the prompt cannot be cut short enough.
    """
    return _encode_prompts(tokenizer, [prompt], max_prompt_tokens)[0]


def encode_response(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode one answer and end it with the end token."""
    return _encode_responses(tokenizer, [text])[0]


def encode_demonstrations(
    tokenizer: Tokenizer, records: Sequence[Demonstration], limits: tuple[int, int]
) -> tuple[list[EncodedPair], Counts]:
    """Encode demonstrations in order; one whose response is too long is dropped.

    Args:
        tokenizer: The policy's tokenizer, with a chat template.
        records: Demonstrations.
        limits: max_prompt_tokens and max_response_tokens, both with control and end tokens counted.

    Returns:
        The encoded demonstrations, and counts: `demonstrations` read, `demonstrations_used`, `prompts_cut`, `responses_dropped`.

    Raises:
        DataError: As `encode_prompt`; or no demonstration is left.
    """
    max_prompt_tokens, max_response_tokens = limits
    prompts = _encode_prompts(tokenizer, [record.prompt for record in records], max_prompt_tokens)
    responses = _encode_responses(tokenizer, [record.completion for record in records])
    used = [(prompt, response) for prompt, response in zip(prompts, responses, strict=True) if len(response) <= max_response_tokens]
    _refuse_none_left("demonstrations", len(records), len(used), max_response_tokens)
    counts = {
        "demonstrations": len(records),
        "demonstrations_used": len(used),
        "prompts_cut": sum(prompt.cut for prompt, _ in used),
        "responses_dropped": len(records) - len(used),
    }
    return [EncodedPair(prompt.ids, response) for prompt, response in used], counts


def encode_comparisons(
    tokenizer: Tokenizer, records: Sequence[Comparison], limits: tuple[int, int]
) -> tuple[list[EncodedComparison], Counts]:
    """Encode comparisons in order; a too long answer is dropped, and a comparison of which no pair is left.

    Args:
        tokenizer: The policy's tokenizer, with a chat template.
        records: Comparisons.
        limits: max_prompt_tokens and max_response_tokens, both with control and end tokens counted.

    Returns:
        The encoded comparisons, and counts: `comparisons` read, `comparisons_used`, `prompts_cut`, `responses_dropped`,
        `comparisons_without_pair` (ties in the data and what the drops left).

    Raises:
        DataError: As `encode_prompt`; or no comparison is left.
    """
    max_prompt_tokens, max_response_tokens = limits
    prompts = _encode_prompts(tokenizer, [record.prompt for record in records], max_prompt_tokens)
    responses = iter(_encode_responses(tokenizer, [text for record in records for text in record.completions]))
    used: list[EncodedComparison] = []
    prompts_cut = responses_dropped = 0
    for record, prompt in zip(records, prompts, strict=True):
        answers = [(next(responses), rank) for rank in record.ranks]
        kept = [(ids, rank) for ids, rank in answers if len(ids) <= max_response_tokens]
        responses_dropped += len(answers) - len(kept)
        ranks = tuple(rank for _, rank in kept)
        if len(set(ranks)) > 1:
            used.append(EncodedComparison(prompt.ids, [ids for ids, _ in kept], ranks, record.source))
            prompts_cut += prompt.cut
    _refuse_none_left("comparisons", len(records), len(used), max_response_tokens)
    counts = {
        "comparisons": len(records),
        "comparisons_used": len(used),
        "prompts_cut": prompts_cut,
        "responses_dropped": responses_dropped,
        "comparisons_without_pair": len(records) - len(used),
    }
    return used, counts


def encode_prompts(tokenizer: Tokenizer, records: Sequence[Prompt], limits: tuple[int, int]) -> tuple[list[EncodedPromptRecord], Counts]:
    """Encode prompts in order; none is dropped.

    Returns:
        The encoded prompts, and counts: `prompts`, `prompts_cut`.

    Raises:
        DataError: As `encode_prompt`.
    """
    prompts = _encode_prompts(tokenizer, [record.prompt for record in records], limits[0])
    encoded = [EncodedPromptRecord(prompt.ids, record.prompt) for prompt, record in zip(prompts, records, strict=True)]
    return encoded, {"prompts": len(records), "prompts_cut": sum(prompt.cut for prompt in prompts)}


def _refuse_none_left(kind: str, num_records: int, num_used: int, max_response_tokens: int) -> None:
    if num_records and not num_used:
        found = f"none of {num_records} can be used: answers are longer than {max_response_tokens} tokens or make no pair"
        raise DataError([Problem(kind, "max_response_tokens", f"{found}; needed at least one; raise the limit or check the records")])


def _encode_responses(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    openings = find_openings(tokenizer)
    answers = [drop_opening(text, openings) for text in texts]
    return [[*ids, tokenizer.eos_token_id] for ids in chat.encode_answers(tokenizer, answers)]


def _encode_prompts(tokenizer: Tokenizer, prompts: Sequence[chat.Messages], max_prompt_tokens: int) -> list[EncodedPrompt]:
    encoded = zip(prompts, chat.encode_prompts(tokenizer, prompts), strict=True)
    return [
        EncodedPrompt(ids, cut=False)
        if len(ids) <= max_prompt_tokens
        else EncodedPrompt(cut_prompt(tokenizer, prompt, max_prompt_tokens), cut=True)
        for prompt, ids in encoded
    ]
