"""ShareGPT: conversations as lists of turns, `from` / `value`, or `role` / `content` under the column `conversations`."""

import re
from typing import cast

from data.fields import Columns, FieldError, as_list, as_object
from data.formats.format import Format
from data.schema import RecordKind

CONVERSATIONS = ("conversations", "conversation", "messages")
ROLE_KEYS, TEXT_KEYS = ("from", "role"), ("value", "content", "text")
# As its users write them. LLaMA-Factory's `observation` and Hermes' `function_response` are what a tool answered.
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
    "system": "system",
}
CALL_ROLES = ("function_call", "tool_call")


def matches(row: object) -> bool:
    """Whether a row has a conversation under its own column, or turns with `from` in a column of ours."""
    columns = as_object(row) or {}
    if any(as_list(columns.get(name)) is not None for name in CONVERSATIONS[:2]):
        return True
    lists = [as_list(columns.get(name)) or [columns.get(name)] for name in ("messages", "prompt", "chosen", "rejected")]
    return any(isinstance(turns[0], dict) and "from" in turns[0] for turns in lists if turns)


def convert(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Write turns as messages; beside chosen and rejected answers, the conversation is the prompt."""
    name = _column_of(columns)
    own: Columns = {key: columns[key] for key in ("source", "system") if key in columns}
    if kind == "comparisons":
        sides = [side for side in ("chosen", "rejected") if side in columns]
        own |= {side: _read_answer(columns[side], side) for side in sides}
        if name in columns:
            own["prompt"] = read_turns(columns[name], name)
        elif "prompt" in columns:
            own["prompt"] = read_turns(columns["prompt"], "prompt")
    elif name in columns:
        own["messages"] = read_turns(columns[name], name)
    elif kind == "demonstrations":
        raise FieldError(name, "missing; needed a list of turns; add it")
    else:
        own |= {side: read_turns(columns[side], side) for side in ("prompt", "chosen", "rejected") if side in columns}
    return [own]


def rename(field: str, columns: Columns) -> str:
    """Name `messages[2].content` as `conversations[2].value`."""
    match = re.match(r"(messages|prompt|chosen|rejected)(?:\[(\d+)\])?", field)
    if not match:
        return field
    own = match[1]
    column = _column_of(columns) if own == "messages" or (own == "prompt" and _column_of(columns) in columns) else own
    turns = columns.get(column)
    turn = turns
    if (items := as_list(turns)) is not None:
        turn = items[int(match[2])] if match[2] and int(match[2]) < len(items) else None
    named = f"{column}{field[len(own) :]}"
    if isinstance(turn, dict):
        keys = cast(Columns, turn)
        named = re.sub(r"\.content\b", f".{_key_of(keys, TEXT_KEYS)}", re.sub(r"\.role$", f".{_key_of(keys, ROLE_KEYS)}", named))
    return named


def read_turns(value: object, field: str) -> object:
    """Write a list of turns as messages; what is no list of turns stays as it is, to be told by whoever checks messages.

    Raises:
        FieldError: A turn is a tool call, which is no text.
    """
    items = as_list(value)
    return value if items is None else [_read_turn(item, f"{field}[{i}]") for i, item in enumerate(items)]


def _read_turn(turn: object, field: str) -> object:
    if not isinstance(turn, dict):
        return turn
    fields = cast(Columns, turn)
    role_key, text_key = _key_of(fields, ROLE_KEYS), _key_of(fields, TEXT_KEYS)
    if role_key not in fields:
        found = f"found an object with {', '.join(list(fields)[:6])[:80] or 'nothing in it'}"
        raise FieldError(field, f"{found}; needed from and value, or role and content; write it so")
    role = fields[role_key]
    if role in CALL_ROLES:
        needed = "needed the call as the text that the model shall write, from gpt"
        raise FieldError(f"{field}.{role_key}", f"found {role}; {needed}; write it so or remove the line")
    rest = {key: value for key, value in fields.items() if key not in (role_key, text_key)}
    known = ROLES.get(role.lower(), role) if isinstance(role, str) else role
    return {**rest, "role": known, "content": fields.get(text_key)}


def _read_answer(value: object, field: str) -> object:
    """Read one side of a pair: a turn alone, a list of them, or text."""
    turn = as_object(value)
    return read_turns([turn] if turn is not None else value, field)


def _column_of(columns: Columns) -> str:
    return next((name for name in CONVERSATIONS if name in columns), CONVERSATIONS[0])


def _key_of(turn: Columns, names: tuple[str, ...]) -> str:
    """The first of some keys that a turn has, filled if one is: Parquet fills absent ones with None."""
    filled = (name for name in names if turn.get(name) is not None)
    return next(filled, next((name for name in names if name in turn), names[0]))


def unwrap(row: object) -> object:
    """Give a bare list of messages its column, and a conversation that is lists of its turns' values (older datasets) turns."""
    items = as_list(row)
    if items and all("role" in (as_object(item) or {}) for item in items):
        return {"messages": row}
    columns = as_object(row)
    zipped = {name: turns for name in CONVERSATIONS if columns and (turns := _zip_turns(columns.get(name)))}
    return columns | zipped if columns is not None and zipped else row


def _zip_turns(value: object) -> list[Columns]:
    """Turn `{"from": ["human", "gpt"], "value": ["Hi?", "Hello."]}` into two turns; nothing for anything else."""
    lists = {key: items for key, item in (as_object(value) or {}).items() if (items := as_list(item)) is not None}
    if not any(key in lists for key in ROLE_KEYS) or len({len(items) for items in lists.values()}) != 1:
        return []
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


SHAREGPT = Format(
    "sharegpt",
    "ShareGPT: conversations/from/value",
    ("demonstrations", "comparisons", "prompts"),
    (*CONVERSATIONS, "chosen", "rejected", "prompt", "system", "source"),
    matches,
    convert,
    rename,
)
