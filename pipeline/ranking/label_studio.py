"""Label Studio's exports, JSON, JSON-MIN and CSV -> rankings. `Ranker` over a `List`, with or without buckets, and `Pairwise`.

Documented at labelstud.io/tags/ranker and /pairwise: `{"ranker": [ids]}`, `{"ranker": {bucket: [ids]}}` (`_`: what was left in the list),
`{"selected": "left"}`. An export does not say in which order its buckets stand: by the numbers in their names, or as the user says.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from data.fields import Columns, FieldError, as_list, as_object, describe
from pipeline.ranking.foreign import (
    Export,
    Options,
    Ranking,
    find_prompt,
    read_answer,
    read_grade,
    read_prompt,
    read_time,
)
from pipeline.ranking.ranks import rank_levels

_REST = "_"
_PAIR = re.compile(r"(.*?)[ _-]?(1|a|left|chosen)", re.IGNORECASE)
_SECOND = {"1": "2", "a": "b", "left": "right", "chosen": "rejected"}
_OF_MIN = ("annotation_id", "annotator", "lead_time")


def is_label_studio(row: object) -> bool:
    """Whether a row is a task of an export."""
    columns = as_object(row) or {}
    return ("data" in columns and "annotations" in columns) or sum(name in columns for name in _OF_MIN) > 1


def open_cells(row: Mapping[str, str]) -> Columns:
    """Read a row of its CSV export as one of JSON-MIN: what is no text there stands as JSON in its cell."""
    opened: Columns = {}
    for name, cell in row.items():
        is_json = cell.lstrip().startswith(("[", "{")) or name == "lead_time"
        try:
            opened[name] = json.loads(cell) if is_json else cell
        except ValueError:
            opened[name] = cell
    return opened


def read_tasks(rows: Sequence[tuple[str, Columns]], export: Export, options: Options) -> Iterator[Ranking | tuple[str, FieldError]]:
    """Yield what annotators said of tasks, or what is wrong with one."""
    for where, row in rows:
        task = row if "annotations" in row else _widen(row)
        try:
            answers = _find_answers(as_object(task.get("data")) or {})
        except FieldError as error:
            yield where, error
            continue
        for kind in ("drafts", "predictions"):
            export.left_out[kind] += len(as_list(task.get(kind)) or ())
        for place, annotation in enumerate(as_list(task.get("annotations")) or ()):
            field = f"annotations[{place}]"
            try:
                yield _read_annotation(where, field, as_object(annotation) or {}, task, answers, export, options)
            except FieldError as error:
                yield where, FieldError(error.field if error.field.startswith(("data", field)) else f"{field}.{error.field}", error.message)


class _Answers:
    """A task's answers: their ids in the order shown, their texts, and its prompt."""

    def __init__(self, data: Columns, ids: Sequence[str], texts: Sequence[str], columns: Sequence[str]) -> None:
        self.ids, self.texts = list(ids), tuple(texts)
        given = {name: value for name, value in data.items() if name not in (*_NAMED, *columns)}
        name = "messages" if as_list(data.get("messages")) else find_prompt(given, columns)
        self.prompt = read_prompt(data[name], f"data.{name}")


_NAMED = ("item", "source", "models")  # columns of our own exports


def _widen(row: Columns) -> Columns:
    """Turn a row of JSON-MIN, in which data and results stand side by side, into a task."""
    results = [found for name, value in row.items() if (found := _recognise(name, value)) is not None]
    annotation = {key: row.get(name) for key, name in (("id", "annotation_id"), ("completed_by", "annotator"))}
    annotation |= {name: row.get(name) for name in ("lead_time", "created_at")} | {"result": results}
    named = {"id", "annotation_id", "annotator", "lead_time", "created_at", "updated_at", *(result["from_name"] for result in results)}
    return {"id": row.get("id"), "data": {name: value for name, value in row.items() if name not in named}, "annotations": [annotation]}


