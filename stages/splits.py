"""The records that a stage's spec names: training and held-out, split by prompt where no held-out source is given."""

from typing import Any

from data.load import load_and_split
from data.schema import RecordKind
from data.treatment import make_treatment
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
        splits.train,
        splits.eval,
        kind,
        eval_fraction=spec.eval_fraction,
        seed=spec.seed,
        skip_bad=spec.skip_bad,
        treat=make_treatment(spec.redact, spec.forgotten),
    )
    if not train:
        raise StageError(f"{splits.train.path}: no {kind} to train on; at least one is needed", EXIT_USAGE)
    return train, held_out
