"""Row -> records: what a row of each kind must hold, and the message when it does not.

A row is a JSON object (or a Parquet or dataset row); columns that no kind knows are ignored.
"""

from typing import cast

from data.schema import ROLES, Comparison, Demonstration, Message, Prompt, Record, RecordKind

Columns = dict[str, object]


class FieldError(Exception):
    """A row that cannot become a record: the field at fault and `found; needed; do`."""

    def __init__(self, field: str, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(f"{field}: {message}")


def parse_row(row: object, kind: RecordKind) -> list[Record]:
    """Turn one row into its records: one, or for `messages` one demonstration per assistant turn.

    Raises:
        FieldError: A field is missing, of the wrong type, empty, or contradicts another.
    """
    if not isinstance(row, dict):
        raise FieldError("", f"found {_describe(row)}; needed a JSON object with named fields; wrap the values")
    # Parquet and datasets fill absent columns with None.
    columns = {str(name): value for name, value in cast(dict[object, object], row).items() if value is not None}
    if kind == "demonstrations":
        return list(_parse_demonstrations(columns))
    if kind == "comparisons":
        return [_parse_comparison(columns)]
    return [Prompt(_parse_prompt(_require(columns, "prompt", "a prompt; add it")))]


def _parse_demonstrations(columns: Columns) -> list[Demonstration]:
    if "completion" in columns:
        prompt = _parse_prompt(_require(columns, "prompt", "a prompt beside the completion; add it"))
        return [Demonstration(prompt, _parse_answer(columns["completion"], "completion"))]
    if "messages" in columns:
        messages = _parse_messages(columns["messages"], "messages")
        return [
            Demonstration(_check_prompt(messages[:turn], f"messages[:{turn}]"), _check_text(message.content, f"messages[{turn}].content"))
            for turn, message in enumerate(messages)
            if message.role == "assistant"
        ] or _refuse("messages", "found no assistant message; needed at least one; add the answer")
    missing = "completion" if "prompt" in columns else "prompt"
    raise FieldError(missing, "missing; needed prompt and completion, or messages; add it")


def _parse_comparison(columns: Columns) -> Comparison:
    source = columns.get("source", "")
    if not isinstance(source, str):
        raise FieldError("source", f"found {_describe(source)}; needed text; quote it")
    if "completions" in columns:
        prompt = _parse_prompt(_require(columns, "prompt", "a prompt beside the completions; add it"))
        completions = _parse_completions(columns["completions"])
        ranks = _parse_ranks(_require(columns, "ranks", "one rank per completion, 1 = best; add them"), len(completions))
        return Comparison(prompt, completions, ranks, source)
    for name in ("chosen", "rejected"):
        _require(columns, name, "completions and ranks, or chosen and rejected; add it")
    prompt, chosen, rejected = _parse_pair(columns)
    return Comparison(prompt, (chosen, rejected), (1, 2), source)


def _parse_pair(columns: Columns) -> tuple[tuple[Message, ...], str, str]:
    """Read chosen and rejected: answers beside a `prompt`, or whole conversations that share all but the last message."""
    chosen, rejected = columns["chosen"], columns["rejected"]
    if not any(len(_as_list(side) or ()) > 1 for side in (chosen, rejected)):
        needed = "a prompt, or chosen and rejected as message lists that begin with it; add it"
        prompt = _parse_prompt(_require(columns, "prompt", needed))
        return prompt, _parse_answer(chosen, "chosen", may_be_empty=True), _parse_answer(rejected, "rejected", may_be_empty=True)
    conversations = {name: _parse_messages(columns[name], name) for name in ("chosen", "rejected")}
    for name, messages in conversations.items():
        if messages[-1].role != "assistant":
            raise FieldError(name, f"the last message is from {messages[-1].role}; needed the assistant's answer last; add it")
    prompts = {name: messages[:-1] for name, messages in conversations.items()}
    if prompts["chosen"] != prompts["rejected"]:
        raise FieldError("rejected", "differs from chosen before the last message; needed one prompt for both; make them equal")
    prompt = _check_prompt(prompts["chosen"], "chosen")
    given = columns.get("prompt")
    if given is not None and given not in (prompt[-1].content, prompt[0].content) and _parse_prompt(given) != prompt:
        raise FieldError("prompt", "differs from the messages before the answer in chosen; needed one prompt; remove one of them")
    return prompt, conversations["chosen"][-1].content, conversations["rejected"][-1].content


def _parse_prompt(value: object) -> tuple[Message, ...]:
    if _as_list(value) is not None:
        return _check_prompt(_parse_messages(value, "prompt"), "prompt")
    return (Message("user", _check_text(value, "prompt", "text or a list of messages")),)


def _check_prompt(messages: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    if not messages:
        raise FieldError(field, "found no message before the answer; needed a user's message; add it")
    if messages[-1].role != "user":
        raise FieldError(
            field, f"the prompt ends with a message from {messages[-1].role}; needed the user's last; reorder or merge messages"
        )
    return messages


def _parse_messages(value: object, field: str) -> tuple[Message, ...]:
    items = _as_list(value)
    if not items:
        raise FieldError(field, f"found {_describe(value)}; needed a list of messages with role and content; write it so")
    messages = tuple(_parse_message(item, f"{field}[{i}]") for i, item in enumerate(items))
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise FieldError(f"{field}[{i}].role", "found a system message after another; needed it first; move it")
    return messages


def _parse_message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise FieldError(field, f"found {_describe(value)}; needed an object with role and content; write it so")
    fields = cast(Columns, value)
    role = fields.get("role")
    if role not in ROLES:
        found = repr(role)[:40] if isinstance(role, str) else _describe(role)
        raise FieldError(f"{field}.role", f"found {found}; needed one of {', '.join(ROLES)}; rename it")
    # An assistant's message may be empty: it can be a (bad) ranked answer. Demonstrations check theirs again.
    content = _check_text(fields.get("content"), f"{field}.content", may_be_empty=role == "assistant")
    return Message(role, content)


def _parse_answer(value: object, field: str, may_be_empty: bool = False) -> str:
    """Read an answer: text, or TRL's conversational form, a list with one assistant message."""
    if _as_list(value) is not None:
        messages = _parse_messages(value, field)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise FieldError(field, f"found {len(messages)} messages; needed text or one assistant message; keep the answer only")
        value = messages[0].content
    return _check_text(value, field, "text", may_be_empty)


def _parse_completions(value: object) -> tuple[str, ...]:
    answers = _as_list(value)
    if answers is None:
        raise FieldError("completions", f"found {_describe(value)}; needed a list of two or more answers; write it so")
    if len(answers) < 2:
        raise FieldError("completions", f"found {len(answers)}; needed two or more answers to one prompt; add some or remove the line")
    return tuple(_parse_answer(answer, f"completions[{i}]", may_be_empty=True) for i, answer in enumerate(answers))


def _parse_ranks(value: object, num_completions: int) -> tuple[int, ...]:
    ranks = _as_list(value)
    if ranks is None:
        raise FieldError("ranks", f"found {_describe(value)}; needed a list of whole numbers, 1 = best; write it so")
    if len(ranks) != num_completions:
        raise FieldError(
            "ranks", f"{len(ranks)} ranks for {num_completions} completions; needed equal numbers; give one rank per completion"
        )
    for i, rank in enumerate(ranks):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise FieldError(f"ranks[{i}]", f"found {_describe(rank)}; needed a whole number from 1 (best); correct it")
    return tuple(cast(list[int], ranks))


def _as_list(value: object) -> list[object] | None:
    return cast(list[object], value) if isinstance(value, list) else None


def _require(columns: Columns, name: str, needed: str) -> object:
    if name not in columns:
        raise FieldError(name, f"missing; needed {needed}")
    return columns[name]


def _refuse(field: str, message: str) -> list[Demonstration]:
    raise FieldError(field, message)


def _check_text(value: object, field: str, needed: str = "text", may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise FieldError(field, f"found {_describe(value)}; needed {needed}; correct it")
    if not may_be_empty and not value.strip():
        raise FieldError(field, f"found {'blanks only' if value else 'an empty text'}; needed {needed}; fill it or remove the line")
    if "\0" in value:
        raise FieldError(field, "found a NUL character; needed plain text; remove it")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"half a surrogate pair (\\u{ord(value[error.start]):04x})"
            raise FieldError(field, f"found {found}; needed Unicode text; repair the export") from error
    return value


def _describe(value: object) -> str:
    """Name a value's type as JSON does, with a short value where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"{str(value).lower()[:40]} (a {'truth value' if isinstance(value, bool) else 'number'})"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