def _recognise(name: str, value: object) -> Columns | None:
    """Tell whether a column of JSON-MIN is a result."""
    inner = (as_list(value) or [value])[0] if len(as_list(value) or [0]) == 1 else value
    fields = as_object(inner)
    if fields is not None and "ranker" in fields:
        return {"from_name": name, "type": "ranker", "value": fields}
    if fields is not None and fields.get("selected") in ("left", "right"):
        return {"from_name": name, "type": "pairwise", "value": fields}
    if fields is not None and fields and all(isinstance(ids, list) for ids in fields.values()):
        return {"from_name": name, "type": "ranker", "value": {"ranker": fields}}
    if inner in ("left", "right"):
        return {"from_name": name, "type": "pairwise", "value": {"selected": inner}}
    if (ids := as_list(value)) and len(ids) > 1 and all(isinstance(each, str) for each in ids):
        return {"from_name": name, "type": "ranker", "value": {"ranker": ids}}
    return None


def _find_answers(data: Columns) -> _Answers:
    """Find a task's answers: the one list of objects with ids, else two columns such as answer1 and answer2."""
    lists: dict[str, list[object]] = {}
    for name, value in data.items():
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        items = as_list(value)
        if items and name != "messages" and all("id" in (as_object(item) or {}) for item in items):
            lists[name] = items
    if len(lists) > 1:
        raise FieldError("data", f"found the lists {', '.join(lists)}; needed one of answers; leave the others away")
    for name, items in lists.items():
        ids = [str((as_object(item) or {})["id"]) for item in items]
        if len(set(ids)) < len(ids):
            raise FieldError(f"data.{name}", f"found ids {', '.join(ids)[:100]}; needed each once; correct them")
        texts = [read_answer(item, f"data.{name}[{place}]") for place, item in enumerate(items)]
        return _Answers(data, ids, texts, (name,))
    for name in data:
        match = _PAIR.fullmatch(name)
        other = name[: match.start(2)] + _SECOND[match[2].lower()] if match else ""
        if other in data:
            return _Answers(data, ("left", "right"), [read_answer(data[key], f"data.{key}") for key in (name, other)], (name, other))
    found = ", ".join(data)[:100] or "nothing"
    raise FieldError("data", f"found {found}; needed a list of answers with id and body, or answer1 and answer2; give the export as JSON")


def _read_annotation(
    where: str, field: str, annotation: Columns, task: Columns, answers: _Answers, export: Export, options: Options
) -> Ranking:
    data = as_object(task.get("data")) or {}
    results = [as_object(result) or {} for result in as_list(annotation.get("result")) or ()]
    named = [result for result in results if options.question in (None, result.get("from_name"))]
    rankings = [result for result in named if result.get("type") in ("ranker", "pairwise")]
    if len(rankings) > 1:
        names = ", ".join(str(result.get("from_name")) for result in rankings)
        raise FieldError(f"{field}.result", f"found the rankings {names[:100]}; needed one; name it by --question")
    levels: list[list[int]] = []
    if rankings:
        number = results.index(rankings[0])
        levels = _read_levels(rankings[0], answers, f"{field}.result[{number}].value", options)
    skipped = annotation.get("was_cancelled") is True
    count = len(answers.ids)
    ranks, partial = rank_levels(levels, range(count)) if levels and not skipped else (None, False)
    said = _read_beside(results, field, count, export)
    return Ranking(
        where=where,
        prompt=answers.prompt,
        completions=answers.texts,
        annotator=_name(annotation.get("completed_by")),
        outcome="skipped" if skipped else "ranked" if ranks else "cannot say",
        ranks=ranks,
        partial=partial,
        shown=tuple(range(count)),
        key=f"{task.get('id')} {annotation.get('id')}",
        item=str(data.get("item") or ""),
        source=str(data.get("source") or ""),
        reason="skipped in Label Studio" if skipped else "",
        seconds=_read_seconds(annotation.get("lead_time")),
        time=read_time(annotation.get("created_at"), f"{field}.created_at"),
        grade=cast("int | None", said.get("grade")),
        note=str(said.get("note", "")),
        flags=cast("dict[str, tuple[int, ...]]", said.get("flags", {})),
    )


