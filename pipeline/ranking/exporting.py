"""Judgements -> files of other tools, which `reading` takes back: CSV, Label Studio's tasks, Argilla's records."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from data.answers import AnswerSet
from data.schema import Message
from pipeline.ranking.csv_table import quote
from pipeline.ranking.foreign import Tool
from pipeline.ranking.journal import Judgement

_COLUMNS = (
    *(
        "judgement",
        "item",
        "prompt",
        "completion",
        "rank",
        "annotator",
        "judge",
        "outcome",
        "partial",
        "place",
        "grade",
        "answer_grade",
        "flags",
    ),
    *("reason", "note", "seconds", "time", "repeat", "source", "answer_model"),
)
LABEL_STUDIO_CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <List name="answers" value="$items" title="Answers"/>
  <Ranker name="ranking" toName="answers">
{buckets}
  </Ranker>
  <Rating name="grade" toName="prompt" maxRating="7"/>
  <TextArea name="note" toName="prompt"/>
</View>
"""


def export_rankings(answers: Mapping[str, AnswerSet], judgements: Sequence[Judgement], tool: Tool, rename: Callable[[str], str]) -> str:
    """Write what was said of answer sets as another tool's file. Argilla holds one response of a person, so that repetitions are not in it.

    Args:
        answers: The sets; of those that nobody judged, Label Studio and Argilla get the task.
        judgements: That stand.
        tool: Whose form.
        rename: An annotator's name -> what is written.
    """
    by_item: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if tool != "argilla" or not judgement.repeat:
            by_item[judgement.item].append(judgement)
    if tool == "csv":
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(row for item, each in answers.items() for said in by_item[item] for row in _list_rows(each, said, rename))
        return text.getvalue()
    make = _make_task if tool == "label-studio" else _make_record
    records = [make(number, each, by_item[item], rename) for number, (item, each) in enumerate(answers.items(), start=1)]
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def make_label_studio_config(size: int) -> str:
    """Write the labelling interface for sets of so many answers: a bucket for each rank, so that there can be ties."""
    buckets = "\n".join(f'    <Bucket name="rank {rank}" title="{rank}"/>' for rank in range(1, size + 1))
    return LABEL_STUDIO_CONFIG.format(buckets=buckets)


def _write_prompt(prompt: Sequence[Message]) -> str:
    """Write a prompt as text: a conversation as JSON, which is read back."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return json.dumps([{"role": message.role, "content": message.content} for message in prompt], ensure_ascii=False)


def _list_rows(answers: AnswerSet, said: Judgement, rename: Callable[[str], str]) -> Iterator[dict[str, object]]:
    for answer, text in enumerate(answers.completions):
        yield {
            "judgement": said.id,
            "item": said.item,
            "prompt": quote(_write_prompt(answers.prompt)),
            "completion": quote(text),
            "rank": said.ranks[answer] if said.ranks else "",
            "annotator": quote(said.annotator if said.model else rename(said.annotator)),
            "judge": quote(said.model),
            "outcome": said.outcome,
            "partial": int(said.partial),
            "place": said.order.index(answer) + 1 if said.order else "",
            "grade": said.grade or "",
            "answer_grade": (said.grades[answer] if said.grades else None) or "",
            "flags": ", ".join(flag for flag, marked in said.flags.items() if answer in marked),
            "reason": quote(said.reason),
            "note": quote(said.note),
            "seconds": said.seconds,
            "time": said.time,
            "repeat": int(said.repeat),
            "source": quote(answers.source),
            "answer_model": quote(answers.models[answer] if answers.models else ""),
        }


def _list_flags(said: Judgement) -> list[str]:
    return [f"{flag} {answer + 1}" for flag, marked in said.flags.items() for answer in marked]


def _make_task(number: int, answers: AnswerSet, judgements: Sequence[Judgement], rename: Callable[[str], str]) -> dict[str, Any]:
    """Write a task of Label Studio with its annotations; a model's are predictions, as that tool calls them."""
    items = [{"id": str(place), "title": f"Answer {place}", "body": text} for place, text in enumerate(answers.completions, start=1)]
    data: dict[str, Any] = {"prompt": _write_prompt(answers.prompt), "items": items, "item": answers.id}
    task: dict[str, Any] = {"id": number, "data": data | ({"source": answers.source} if answers.source else {}), "annotations": []}
    for place, said in enumerate(judgements, start=1):
        result: list[dict[str, Any]] = []
        if said.ranks:
            left = max(said.ranks) if said.partial else None  # not placed: in the list, which that tool calls _
            ranker = {"_" if rank == left else f"rank {rank}": _list_ids(said, rank) for rank in sorted(set(said.ranks))}
            result.append({"from_name": "ranking", "to_name": "answers", "type": "ranker", "value": {"ranker": ranker}})
        if said.model:
            task.setdefault("predictions", []).append({"model_version": said.model, "result": result})
            continue
        if said.grade is not None:
            result.append({"from_name": "grade", "to_name": "prompt", "type": "rating", "value": {"rating": said.grade}})
        if said.note:
            result.append({"from_name": "note", "to_name": "prompt", "type": "textarea", "value": {"text": [said.note]}})
        if said.flags:
            result.append({"from_name": "flags", "to_name": "prompt", "type": "choices", "value": {"choices": _list_flags(said)}})
        annotation = {"id": 1000 * number + place, "completed_by": {"email": rename(said.annotator)}, "result": result}
        annotation |= {"was_cancelled": said.outcome == "skipped", "lead_time": said.seconds}
        task["annotations"].append(annotation | {"created_at": datetime.fromtimestamp(said.time, UTC).isoformat()})
    return task


def _list_ids(said: Judgement, rank: int) -> list[str]:
    return [str(answer + 1) for answer, own in enumerate(said.ranks or ()) if own == rank]


def _make_record(number: int, answers: AnswerSet, judgements: Sequence[Judgement], rename: Callable[[str], str]) -> dict[str, Any]:
    """Write a record of Argilla, version 2, with its responses; a model's ranking is a suggestion, as that tool calls it."""
    names = [f"response-{place}" for place in range(1, len(answers.completions) + 1)]
    fields = {"prompt": _write_prompt(answers.prompt), **dict(zip(names, answers.completions, strict=True))}
    responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    suggestions: dict[str, Any] = {}
    for said in judgements:
        left = max(said.ranks) if said.ranks and said.partial else None
        ranked = sorted(zip(said.ranks or (), names, strict=False))
        ranking = [{"value": name, "rank": None if rank == left else rank} for rank, name in ranked]
        if said.model:
            suggestions["ranking"] = {"value": ranking, "score": None, "agent": said.model}
            continue
        status = "discarded" if said.outcome == "skipped" else "submitted"
        values = {"ranking": ranking, "grade": said.grade, "note": said.note, "flags": _list_flags(said)}
        for question, value in values.items():
            if value or question == "ranking":
                responses[question].append({"value": value or None, "user_id": rename(said.annotator), "status": status})
    metadata = {"item": answers.id, **({"source": answers.source} if answers.source else {})}
    record = {"id": str(number), "fields": fields, "metadata": metadata, "suggestions": suggestions, "responses": responses}
    return record | {"vectors": {}, "status": "completed" if responses else "pending", "_server_id": None}
