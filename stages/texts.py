"""The token ids of texts, made once and mapped: training and held-out; of a single text the end is held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.fingerprint import Fingerprint, fingerprint
from data.holdout import split_text
from data.pieces import TextSet, split_texts, take_all_texts
from data.schema import DataError, Text
from data.token_maker import Placed, open_tokens
from data.token_split import load_places
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, DataSource, DataSplits
from stages.token_store import TokenStore, describe_change, open_text_store

Texts = tuple[TextSet, TextSet]


def load_texts(context: StageContext, tokenizer: Any, *, end: bool) -> Texts:
    """Map the token ids of texts, made first where they are not there.

    Args:
        context: Of the stage.
        tokenizer: Of the model that learns.
        end: Whether the end token after each document is learnt too.

    Returns:
        (training texts, held-out texts).

    Raises:
        DataError: A text cannot be read or encoded, or they are too few.
        StageError: No token can be learnt of any.
    """
    spec = context.spec
    splits = spec.data["texts"]
    store = open_text_store(spec, tokenizer, spec.tokens_dir or spec.checkpoint_dir / "tokens", end=end, workers=1)

    def make() -> list[Path]:
        return make_texts(store, splits, spec.fingerprints.get("texts", {}), spec.eval_fraction, spec.seed, lambda _: None)

    sides = open_texts(store, decide_in_main(context, make), splits, spec.eval_fraction, spec.seed)
    if not len(sides[0].used):
        raise StageError(
            "texts: all are empty, so there is nothing to learn; needed at least one that is not; check the source", EXIT_USAGE
        )
    return sides


def make_texts(
    store: TokenStore,
    splits: DataSplits,
    fingerprints: dict[str, str],
    eval_fraction: float,
    seed: int,
    progress: Callable[[int], None],
) -> list[Path]:
    """Make the directories of training texts and of held-out ones, or one that is split when it is opened.

    Args:
        store: Gets them.
        splits: The sources.
        fingerprints: `train`, `eval` -> of what is expected there.
        eval_fraction: Share to hold out, where that has no source.
        seed: By which it is chosen.
        progress: Is told how many texts of a source are done.
    """
    train, expected = splits.train, fingerprints.get("train")
    if splits.eval is not None:
        return [store.make(train, "texts", expected, progress), store.make(splits.eval, "texts", fingerprints.get("eval"), progress)]
    if parts := _split_only_text(store, train, expected, eval_fraction):
        return [store.make_of(lambda part=part: [part], "texts", train.path, fingerprint([part[1]]), progress) for part in parts]
    made = store.make(train, "texts", expected, progress)
    load_places(made, open_tokens(made), seed, _Texts(store, train))
    return [made]


def open_texts(store: TokenStore, directories: list[Path], splits: DataSplits, eval_fraction: float, seed: int) -> Texts:
    """Map what `make_texts` made; see there."""
    files = [open_tokens(directory) for directory in directories]
    if len(files) == 2:
        return take_all_texts(files[0]), take_all_texts(files[1])
    places = load_places(directories[0], files[0], seed, _Texts(store, splits.train))
    return split_texts(files[0], places, eval_fraction, splits.train.path)


class _Texts:
    """The texts of a source, each read when it is asked for."""

    def __init__(self, store: TokenStore, source: DataSource) -> None:
        self._store, self._source = store, source

    def __iter__(self) -> Any:
        return (record.text for _, record in self._store.stream(self._source, "texts") if isinstance(record, Text))


def _split_only_text(store: TokenStore, source: DataSource, expected: str | None, fraction: float) -> list[Placed] | None:
    """Split the one text of a source that has a single one, where it has parts.

    Raises:
        DataError: It is not what is expected.
    """
    only: tuple[str, str] | None = None
    content = Fingerprint()
    for where, record in store.stream(source, "texts"):
        content.add(record)
        if isinstance(record, Text) and record.text:
            if only is not None:
                return None
            only = where, record.text
    parts = None if only is None else split_text(only[1], fraction)
    if only is None or parts is None:
        return None
    if content.text != (expected or content.text):
        raise DataError([describe_change(source.path)])
    return [(only[0], Text(part)) for part in parts]
