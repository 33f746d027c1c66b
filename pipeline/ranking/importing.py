"""A file of another tool -> judgements in a journal: recognised, checked whole, matched to the answer sets; written then, or not at all."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from data.answers import AnswerSet, parse_answer_set
from data.fields import Columns, FieldError, as_object, check_text
from data.rows import read_rows
from data.schema import DataError, Problem
from pipeline.ranking.argilla import is_argilla, read_records
from pipeline.ranking.csv_table import CSV_FILES, read_rankings, read_table
from pipeline.ranking.foreign import Export, Options, Ranking
from pipeline.ranking.journal import Journal, Judgement, Undo
from pipeline.ranking.label_studio import is_label_studio, open_cells, read_tasks
from stages.spec import DataSource

_PROBED = 100


@dataclass
class Imported:
    """What came of an import."""

    tool: str
    sets: int
    annotators: int
    written: int = 0
    there: int = 0  # already, of an earlier import
    replaced: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])


def read_export(path: Path, options: Options) -> Export:
    """Read what annotators said from an export.

    Raises:
        DataError: With everything that is wrong with it.
    """
    problems: list[Problem] = []
    found: Iterator[Ranking | tuple[str, FieldError]]
    if path.name.lower().endswith(CSV_FILES):
        table = read_table(path)
        export = Export("label-studio" if table and is_label_studio(table[0][1]) else "csv")
        if export.tool == "csv":
            found = read_rankings(table, path, export)
        else:
            found = read_tasks([(where, open_cells(row)) for where, row in table], export, options)
    else:
        rows = list(read_rows(DataSource.model_validate({"path": str(path)}), (), problems.append))
        voices = Counter(_recognise(row) for _, row in rows[:_PROBED])
        export = Export("argilla" if voices["argilla"] > voices["label-studio"] else "label-studio")
        if not problems and not voices["argilla"] + voices["label-studio"]:
            keys = ", ".join(as_object(rows[0][1]) or {})[:100] if rows else ""
            needed = "needed Label Studio's JSON (data, annotations), Argilla's (fields, responses), or a CSV file"
            raise DataError([Problem(rows[0][0] if rows else str(path), "", f"found {keys or 'no fields'}; {needed}; export it so")])
        other = [where for where, row in rows if _recognise(row) != export.tool]
        problems += [
            Problem(where, "", f"found no record of {export.tool}, as the others are; needed one; remove the line") for where in other
        ]
        own: list[tuple[str, Columns]] = [(where, as_object(row) or {}) for where, row in rows if where not in other]
        found = (read_records if export.tool == "argilla" else read_tasks)(own, export, options)
    for each in found:
        if isinstance(each, Ranking):
            problems += _find_unwritable(each)
            export.rankings.append(each)
        else:
            problems.append(Problem(each[0], each[1].field, each[1].message))
    if not problems and not export.rankings:
        problems.append(Problem(str(path), "", "found no rankings; needed at least one; check the export"))
    if problems:
        raise DataError(problems)
    return export


def _find_unwritable(ranking: Ranking) -> Iterator[Problem]:
    """Find names that no file can hold; prompts and answers are checked where they are read."""
    for name in ("annotator", "source", "item", "key", "note", "model"):
        try:
            check_text(getattr(ranking, name), name, may_be_empty=True)
        except FieldError as error:
            yield Problem(ranking.where, error.field, error.message)
    for flag in ranking.flags:
        try:
            check_text(flag, "flags")
        except FieldError as error:
            yield Problem(ranking.where, error.field, error.message)


def _recognise(row: object) -> str:
    return "label-studio" if is_label_studio(row) else "argilla" if is_argilla(row) else ""


def make_answer_sets(export: Export) -> dict[str, AnswerSet]:
    """Make the answer sets that an export ranks, where there are none yet.

    Raises:
        DataError: With each that is none.
    """
    sets: dict[str, AnswerSet] = {}
    known: set[object] = set()
    problems: list[Problem] = []
    for ranking in export.rankings:
        if (key := _identify(ranking.prompt, ranking.completions)) in known:
            continue
        prompt = [{"role": message.role, "content": message.content} for message in ranking.prompt]
        row = {"prompt": prompt, "completions": list(ranking.completions), "source": ranking.source}
        try:
            answers = parse_answer_set(row)
        except FieldError as error:
            problems.append(Problem(ranking.where, error.field, error.message))
            continue
        sets[answers.id] = answers
        known.add(key)
    if problems:
        raise DataError(problems)
    return sets


def import_rankings(
    export: Export, sets: Mapping[str, AnswerSet], journal: Journal, forgotten: Mapping[str, AnswerSet] | None = None
) -> Imported:
    """Write what an export says into a journal; what stands there already stays, what was changed since replaces it.

    Of sets that were `forgotten` nothing is written.

    Raises:
        DataError: With each ranking that is of none of the sets, or none that a journal holds. Nothing is written then.
        ResourceError: The disk is full.
    """
    matched = match_rankings(export, {**sets, **(forgotten or {})}, journal.judgements.values())
    judgements = [each for each in matched if each.item in sets]
    told = Imported(export.tool, len({each.item for each in judgements}), len({each.annotator for each in judgements}))
    left_out = {**export.left_out, "of forgotten records": len(matched) - len(judgements)}
    told.left_out = Counter({what: number for what, number in left_out.items() if number})
    earlier: dict[tuple[str, str, bool], Judgement] = {
        (each.annotator, each.item, each.repeat): each for each in journal.judgements.values() if each.tool == export.tool
    }
    lines: list[Judgement | Undo] = []
    for judgement in judgements:
        if judgement.id in journal.judgements:
            told.there += 1
            continue
        if before := earlier.get((judgement.annotator, judgement.item, judgement.repeat)):
            lines.append(Undo(id=before.id, annotator=before.annotator, time=time.time()))
            told.replaced += 1
        else:
            told.written += 1
        lines.append(judgement)
    journal.add_all(lines)
    return told


def match_rankings(export: Export, sets: Mapping[str, AnswerSet], before: Iterable[Judgement] = ()) -> list[Judgement]:
    """Turn what an export says into judgements of answer sets; nothing is written.

    Args:
        export: As it was read.
        sets: By id.
        before: What was judged until now.

    Raises:
        DataError: With each ranking that is of none of the sets, or none that a journal holds.
    """
    by_content = {_identify(each.prompt, each.completions): item for item, each in sets.items()}
    by_answers: dict[object, list[str]] = defaultdict(list)
    for item, each in sets.items():
        by_answers[_identify((), each.completions)].append(item)
    here = {(each.annotator, each.item) for each in before if each.tool != export.tool}
    judgements: list[Judgement] = []
    problems: list[Problem] = []
    for ranking in export.rankings:
        alike = by_answers[_identify((), ranking.completions)]
        item = ranking.item if ranking.item in alike else by_content.get(_identify(ranking.prompt, ranking.completions))
        item = item or (alike[0] if len(alike) == 1 else None)  # a tool may have shown the prompt in other words
        if item is None:
            found = (
                f"found {len(ranking.completions)} answers to {ranking.prompt[-1].content[:40]!r}, which are no set of the answers given"
            )
            problems.append(Problem(ranking.where, "", f"{found}; needed the file that was ranked; give it, or the name of a new one"))
            continue
        try:
            judgement = _make_judgement(ranking, export.tool, item, _find_order(ranking.completions, sets[item].completions), here)
        except ValidationError as error:
            what = error.errors()[0]
            problems.append(Problem(ranking.where, ".".join(map(str, what["loc"])), f"{what['msg']}; correct it"))
            continue
        here.add((judgement.annotator, judgement.item))
        judgements.append(judgement)
    if problems:
        raise DataError(problems)
    return judgements


def _make_judgement(ranking: Ranking, tool: str, item: str, order: Sequence[int], here: set[tuple[str, str]]) -> Judgement:
    """Turn what a tool says of its places into what a journal says of answers; `order`: the set's answer at each place."""
    ranks = None
    if ranking.ranks is not None:
        ranks = tuple(rank for _, rank in sorted(zip(order, ranking.ranks, strict=True)))
    fields = {
        "item": item,
        "annotator": f"model:{ranking.model}"[:100] if ranking.model else ranking.annotator,
        "order": tuple(order[place] for place in ranking.shown),
        "outcome": ranking.outcome,
        "ranks": ranks,
        "partial": ranking.partial,
        "grade": ranking.grade,
        "grades": tuple(grade for _, grade in sorted(zip(order, ranking.grades, strict=True))) if ranking.grades else None,
        "flags": {flag: tuple(sorted(order[place] for place in places)) for flag, places in ranking.flags.items()},
        "reason": ranking.reason,
        "note": ranking.note,
        "seconds": ranking.seconds,
        "model": ranking.model,
    }
    fields["repeat"] = ranking.repeat or (fields["annotator"], item) in here
    content = "\0".join([tool, ranking.key, *(f"{name}={value}" for name, value in fields.items() if name != "repeat")])
    own = ranking.key if len(ranking.key) == 32 and set(ranking.key) <= set("0123456789abcdef") else ""
    return Judgement(
        id=own or hashlib.sha256(content.encode()).hexdigest()[:32],
        tool=tool,
        time=ranking.time or time.time(),
        **fields,  # pyright: ignore[reportArgumentType]
    )


def _find_order(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Find which of our answers stands at each of their places; equal texts in turn."""
    free = defaultdict[str, list[int]](list)
    for answer, text in enumerate(ours):
        free[_settle(text)].append(answer)
    return [free[_settle(text)].pop(0) for text in theirs]


def _identify(prompt: Sequence[object], completions: Sequence[str]) -> object:
    """What is the same of a set in every tool: the prompt, and the answers in any order."""
    return tuple(_settle(str(message)) for message in prompt), tuple(sorted(map(_settle, completions)))


def _settle(text: str) -> str:
    """Leave out what tools change of a text: the ends of lines, and blanks around it."""
    return text.replace("\r\n", "\n").strip()
