"""The token ids of the records that a stage's spec names: made once, kept on the disk, mapped by every process.

    python -P -m stages.tokens SPEC.json

makes those of all record sets of a recipe before its first stage runs, by all cores: bad records are told before anything trains.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from data import chat
from data.load import stream_records
from data.lossless import find_altered
from data.reading import report_on
from data.schema import DataError, Problem, Record, RecordKind
from data.shortfall import TOLERATED, describe_shortfall, warn_of_dropped_answers, warn_of_shortfall
from data.system.limits import count_cores
from data.token_maker import open_tokens
from data.token_split import TokenSet, load_places, split_tokens, take_all
from data.tokens import refuse_none_left
from data.treatment import make_treatment
from data.turns import find_openings
from stages.ahead import check_lengths, check_model
from stages.events import append_event
from stages.lines import to_line
from stages.models.tokenizer import open_tokenizer, settle_tokenizer
from stages.process.context import StageContext
from stages.process.disk import describe_path, find_refusal
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.process.output import redact_streams
from stages.spec import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, EXIT_USAGE, DataSource, DataSplits, StageName, TokensSpec
from stages.texts import make_texts, open_texts
from stages.token_store import open_conversation_store, open_text_store

_EVENTS_PER_S = 4
Sides = tuple[TokenSet, TokenSet]


def load_tokens(context: StageContext, tokenizer: Any, kind: RecordKind) -> Sides:
    """Map the token ids of one kind, made first where they are not there; and say what was cut and dropped.

    Returns:
        (training records, held-out records).

    Raises:
        DataError: a record cannot be read or encoded, or none is left.
    """
    spec = context.spec
    splits, limits = spec.data[kind], (spec.tokens.max_prompt_tokens, spec.tokens.max_response_tokens)
    store = open_conversation_store(spec, tokenizer, spec.tokens_dir or spec.checkpoint_dir / "tokens", workers=1)

    def make() -> list[Path]:
        made = [
            store.make(source, kind, spec.fingerprints.get(kind, {}).get(split), lambda _: None)
            for split, source in (("train", splits.train), ("eval", splits.eval))
            if source is not None
        ]
        if splits.eval is None:
            load_places(made[0], open_tokens(made[0]), spec.seed)
        return made

    sides = open_sides(decide_in_main(context, make), kind, splits, limits, spec.eval_fraction, spec.seed)
    for side, source, which in zip(sides, (splits.train, splits.eval or splits.train), ("", "held-out: "), strict=True):
        _note_repeated_openings(context, tokenizer, side, source)
        _warn_of_altered_answers(context, tokenizer, side, source, f"{which}{kind} altered")
        _tell_control_tokens(context, tokenizer, side, source, f"{which}{kind} control")
        counts = side.counts()
        # These are told above, with their lines.
        lost = {name: count for name, count in counts.items() if name not in ("openings_repeated", "answers_altered", "control_tokens")}
        losses = warn_of_shortfall(kind, lost, limits) + warn_of_dropped_answers(kind, counts, side.count_answers(), limits)
        context.warn(f"{which}{kind} lost", f"{which}{'; '.join(losses)}" if losses else None)
        if not losses and (told := describe_shortfall(kind, counts, limits)):
            context.note(which + told)
    return sides


def _note_repeated_openings(context: StageContext, tokenizer: Any, side: TokenSet, source: DataSource) -> None:
    """Tell the user of answers that begin with what the prompt ends with: the token stream does not write it twice."""
    if count := side.count_repeated():
        ending = find_openings(tokenizer)[-1]
        place, _ = _find_first(context, side, source, side.file.repeated)
        context.note(
            f"{place}: {count} of {side.count_answers()} answers, the first here, begin with {ending!r}, "
            "which the prompt ends with already; it is written once; leave it away in the data"
        )


def _warn_of_altered_answers(context: StageContext, tokenizer: Any, side: TokenSet, source: DataSource, name: str) -> None:
    """Warn of answers that the tokenizer cannot write, with the first one's line."""
    if count := side.count_altered():
        place, record = _find_first(context, side, source, side.file.altered)
        texts: list[str] = list(record.answers) if record else []
        encoded = chat.encode_answers(tokenizer, texts)
        read = next((tokenizer.decode(ids) for ids, bad in zip(encoded, find_altered(tokenizer, texts, encoded), strict=True) if bad), "")
        context.warn(
            name,
            f"{place}: {count} of {side.count_answers()} answers, the first here, read otherwise when the tokenizer writes them "
            f"({read[:40]!r}), and so the model learns them; take a base model whose tokenizer knows their characters",
        )


def _tell_control_tokens(context: StageContext, tokenizer: Any, side: TokenSet, source: DataSource, name: str) -> None:
    """Tell of control tokens that stand in records as text: an end token behind the answers, or a template that was applied already."""
    count = side.count_control()
    if not count:
        return
    place, record = _find_first(context, side, source, side.file.control)
    texts = [*(message.content for message in getattr(record, "prompt", ())), *(record.answers if record else ())]
    token = next((found[0] for text in texts if (found := chat.find_control_tokens(tokenizer, "").search(text))), "")
    told = (
        f"{place}: {count} of {len(side.rows)} {side.kind}, the first here, hold the text of a control token ({token!r}): it is learnt as "
        "ordinary text, and the chat template and the end of an answer write their tokens besides; leave it away in the data"
    )
    if count > TOLERATED * len(side.rows):
        context.warn(name, told)
    else:
        context.note(told)


