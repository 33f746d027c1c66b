"""HH: whole dialogues as one text, `\\n\\nHuman: ...\\n\\nAssistant: ...` (Anthropic), or `### Human: ...### Assistant: ...` (Guanaco)."""

import re

from data.fields import Columns, FieldError, as_object, check_text
from data.formats.format import Format, rename_root
from data.schema import RecordKind

FIRST = re.compile(r"\s*(### )?Human:")
# How turns begin, the surest way first: the first of which an assistant's turn is found is taken.
WAYS = (
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"),
    re.compile(r"(?:\A\s*|\s*)### (Human|Assistant):"),
    re.compile(r"(?:\A\s*|\n)(Human|Assistant):"),
)
DIALOGUES = ("text", "transcript", "chosen")  # where a whole dialogue may stand
ANSWERS = ("completion", "response")  # beside a prompt that ends with `Assistant:`
ROLES = {"Human": "user", "Assistant": "assistant"}
PROBED_CHARACTERS = 64


def matches(row: object) -> bool:
    """Whether a text of a row begins as a dialogue does; a prompt must also end where the assistant's turn begins."""
    columns = as_object(row) or {}
    prompt = columns.get("prompt")
    if isinstance(prompt, str):
        return _begins(prompt) and prompt.rstrip().endswith("Assistant:")
    return any(isinstance(text, str) and _begins(text) for text in (columns.get(name) for name in DIALOGUES))


def _begins(text: str) -> bool:
    return FIRST.match(text[:PROBED_CHARACTERS]) is not None


def convert(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Write a dialogue as messages."""
    own: Columns = {key: columns[key] for key in ("source", "system") if key in columns}
    if "prompt" in columns:
        own["prompt"] = _before_answer(read_dialogue(columns["prompt"], "prompt"))
        if kind == "comparisons":
            return [own | {name: _strip(columns[name]) for name in ("chosen", "rejected") if name in columns}]
        answer = next((columns[name] for name in ANSWERS if name in columns), None)
        return [own if kind == "prompts" or answer is None else {**own, "completion": _strip(answer)}]
    name = next((name for name in DIALOGUES if name in columns), DIALOGUES[0])
    if kind == "comparisons":
        return [own | {side: read_dialogue(columns[side], side) for side in ("chosen", "rejected") if side in columns}]
    if name == "chosen" and kind == "demonstrations":
        raise FieldError("text", "missing; found chosen and rejected only; needed a dialogue to imitate; map it by columns: {text: chosen}")
    messages = read_dialogue(columns.get(name), name)
    return [own | {"messages": _before_answer(messages) if kind == "demonstrations" else messages}]


def read_dialogue(value: object, field: str) -> list[Columns]:
    """Split a dialogue into messages, the blanks around each away.

    Raises:
        FieldError: It is no such text.
    """
    text = check_text(value, field)
    ways = (way.split(text)[1:] for way in WAYS)
    parts = next((parts for parts in ways if "Assistant" in parts[::2]), None)
    if parts is None or not FIRST.match(text):
        raise FieldError(field, "found no dialogue that begins with Human: and has an Assistant:; needed one; write it so")
    return [{"role": ROLES[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def _before_answer(messages: list[Columns]) -> list[Columns]:
    """Leave away the empty turn with which a prompt ends."""
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def _strip(answer: object) -> object:
    return answer.strip() if isinstance(answer, str) else answer


def rename(field: str, columns: Columns) -> str:
    """Name the column of a dialogue; its turns have no names."""
    name = next((name for name in DIALOGUES if name in columns), DIALOGUES[0])
    answer = next((name for name in ANSWERS if name in columns), ANSWERS[0])
    return rename_root(field, {"messages": name, "completion": answer})


TRANSCRIPT = Format(
    "transcript",
    "transcripts (HH): Human: ... Assistant: ... in one text",
    ("demonstrations", "comparisons", "prompts"),
    ("prompt", *DIALOGUES, "rejected", *ANSWERS, "source", "system"),
    matches,
    convert,
    rename,
)
