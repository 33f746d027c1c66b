"""Argilla's exports -> rankings: records of version 1 and 2, nested or flat, whose `RankingQuestion` names fields of the record.

    v1            {"fields": {...}, "responses": [{"user_id", "status", "values": {question: {"value": [{"rank", "value"}]}}}]}
    v1, datasets  {field: ..., question: [{"user_id", "status", "value": {"rank": [...], "value": [...]}}]}
    v2            {"fields": {...}, "responses": {question: [{"user_id", "value": [...]}]}}
    v2, flat      {field: ..., "question.responses": [...], "question.responses.users": [...], "question.responses.status": [...]}

A ranking is a list of names, or of {value, rank}, equal ranks being ties.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data.fields import Columns, FieldError, as_list, as_object, describe
from pipeline.ranking.foreign import Export, Options, Ranking, find_prompt, read_answer, read_grade, read_prompt
from pipeline.ranking.label_studio import read_flags
from pipeline.ranking.ranks import rank_levels

_FLAT, _USERS, _STATUS = ".responses", ".responses.users", ".responses.status"
_OURS = ("grade", "flags", "note")  # questions of our own exports
_RECORD = ("id", "external_id", "_server_id", "status", "metadata", "vectors", "suggestions", "inserted_at", "updated_at")


@dataclass
class _Said:
    """What one annotator said of a record."""

    status: str = "submitted"
    values: Columns = field(default_factory=dict[str, object])


@dataclass
class _Record:
    """A record, whichever way it was exported."""

    where: str
    row: Columns
    fields: Columns
    by_user: dict[str, _Said]


def is_argilla(row: object) -> bool:
    """Whether a row is a record of an export."""
    columns = as_object(row) or {}
    nested = as_object(columns.get("fields")) is not None and "responses" in columns
    return nested or any(name.endswith(_FLAT) or _is_column_of_v1(value) for name, value in columns.items())


def read_records(rows: Sequence[tuple[str, Columns]], export: Export, options: Options) -> Iterator[Ranking | tuple[str, FieldError]]:
    """Yield what annotators said of records, or what is wrong with one."""
    records = [_open(where, row) for where, row in rows]
    # Which fields are answers is said by rankings alone; a record that was only discarded has none.
    names = {
        name
        for record in records
        for said in record.by_user.values()
        for value in said.values.values()
        for name in (name for level in _read_ranking(value) or () for name in level)
        if name in record.fields
    }
    for record in records:
        for user, said in record.by_user.items():
            if said.status in ("draft", "pending"):
                export.left_out["drafts"] += 1
                continue
            try:
                yield _read_response(record, user, said, names, export, options)
            except FieldError as error:
                yield record.where, error
        if record.row.get("suggestions") or any(name.endswith(".suggestion") and value for name, value in record.row.items()):
            export.left_out["suggestions"] += 1


def _is_column_of_v1(value: object) -> bool:
    items = as_list(value) or []
    return bool(items) and all({"user_id", "value", "status"} <= (as_object(item) or {}).keys() for item in items)


def _open(where: str, row: Columns) -> _Record:
    by_user: dict[str, _Said] = {}

    def take(user: object, question: str, value: object, status: object) -> None:
        said = by_user.setdefault(str(user or "unknown"), _Said())
        said.values[question] = value
        said.status = str(status or said.status)

    fields = as_object(row.get("fields"))
    if fields is not None and (responses := as_list(row.get("responses"))) is not None:
        for response in map(as_object, responses):
            user, status = (response or {}).get("user_id"), (response or {}).get("status")
            by_user.setdefault(str(user or "unknown"), _Said(str(status or "submitted")))
            for question, value in (as_object((response or {}).get("values")) or {}).items():
                inner = as_object(value)
                take(user, question, inner["value"] if inner is not None and "value" in inner else value, status)
        return _Record(where, row, fields, by_user)
    if fields is not None:
        for question, responses in (as_object(row.get("responses")) or {}).items():
            for response in map(as_object, as_list(responses) or ()):
                take((response or {}).get("user_id"), question, (response or {}).get("value"), (response or {}).get("status"))
        return _Record(where, row, fields, by_user)
    read: set[str] = set()
    for name, value in row.items():
        if name.endswith(_FLAT):
            question = name.removesuffix(_FLAT)
            users, states = as_list(row.get(question + _USERS)) or [], as_list(row.get(question + _STATUS)) or []
            for place, each in enumerate(as_list(value) or ()):
                user, status = users[place] if place < len(users) else "unknown", states[place] if place < len(states) else None
                take(user, question, each, status)
        elif _is_column_of_v1(value):
            read.add(name)
            for response in map(as_object, as_list(value) or ()):
                take((response or {}).get("user_id"), name, (response or {}).get("value"), (response or {}).get("status"))
    inner = {name: value for name, value in row.items() if name not in read and name not in _RECORD and "." not in name}
    return _Record(where, row, {name: value for name, value in inner.items() if not name.endswith("-suggestion")}, by_user)


def _read_ranking(value: object) -> list[list[str]] | None:
    """Read a ranking: levels of names, best first; None where it is none."""
    both = as_object(value)
    if both is not None:
        names, ranks = as_list(both.get("value")), as_list(both.get("rank"))
        if names is None or ranks is None or len(names) != len(ranks):
            return None
        items: list[object] = [{"value": name, "rank": rank} for name, rank in zip(names, ranks, strict=True)]
    else:
        items = as_list(value) or []
    if items and all(isinstance(item, str) for item in items):
        return [[str(item)] for item in items]
    levels: dict[float, list[str]] = {}
    for item in map(as_object, items):
        rank = (item or {}).get("rank")
        if item is None or not isinstance(item.get("value"), str):
            return None
        if isinstance(rank, int | float) and not isinstance(rank, bool):
            levels.setdefault(float(rank), []).append(str(item["value"]))
        elif rank is not None:
            return None
    return [levels[rank] for rank in sorted(levels)] if items else None


def _read_response(record: _Record, user: str, said: _Said, names: set[str], export: Export, options: Options) -> Ranking:
    answers = [name for name in record.fields if name in names and record.fields[name] is not None]
    question, levels = _find_levels(record, said, answers, options)
    prompt = find_prompt(record.fields, answers)
    skipped = said.status == "discarded"
    places = [[answers.index(name) for name in level] for level in levels]
    ranks, partial = rank_levels(places, range(len(answers))) if places and not skipped else (None, False)
    for name in said.values:
        if name not in (question, *_OURS):
            export.left_out[f"answers to the question {name[:40]}"] += 1
    metadata = as_object(record.row.get("metadata")) or {}
    flags = [str(flag) for flag in as_list(said.values.get("flags")) or ()]
    return Ranking(
        where=record.where,
        prompt=read_prompt(record.fields[prompt], prompt),
        completions=tuple(read_answer(record.fields[name], name) for name in answers),
        annotator=user,
        outcome="skipped" if skipped else "ranked" if ranks else "cannot say",
        ranks=ranks,
        partial=partial,
        shown=tuple(range(len(answers))),
        key=f"{record.row.get('id') or record.row.get('external_id') or record.where} {user}",
        item=str(metadata.get("item") or ""),
        source=str(metadata.get("source") or ""),
        reason="discarded in Argilla" if skipped else "",
        grade=read_grade(said.values.get("grade"), "responses.grade"),
        note=str(said.values.get("note") or ""),
        flags=read_flags(flags, len(answers), "responses.flags"),
    )


def _find_levels(record: _Record, said: _Said, answers: Sequence[str], options: Options) -> tuple[str, list[list[str]]]:
    """Find the ranking among what was said: (question, levels)."""
    found: dict[str, list[list[str]]] = {}
    for question, value in said.values.items():
        levels = _read_ranking(value) if question not in _OURS else None
        if options.question == question and levels is None and value is not None:
            raise FieldError(f"responses.{question}", f"found {describe(value)}; needed a list of names or of value and rank; correct it")
        if levels is None or options.question not in (None, question):
            continue
        named = [name for level in levels for name in level]
        if unknown := [name for name in named if name not in answers]:
            if options.question is None and not any(name in answers for name in named):
                continue  # a question of several labels
            needed = f"needed names of fields ({', '.join(record.fields)[:100]})"
            raise FieldError(f"responses.{question}", f"found {unknown[0]!r:.60}; {needed}; rename the options or the fields")
        if len(set(named)) < len(named):
            raise FieldError(f"responses.{question}", f"found {', '.join(named)[:100]}; needed each once; correct it")
        found[question] = levels
    if len(found) > 1:
        raise FieldError("responses", f"found the rankings {', '.join(found)[:100]}; needed one; name it by --question")
    if not answers:
        listed = ", ".join(record.fields)[:100]
        raise FieldError(
            "responses", f"found no ranking whose options are fields ({listed}); needed a RankingQuestion; export one that has it"
        )
    return next(iter(found.items())) if found else ("", [])