def _find_first(context: StageContext, side: TokenSet, source: DataSource, counts_M: Any) -> tuple[str, Record | None]:
    """Find the first record of a side of which its file counts some, with its place."""
    treat = make_treatment(context.spec.redact, context.spec.forgotten)
    records = stream_records(source, side.kind, report_on(source), context.spec.skip_bad, treat)
    return next(islice(records, side.first(counts_M), None), (source.path, None))


def open_sides(
    directories: list[Path], kind: RecordKind, splits: DataSplits, limits: tuple[int, int], eval_fraction: float, seed: int
) -> Sides:
    """Map what lies in the directories of the training source and of the held-out source, if there is one; else split the first."""
    files = [open_tokens(directory) for directory in directories]
    if splits.eval is not None:
        sides = take_all(kind, files[0]), take_all(kind, files[1])
    else:
        places = load_places(directories[0], files[0], seed)
        sides = split_tokens(kind, files[0], places, eval_fraction, splits.train.path)
    for side, source in zip(sides, (splits.train, splits.eval or splits.train), strict=True):
        refuse_none_left(f"{source.path}: {kind}", len(side.rows), len(side.used), limits[1])
    return sides


def make_all(spec: TokensSpec) -> dict[str, Any]:
    """See that all stages can go through with the base model, and make the token ids of all record sets.

    Returns:
        `counts`: record kind -> split -> name -> count; `directories`: where the ids lie.
    """
    limits = (spec.tokens.max_prompt_tokens, spec.tokens.max_response_tokens)
    tokenizer, _ = settle_tokenizer(spec.base_model, spec.tokens, spec.revision)
    check_model(spec, tokenizer)
    store = open_conversation_store(spec, tokenizer, spec.tokens_dir, workers=count_cores())
    sizes = {kind: sum(spec.records.get(f"{kind}.{split}", 0) for split in ("train", "eval")) for kind in spec.data}
    total, done = sum(size * (len(spec.text_readers) if kind == "texts" else 1) for kind, size in sizes.items()), 0
    last_event_s = 0.0
    problems: list[Problem] = []
    counts: dict[str, dict[str, dict[str, int]]] = {}
    made: list[str] = []

    def progress(num_records: int) -> None:
        nonlocal last_event_s
        if time.monotonic() - last_event_s >= 1 / _EVENTS_PER_S:
            append_event(spec.events_path, "progress", phase="tokens", step=min(done + num_records, total), total=total, metrics={})
            last_event_s = time.monotonic()

    for kind, splits in spec.data.items():
        directories: list[Path] = []
        if kind == "texts":
            continue
        try:
            for split, source in (("train", splits.train), ("eval", splits.eval)):
                if source is not None:
                    directories.append(store.make(source, kind, spec.fingerprints[kind][split], progress))
                    done += spec.records[f"{kind}.{split}"]
            made += map(str, directories)
            sides = open_sides(directories, kind, splits, limits, spec.eval_fraction, spec.seed)
            for side in sides:
                check_lengths(spec, kind, side)
            counts[kind] = {
                split: side.counts() | {"answers": side.count_answers()} for split, side in zip(("train", "eval"), sides, strict=True)
            }
        except DataError as error:
            problems += error.problems
    try:
        for reader in spec.text_readers:
            directories, found = _make_texts(spec, reader, tokenizer, progress)
            counts.setdefault("texts", found)
            done += sizes["texts"]
            made += map(str, directories)
    except DataError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)
    return {"counts": counts, "directories": made}


def _make_texts(
    spec: TokensSpec, reader: StageName, tokenizer: Any, progress: Callable[[int], None]
) -> tuple[list[Path], dict[str, dict[str, int]]]:
    """Make the token ids of texts as a stage reads them; returns where they lie, and their counts."""
    pretrains = reader == "pretrain"  # which goes by the base model's tokenizer as it is; PPO by what SFT settles
    own = open_tokenizer(spec.base_model, spec.revision) if pretrains else tokenizer
    store = open_text_store(spec, own, spec.tokens_dir, end=pretrains, workers=count_cores())
    splits = spec.data["texts"]
    directories = make_texts(store, splits, spec.fingerprints["texts"], spec.eval_fraction, spec.seed, progress)
    sides = open_texts(store, directories, splits, spec.eval_fraction, spec.seed)
    return directories, {split: side.counts() for split, side in zip(("train", "eval"), sides, strict=True)}


def main() -> int:
    """Make the token ids that a `TokensSpec` names; returns the exit code."""
    redact_streams()
    parser = argparse.ArgumentParser(prog="python -P -m stages.tokens", description="Make the token ids of all record sets of a recipe.")
    parser.add_argument("spec", type=Path, help="TokensSpec as JSON; the pipeline writes it")
    spec = TokensSpec.model_validate_json(parser.parse_args().spec.read_text(encoding="utf-8"))
    try:
        return _make_report(spec)
    except OSError as error:
        number = find_refusal(error)
        if number is None:
            traceback.print_exc()
            return _fail(spec, f"{error.filename or spec.tokens_dir}: {error.strerror or error}", EXIT_FAILED)
        return _fail(spec, describe_path(Path(error.filename or spec.tokens_dir), number), EXIT_RESOURCE)


def _make_report(spec: TokensSpec) -> int:
    try:
        spec.report_path.write_text(json.dumps(make_all(spec)), encoding="utf-8")
        return EXIT_OK
    except DataError as error:
        spec.report_path.write_text(to_line({"problems": [asdict(problem) for problem in error.problems]}), encoding="utf-8")
        return _fail(spec, str(error), EXIT_USAGE)
    except StageError as error:
        return _fail(spec, str(error), error.exit_code)


def _fail(spec: TokensSpec, message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    with suppress(OSError):  # a full disk: the exit code and this line still tell
        append_event(spec.events_path, "error", message=message, exit_code=exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
