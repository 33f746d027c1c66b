"""What the length limits and ties take of a record set: counts -> one line for the screen, and a warning where it is much."""

from collections.abc import Mapping

from data.schema import RecordKind

Limits = tuple[int, int]  # max_prompt_tokens, max_response_tokens
TOLERATED = 0.05  # a larger share is warned of


def describe_shortfall(kind: RecordKind, counts: Mapping[str, int], limits: Limits) -> str:
    """Say what was dropped and cut: `3 of 40 demonstrations dropped (longer than 512 tokens), 2 prompts cut to 512`; else nothing.

    Args:
        kind: Of the records.
        counts: As `data.tokens.count_records` makes them.
        limits: The length limits.
    """
    records, dropped, cut = counts[kind], counts.get("responses_dropped", 0), counts.get("prompts_cut", 0)
    parts: list[str] = []
    if dropped and kind == "demonstrations":
        parts.append(f"{dropped:,} of {records:,} demonstrations dropped (longer than {limits[1]} tokens)")
    elif dropped:
        parts.append(f"{_count(dropped, 'answer')} dropped (longer than {limits[1]} tokens)")
    if lost := counts.get("comparisons_without_pair", 0):
        parts.append(f"{lost:,} of {records:,} comparisons left out ({'ties, or what the drops left' if dropped else 'ties'})")
    if cut:
        parts.append(f"{_count(cut, 'prompt')} cut to {limits[0]} tokens")
    return ", ".join(parts)


def warn_of_shortfall(kind: RecordKind, counts: Mapping[str, int], limits: Limits) -> list[str]:
    """Say where more than 5 % of the records are dropped or cut, and what to do.

    Args:
        kind: Of the records.
        counts: As `data.tokens.count_records` makes them.
        limits: The length limits.
    """
    records, unused = counts[kind], counts[kind] - counts.get(f"{kind}_used", counts[kind])
    warnings: list[str] = []
    if unused > TOLERATED * records:
        ways = "raise tokens.max_response_tokens or shorten them" if counts.get("responses_dropped") else "rank their answers differently"
        found = f"{unused:,} of {records:,} {kind} ({unused / records:.0%}) are left out"
        warnings.append(f"{found}: {describe_shortfall(kind, dict(counts) | {'prompts_cut': 0}, limits)}; {ways}")
    if (cut := counts.get("prompts_cut", 0)) > TOLERATED * records:
        found = f"{_count(cut, 'prompt')} of {records:,} ({cut / records:.0%}) are cut to {limits[0]} tokens"
        warnings.append(f"{found}; raise tokens.max_prompt_tokens or shorten them")
    if altered := counts.get("answers_altered", 0):
        found = f"{_count(altered, 'answer')} cannot be written by the tokenizer as they are (unknown or dropped characters, capitals)"
        warnings.append(f"{found}: the model learns them otherwise; take a base model whose tokenizer knows their characters")
    if repeated := counts.get("openings_repeated", 0):
        warnings.append(f"{_count(repeated, 'answer')} begin with what the prompt ends with; it is written once; leave it away in the data")
    if control := counts.get("control_tokens", 0):
        found = f"{control:,} of {records:,} {kind} hold the text of a control token, such as an end token or a whole chat template's"
        warnings.append(f"{found}: it is learnt as ordinary text, and the tokens themselves are written besides; leave it away in the data")
    return warnings


def warn_of_dropped_answers(kind: RecordKind, counts: Mapping[str, int], answers: int, limits: Limits) -> list[str]:
    """Say where more than 5 % of the answers of comparisons are dropped for their length, though the comparisons are left.

    Those that are dropped are the longest, so a reward model does not learn what a long answer is worth.

    Args:
        kind: Of the records.
        counts: As `data.tokens.count_records` makes them.
        answers: That all records have.
        limits: The length limits.
    """
    dropped = counts.get("responses_dropped", 0)
    if kind != "comparisons" or not dropped > TOLERATED * answers:
        return []
    found = f"{dropped:,} of {answers:,} answers ({dropped / answers:.0%}) are longer than {limits[1]} tokens and dropped"
    return [f"{found}: what a long answer is worth is not learnt; raise tokens.max_response_tokens"]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
