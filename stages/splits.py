"""The records that a stage's spec names: training and held-out, split by prompt where no held-out source is given."""

from collections.abc import Sequence
from typing import Any

from data.load import load_and_split
from data.reading import iter_records, report_on
from data.schema import Comparison, RecordKind
from data.turns import find_openings, find_repeated_openings
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, StageSpec


def load_splits(spec: StageSpec, kind: RecordKind) -> tuple[list[Any], list[Any]]:
    """Load the training and held-out records of one kind.

    Raises:
        DataError: a line is bad, with all problems at once.
        StageError: no training record is left.
    """
    splits = spec.data[kind]
    train, held_out = load_and_split(
        splits.train, splits.eval, kind, eval_fraction=spec.eval_fraction, seed=spec.seed, skip_bad=spec.skip_bad
    )
    if not train:
        raise StageError(f"{splits.train.path}: no {kind} to train on; at least one is needed", EXIT_USAGE)
    return train, held_out


def note_repeated_openings(context: StageContext, tokenizer: Any, kind: RecordKind, answers: Sequence[str]) -> None:
    """Tell the user of training answers that begin with what the prompt ends with: the token stream does not write it twice."""
    found = find_repeated_openings(tokenizer, answers)
    if found:
        ending = find_openings(tokenizer)[-1]
        place = _find_place(context.spec, kind, answers[found[0]])
        context.note(
            f"{place}: {len(found)} of {len(answers)} answers, the first here, begin with {ending!r}, which the prompt ends with already; "
            "it is written once; leave it away in the data"
        )


def _find_place(spec: StageSpec, kind: RecordKind, answer: str) -> str:
    """Find the `file:line` of an answer; records in memory do not know theirs, so its source is read once more."""
    source = spec.data[kind].train
    for place, record in iter_records(source, kind, report_on(source), spec.skip_bad):
        texts = record.completions if isinstance(record, Comparison) else (getattr(record, "completion", None),)
        if answer in texts:
            return place
    return source.path
