"""The records that a stage's spec names: training and held-out, split by prompt where no held-out source is given."""

from collections.abc import Sequence
from typing import Any

from data.load import load_and_split
from data.schema import RecordKind
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


def note_repeated_openings(context: StageContext, tokenizer: Any, kind: RecordKind, answers: Sequence[Sequence[str]]) -> None:
    """Tell the user of answers that begin with what the prompt ends with: the token stream does not write it twice.

    Args:
        context: Of the stage.
        tokenizer: The policy's.
        kind: Of the records.
        answers: Those of each record.
    """
    records = [record for record, texts in enumerate(answers) for _ in texts]
    found = find_repeated_openings(tokenizer, [text for texts in answers for text in texts])
    if found:
        ending = find_openings(tokenizer)[-1]
        context.note(
            f"{context.spec.data[kind].train.path}: {len(found)} of {len(records)} answers begin with what the prompt ends with already "
            f"({ending!r}; the first is of record {records[found[0]] + 1}): it is written once; leave it away in the data"
        )
