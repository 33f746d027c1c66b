"""Records of one kind, by split -> findings: what no single line shows (duplicates, contradictions, leakage)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from data.schema import Comparison, Demonstration, Message, Record, Text


@dataclass(frozen=True)
class Findings:
    """What the whole-set checks found.

    Args:
        counts: Records per split, and how many are duplicated, contradictory, leaked, without a pair, empty.
        errors: What makes training pointless; the caller stops.
        warnings: What the user should know; training goes on.
    """

    counts: dict[str, int]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check(splits: Mapping[str, Sequence[Record]]) -> Findings:
    """Check the record sets of one kind against themselves and each other.

    A comparison whose ranks are all equal makes no pair: it is counted and left out of training; when none has a pair,
    that is an error.

    Args:
        splits: `train` and, where there is one, `eval`.
    """
    if any(isinstance(record, Text) for split in splits.values() for record in split):
        return _check_texts({name: [record.text for record in split if isinstance(record, Text)] for name, split in splits.items()})
    train, held_out = splits.get("train", ()), splits.get("eval", ())
    records = [*train, *held_out]
    prompts, held_out_prompts = ({record.prompt for record in split if not isinstance(record, Text)} for split in (train, held_out))
    comparisons = [record for record in records if isinstance(record, Comparison)]
    counts = {name: len(split) for name, split in splits.items()}
    counts |= {
        "duplicates": len(train) - len(set(train)),
        "contradictions": _count_contradictions(comparisons),
        "leaked_prompts": len(prompts & held_out_prompts),
        "comparisons_without_pair": sum(not comparison.has_pair for comparison in comparisons),
        "empty_answers": sum(not answer.strip() for record in records for answer in _answers(record)),
    }
    errors = [f"{name}: found no records; needed at least one; check the source" for name, split in splits.items() if not split]
    for name, split in splits.items():
        ranked = [record for record in split if isinstance(record, Comparison)]
        if ranked and not any(comparison.has_pair for comparison in ranked):
            errors.append(f"{name}: ranks: all {len(ranked)} comparisons rank their answers equal; needed different ranks; rank them")
    return Findings(counts, tuple(errors), tuple(_warnings(counts)))


def _check_texts(splits: Mapping[str, Sequence[str]]) -> Findings:
    """Check texts: an empty one is left out of training, so it is not counted as a copy of another one."""
    filled = {name: [text for text in split if text] for name, split in splits.items()}
    train, held_out = filled.get("train", []), filled.get("eval", [])
    counts = {name: len(split) for name, split in splits.items()}
    counts |= {
        "duplicates": len(train) - len(set(train)),
        "leaked_texts": len(set(train) & set(held_out)),
        "empty_texts": sum(len(splits[name]) - len(split) for name, split in filled.items()),
    }
    errors = [f"{name}: found no text that is not empty; needed at least one; check the source" for name in filled if not filled[name]]
    return Findings(counts, tuple(errors), tuple(_warnings(counts)))


def _warnings(counts: Mapping[str, int]) -> Iterable[str]:
    texts = {
        "duplicates": "training records occur more than once; each copy trains again; remove them if that is not wanted",
        "contradictions": "pairs of answers are ranked both ways for one prompt; they teach nothing; keep one ranking",
        "leaked_prompts": "held-out prompts also occur in training; held-out figures look too good; remove them from one side",
        "leaked_texts": "held-out texts also occur in training; held-out figures look too good; remove them from one side",
        "empty_texts": "texts are empty; they teach nothing and are left out",
        "comparisons_without_pair": "comparisons rank all answers equal; they make no pair and are left out",
        "empty_answers": "ranked answers are empty; they train as an immediate end token; remove them if that is not meant",
    }
    return (f"{counts[name]} {text}" for name, text in texts.items() if counts.get(name))


def _answers(record: Record) -> tuple[str, ...]:
    if isinstance(record, Comparison):
        return record.completions
    return (record.completion,) if isinstance(record, Demonstration) else ()


def _count_contradictions(comparisons: Iterable[Comparison]) -> int:
    """Count pairs of answers that are ranked in both orders for the same prompt, within one comparison or across several."""
    orders: dict[tuple[Message, ...], set[tuple[str, str]]] = {}
    for comparison in comparisons:
        seen = orders.setdefault(comparison.prompt, set())
        ranked = sorted(zip(comparison.ranks, comparison.completions, strict=True))
        seen.update((better, worse) for (high, better), (low, worse) in combinations(ranked, 2) if high < low)
    return sum((worse, better) in seen for seen in orders.values() for better, worse in seen if better <= worse)
