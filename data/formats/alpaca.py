"""Alpaca: instruction / input / output, also with system and history; Dolly's context / response; pairs of outputs."""

from data.fields import Columns, FieldError, as_list, as_object, check_text, describe
from data.formats.format import Format, rename_root
from data.schema import RecordKind

INPUTS, OUTPUTS = ("input", "context"), ("output", "response")
PAIR = ("output_1", "output_2")  # AlpacaFarm, with `preference` 1 or 2


def matches(row: object) -> bool:
    """Whether a row has an instruction, and not our own columns beside it."""
    names = (as_object(row) or {}).keys()
    return "instruction" in names and names.isdisjoint(("prompt", "messages", "completions"))


def convert(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Join instruction and input by a line break, as LLaMA-Factory does; earlier turns and the system prompt come before them."""
    question = check_text(columns.get("instruction"), "instruction")
    more = next((name for name in INPUTS if name in columns), "")
    if more and (text := check_text(columns[more], more, may_be_empty=True)).strip():
        question = f"{question}\n{text}"
    turns = [*_read_history(columns), {"role": "user", "content": question}]
    own: Columns = {key: columns[key] for key in ("system", "source") if key in columns}
    if kind == "prompts":
        return [{**own, "prompt": turns}]
    if kind == "comparisons":
        return [{**own, "prompt": turns, **_read_pair(columns)}]
    name = _output_of(columns)
    if name not in columns:
        raise FieldError(name, "missing; needed the answer to the instruction; add it")
    answer = check_text(columns[name], name)
    return [{**own, "messages": [*turns, {"role": "assistant", "content": answer}]}]


def _read_history(columns: Columns) -> list[Columns]:
    turns: list[Columns] = []
    history = columns.get("history", [])
    if as_list(history) is None:
        raise FieldError("history", f"found {describe(history)}; needed a list of pairs of question and answer; write it so")
    for i, pair in enumerate(as_list(history) or ()):
        texts = as_list(pair) or []
        if len(texts) != 2:
            raise FieldError(f"history[{i}]", f"found {describe(pair)}; needed a question and its answer; write both")
        said: list[Columns] = [
            {"role": role, "content": check_text(text, f"history[{i}][{j}]")}
            for j, (role, text) in enumerate(zip(("user", "assistant"), texts, strict=True))
        ]
        turns += said
    return turns


def _read_pair(columns: Columns) -> Columns:
    if all(name in columns for name in PAIR):
        preference = columns.get("preference")
        if preference not in (1, 2):
            raise FieldError("preference", f"found {describe(preference)}; needed 1 or 2, the better of output_1 and output_2; correct it")
        better, worse = PAIR if preference == 1 else reversed(PAIR)
        return {"chosen": columns[better], "rejected": columns[worse]}
    outputs = as_list(columns.get("output"))
    if outputs is not None:
        if len(outputs) != 2:
            raise FieldError("output", f"found {len(outputs)} answers; needed two, the better first; write chosen and rejected")
        return {"chosen": outputs[0], "rejected": outputs[1]}
    return {name: columns[name] for name in ("chosen", "rejected") if name in columns}


def rename(field: str, columns: Columns) -> str:
    """Name the last message's text as the output, the one before as the instruction."""
    if field.startswith(("messages", "prompt")):
        return _output_of(columns) if field.startswith(f"messages[{2 * len(as_list(columns.get('history')) or ()) + 1}]") else "instruction"
    if as_list(columns.get("output")) is not None:
        return rename_root(field, {"chosen": "output[0]", "rejected": "output[1]"})
    if "output_1" in columns:
        first = columns.get("preference") != 2
        return rename_root(field, {"chosen": PAIR[not first], "rejected": PAIR[first]})
    return field


def _output_of(columns: Columns) -> str:
    return next((name for name in OUTPUTS if name in columns), OUTPUTS[0])


ALPACA = Format(
    "alpaca",
    "Alpaca: instruction/input/output",
    ("demonstrations", "comparisons", "prompts"),
    ("instruction", *INPUTS, *OUTPUTS, *PAIR, "preference", "chosen", "rejected", "history", "system", "source"),
    matches,
    convert,
    rename,
)
