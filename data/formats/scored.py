"""Answers with scores or ranks: UltraFeedback (instruction, K completions), Nectar (answers), lists of scores; SHP (two comments)."""

from data.fields import Columns, FieldError, as_list, as_object, check_number, check_text, describe
from data.formats.format import Format, rename_root
from data.formats.transcript import TRANSCRIPT
from data.schema import RecordKind

PROMPTS, LISTS = ("instruction", "prompt"), ("completions", "answers", "responses")
TEXTS = ("response", "answer", "text", "content", "completion")
# The first that all answers of a row have. UltraFeedback publishes both; the mean of its aspects' ratings is the second.
SCORES = ("overall_score", "fine-grained_score", "score", "rating")
SIDES = ("human_ref_A", "human_ref_B")


def matches_scored(row: object) -> bool:
    """Whether a row has a list of answers that are objects, or scores beside a list of answers."""
    columns = as_object(row) or {}
    answers = as_list(columns.get(_list_of(columns))) or [None]
    first = as_object(answers[0]) or {}
    written = any(name in first for name in TEXTS) and "role" not in first
    return written or (as_list(columns.get("scores")) is not None and "ranks" not in columns and answers[0] is not None)


def convert_scored(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Rank answers by their scores: equal scores are ties."""
    own = _read_prompt(columns)
    if kind == "prompts":
        return [own]
    name = _list_of(columns)
    answers = as_list(columns.get(name)) or []
    for i, answer in enumerate(answers):
        if not isinstance(answer, dict | str):
            raise FieldError(f"{name}[{i}]", f"found {describe(answer)}; needed an object with the answer's text; correct it")
    texts = [fields.get(_text_of(fields)) if (fields := as_object(answer)) else answer for answer in answers]
    own |= {key: columns[key] for key in ("source",) if key in columns}
    return [{**own, "completions": texts, "ranks": _rank(columns, name, answers)}]


def _read_prompt(columns: Columns) -> Columns:
    name = next((name for name in PROMPTS if name in columns), PROMPTS[0])
    if name == "prompt" and TRANSCRIPT.matches(columns):
        return TRANSCRIPT.convert({"prompt": columns["prompt"]}, "prompts")[0]
    if name not in columns:
        raise FieldError(name, "missing; needed what the answers answer; add it")
    return {"prompt": columns[name], **({"system": columns["system"]} if "system" in columns else {})}


def _rank(columns: Columns, name: str, answers: list[object]) -> list[int]:
    if (given := as_list(columns.get("scores"))) is not None:
        if len(given) != len(answers):
            raise FieldError("scores", f"{len(given)} scores for {len(answers)} answers; needed equal numbers; give one score per answer")
        return rank_scores([check_number(score, f"scores[{i}]") for i, score in enumerate(given)])
    objects = [as_object(answer) or {} for answer in answers]
    for key in (*SCORES, "rank"):
        if objects and all(answer.get(key) is not None for answer in objects):
            values = [check_number(answer[key], f"{name}[{i}].{key}") for i, answer in enumerate(objects)]
            return rank_scores([-value for value in values] if key == "rank" else values)
    missing = next((i for i, answer in enumerate(objects) if all(answer.get(key) is None for key in (*SCORES, "rank"))), 0)
    known = ", ".join((*SCORES, "rank"))
    raise FieldError(f"{name}[{missing}]", f"found no score that all answers of the row have; needed one of {known}; add it")


def rank_scores(scores: list[float]) -> list[int]:
    """Rank scores: the highest is 1, equal ones share a rank, the next one follows without a gap."""
    order = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    return [order[score] for score in scores]


def rename_scored(field: str, columns: Columns) -> str:
    """Name `completions[2]` as `completions[2].response`."""
    prompt = next((name for name in PROMPTS if name in columns), PROMPTS[0])
    name = _list_of(columns)
    if not field.startswith("completions["):
        return rename_root(field, {"prompt": prompt, "completions": name})
    answers = as_list(columns.get(name)) or []
    index = int(field[len("completions[") :].split("]", 1)[0])
    inner = f".{_text_of(answers[index])}" if index < len(answers) and isinstance(answers[index], dict) else ""
    return f"{name}[{index}]{inner}"


def _list_of(columns: Columns) -> str:
    return next((name for name in LISTS if name in columns), LISTS[0])


def _text_of(answer: object) -> str:
    fields = as_object(answer) or {}
    return next((name for name in TEXTS if name in fields), TEXTS[0])


def matches_shp(row: object) -> bool:
    """Whether a row has the two comments of SHP."""
    return isinstance(row, dict) and any(side in row for side in SIDES)


def convert_shp(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Take the comment that `labels` names (1: A) as chosen."""
    own: Columns = {"prompt": check_text(columns.get("history"), "history")}
    if kind == "prompts":
        return [own]
    for side in SIDES:
        check_text(columns.get(side), side, may_be_empty=True)
    label = columns.get("labels")
    if label not in (0, 1):
        raise FieldError("labels", f"found {describe(label)}; needed 1 (A is better) or 0 (B is better); correct it")
    better, worse = SIDES if label == 1 else reversed(SIDES)
    return [{**own, "chosen": columns[better], "rejected": columns[worse]}]


def rename_shp(field: str, columns: Columns) -> str:
    """Name the prompt's column; the comments are checked under their own names."""
    return rename_root(field, {"prompt": "history"})


ULTRAFEEDBACK = Format(
    "ultrafeedback",
    "UltraFeedback: instruction and completions with scores",
    ("comparisons", "prompts"),
    (*PROMPTS, *LISTS, "scores", "source", "system"),
    matches_scored,
    convert_scored,
    rename_scored,
)
SHP = Format(
    "shp",
    "SHP: history, human_ref_A/human_ref_B, labels",
    ("comparisons", "prompts"),
    ("history", *SIDES, "labels"),
    matches_shp,
    convert_shp,
    rename_shp,
)