def _read_levels(result: Columns, answers: _Answers, field: str, options: Options) -> list[list[int]]:
    value = as_object(result.get("value")) or {}
    if result.get("type") == "pairwise":
        selected = value.get("selected")
        if selected not in ("left", "right") or len(answers.ids) != 2:
            raise FieldError(
                f"{field}.selected", f"found {describe(selected)} of {len(answers.ids)} answers; needed left or right of two; correct it"
            )
        return [[0 if selected == "left" else 1]]
    ranker = value.get("ranker")
    if (ids := as_list(ranker)) is not None:
        return [[place] for place in _find_places(ids, answers, f"{field}.ranker")]
    buckets = as_object(ranker)
    if buckets is None:
        raise FieldError(f"{field}.ranker", f"found {describe(ranker)}; needed a list of ids, or buckets of them; correct it")
    field = f"{field}.ranker"
    if list(buckets) == [result.get("from_name")]:  # a plain Ranker, as older versions export it
        return [[place] for place in _find_places(as_list(next(iter(buckets.values()))) or [], answers, field)]
    places = {name: _find_places(as_list(ids) or [], answers, f"{field}.{name}") for name, ids in buckets.items()}
    both = [answers.ids[place] for place in range(len(answers.ids)) if sum(place in own for own in places.values()) > 1]
    if both:
        raise FieldError(field, f"found {both[0]!r:.60} in two buckets; needed each answer once; correct it")
    return [places[name] for name in _order_buckets(list(buckets), field, options) if places[name]]


def _order_buckets(names: list[str], field: str, options: Options) -> list[str]:
    """Order buckets, best first, without the list in which answers lay that were not moved."""
    names = [name for name in names if name != _REST]
    if unknown := [name for name in names if options.buckets and name not in options.buckets]:
        raise FieldError(field, f"found the bucket {unknown[0]!r:.60}; needed those of --buckets {','.join(options.buckets)[:100]}; add it")
    if options.buckets:
        return sorted(names, key=options.buckets.index)
    numbers = [re.findall(r"\d+", name) for name in names]
    if any(len(found) != 1 for found in numbers) or len({found[0] for found in numbers}) < len(names):
        found = f"found the buckets {', '.join(names)[:100]}, whose order an export does not say"
        raise FieldError(field, f"{found}; needed numbers in their names, or --buckets {','.join(names)[:100]}; give them, best first")
    return sorted(names, key=lambda name: int(re.findall(r"\d+", name)[0]))


def _find_places(ids: Sequence[object], answers: _Answers, field: str) -> list[int]:
    found = [str(each) for each in ids]
    if unknown := [each for each in found if each not in answers.ids]:
        raise FieldError(field, f"found the id {unknown[0]!r:.60}; needed one of {', '.join(answers.ids)[:100]}; correct it")
    if len(set(found)) < len(found):
        raise FieldError(field, f"found ids {', '.join(found)[:100]}; needed each once; correct them")
    return [answers.ids.index(each) for each in found]


def _read_beside(results: Sequence[Columns], field: str, count: int, export: Export) -> Columns:
    """Read what our own exports ask beside the ranking: grade, flags, note. What others ask is counted as left out."""
    said: Columns = {}
    for place, result in enumerate(results):
        name, kind, value = result.get("from_name"), result.get("type"), as_object(result.get("value")) or {}
        inner = f"{field}.result[{place}].value"
        if (name, kind) == ("grade", "rating"):
            said["grade"] = read_grade(value.get("rating"), f"{inner}.rating")
        elif (name, kind) == ("note", "textarea"):
            text = value.get("text")
            said["note"] = "\n".join(map(str, as_list(text) or ([text] if text else [])))
        elif (name, kind) == ("flags", "choices"):
            said["flags"] = read_flags([str(each) for each in as_list(value.get("choices")) or ()], count, f"{inner}.choices")
        elif kind not in ("ranker", "pairwise"):
            export.left_out[f"results of type {str(kind)[:40]}"] += 1
    return said


def read_flags(choices: Sequence[str], count: int, field: str) -> dict[str, tuple[int, ...]]:
    """Read flags such as `wrong 2`: of the second answer.

    Raises:
        FieldError: One is none.
    """
    flags: dict[str, tuple[int, ...]] = {}
    for choice in choices:
        name, _, number = choice.rpartition(" ")
        if not name or not number.isdecimal() or not 1 <= int(number) <= count:
            raise FieldError(field, f"found {choice!r:.60}; needed a flag and the number of an answer, such as `wrong 2`; correct it")
        flags[name] = (*flags.get(name, ()), int(number) - 1)
    return flags


def _name(completed_by: object) -> str:
    """Name an annotator: by e-mail address, else by number."""
    user = as_object(completed_by)
    if user is not None:
        completed_by = user.get("email") or user.get("id")
    return f"user {completed_by}" if isinstance(completed_by, int) else str(completed_by or "unknown")


def _read_seconds(value: object) -> float:
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6
    return float(cast("float", value)) if is_time else 0.0
