"""Row in our own columns (TRL's) -> records: what a row of each kind must hold, and the message when it does not.

A row is a JSON object (or a Parquet or dataset row); columns that no kind knows are ignored. Other forms become such rows in `formats/`.
"""

from itertools import combinations
from typing import cast

from data.fields import Columns, FieldError, as_list, as_object, check_number, check_text, describe, is_false, present_columns
from data.schema import ROLES, Comparison, Demonstration, Message, Prompt, Record, RecordKind, Text

OWN_COLUMNS = (
    "prompt",
    "completion",
    "messages",
    "completions",
    "ranks",
    "grades",
    "chosen",
    "rejected",
    "source",
    "system",
    "score_chosen",
    "score_rejected",
)
MIN_GRADE, MAX_GRADE, MAX_RANK = 1, 7, 1_000_000  # grades of an answer as Ouyang et al. 2022: overall quality on a scale of seven
CALLS = ("tool_calls", "function_call")  # what an assistant's message says apart from its text
LEARNING = ("weight", "train", "training", "loss")  # 0 or false: the message is context alone (OpenAI's files, axolotl's, ms-swift's)


def parse_row(row: object, kind: RecordKind) -> list[Record]:
    """Turn one row into its records: one, or for `messages` one demonstration per assistant turn.

    Raises:
        FieldError: A field is missing, of the wrong type, empty, or contradicts another.
    """
    columns = present_columns(row)
    if kind == "demonstrations":
        return list(_parse_demonstrations(columns))
    if kind == "comparisons":
        return [_parse_comparison(columns)]
    if kind == "texts":
        return [Text(check_text(_require(columns, "text", "a document's text; add it"), "text", may_be_empty=True))]
    return [Prompt(_parse_prompt_record(columns))]


def _parse_demonstrations(columns: Columns) -> list[Demonstration]:
    if "completion" in columns:
        prompt = _parse_prompt(columns, "a prompt beside the completion; add it")
        return [Demonstration(prompt, _parse_answer(columns["completion"], "completion"))]
    if "messages" in columns:
        messages = _parse_messages(columns["messages"], "messages", columns)
        turns = as_list(columns["messages"]) or []
        added = len(messages) - len(turns)  # 1 with a system column
        answers = [(turn, message.content) for turn, message in enumerate(messages[added:]) if message.role == "assistant"]
        if not answers:
            raise FieldError("messages", "found no assistant message; needed at least one; add the answer")
        opening = count_opening(turns)
        answers = [answer for answer in answers if answer[0] >= opening] or answers
        return [
            Demonstration(_check_prompt(messages[: added + turn], f"messages[:{turn}]"), check_text(answer, f"messages[{turn}].content"))
            for turn, answer in answers
            if is_learnt(turns[turn])
        ]
    raise _missing(columns, "completion" if "prompt" in columns else "prompt", "prompt and completion, or messages; add it")


def count_opening(turns: list[object]) -> int:
    """Count the messages before the user's first one: an assistant's among them, a greeting, answer nothing and are context alone."""
    roles = [(as_object(turn) or {}).get("role") for turn in turns]
    return next((place for place, role in enumerate(roles) if role in ("user", "tool")), 0)


def is_learnt(turn: object) -> bool:
    """Whether an assistant's message is one to learn: not where it is marked as context alone."""
    fields = as_object(turn) or {}
    return not any(is_false(fields.get(name)) for name in LEARNING)


def _parse_comparison(columns: Columns) -> Comparison:
    source = columns.get("source", "")
    if not isinstance(source, str):
        raise FieldError("source", f"found {describe(source)}; needed text; quote it")
    if "completions" in columns:
        prompt = _parse_prompt(columns, "a prompt beside the completions; add it")
        completions = _parse_completions(columns["completions"])
        ranks = _parse_ranks(_require(columns, "ranks", "one rank per completion, 1 = best; add them"), len(completions))
        grades = _parse_grades(columns["grades"], len(completions)) if "grades" in columns else ()
        return Comparison(prompt, completions, tie_identical(completions, ranks), source, grades)
    for name in ("chosen", "rejected"):
        _require(columns, name, "completions and ranks, or chosen and rejected; add it")
    prompt, chosen, rejected = _parse_pair(columns)
    return Comparison(prompt, (chosen, rejected), tie_identical((chosen, rejected), _rank_pair(columns)), source)


def _rank_pair(columns: Columns) -> tuple[int, int]:
    """Rank chosen and rejected, by the scores beside them where there are some (UltraFeedback): equal ones are a tie."""
    if "score_chosen" not in columns or "score_rejected" not in columns:
        return 1, 2
    better, worse = (check_number(columns[name], name) for name in ("score_chosen", "score_rejected"))
    if better < worse:
        raise FieldError("score_chosen", f"found {better:g}, below score_rejected {worse:g}; needed chosen to be the better; swap them")
    return 1, 2 if better > worse else 1


def tie_identical(completions: tuple[str, ...], ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Tie answers that are the same text, and what is ranked between them: one of two equal answers is no better than the other.

    Returns:
        Ranks, as given where no text stands twice with different ranks.
    """
    settled = list(ranks)
    for first, second in combinations(range(len(completions)), 2):
        if completions[first] == completions[second] and settled[first] != settled[second]:
            best, worst = sorted((settled[first], settled[second]))
            settled = [best if best <= rank <= worst else rank for rank in settled]
    return tuple(settled)


def _parse_pair(columns: Columns) -> tuple[tuple[Message, ...], str, str]:
    """Read chosen and rejected: answers beside a `prompt`, or whole conversations that share all but the last message."""
    chosen, rejected = columns["chosen"], columns["rejected"]
    for name, side, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
        if len(as_list(side) or ()) > 1 and isinstance(other, str):
            found = f"found a list of {len(as_list(side) or ())} beside one text"
            raise FieldError(name, f"{found}; needed text on both sides, or message lists; give several answers as completions with ranks")
    if not any(len(as_list(side) or ()) > 1 for side in (chosen, rejected)):
        prompt = _parse_prompt(columns, "a prompt, or chosen and rejected as message lists that begin with it; add it")
        return prompt, _parse_answer(chosen, "chosen", may_be_empty=True), _parse_answer(rejected, "rejected", may_be_empty=True)
    conversations = {name: _parse_messages(columns[name], name, columns) for name in ("chosen", "rejected")}
    for name, messages in conversations.items():
        if messages[-1].role != "assistant":
            raise FieldError(name, f"the last message is from {messages[-1].role}; needed the assistant's answer last; add it")
    prompts = {name: messages[:-1] for name, messages in conversations.items()}
    if prompts["chosen"] != prompts["rejected"]:
        raise FieldError("rejected", "differs from chosen before the last message; needed one prompt for both; make them equal")
    prompt = _check_prompt(prompts["chosen"], "chosen")
    given = columns.get("prompt")
    said = {message.content for message in prompt if message.role == "user"}
    if given is not None and not (isinstance(given, str) and given in said) and _parse_prompt(columns, "") != prompt:
        raise FieldError("prompt", "differs from the messages before the answer in chosen; needed one prompt; remove one of them")
    return prompt, conversations["chosen"][-1].content, conversations["rejected"][-1].content


def _parse_prompt_record(columns: Columns) -> tuple[Message, ...]:
    """Read what PPO shall answer: a prompt, else a conversation up to where its last answer begins."""
    if "prompt" in columns:
        return _parse_prompt(columns, "")
    name = next((name for name in ("messages", "chosen") if as_list(columns.get(name))), None)
    if name is None:
        raise _missing(columns, "prompt", "a prompt, or messages; add it")
    messages = _parse_messages(columns[name], name, columns)
    return _check_prompt(messages[:-1] if messages[-1].role == "assistant" else messages, name)


def _parse_prompt(columns: Columns, needed: str) -> tuple[Message, ...]:
    value = _require(columns, "prompt", needed)
    if as_list(value) is not None:
        return _check_prompt(_parse_messages(value, "prompt", columns), "prompt")
    prompt = Message("user", check_text(value, "prompt", "text or a list of messages"))
    return _with_system((prompt,), columns)


def _with_system(messages: tuple[Message, ...], columns: Columns) -> tuple[Message, ...]:
    """Begin a conversation with the row's `system` column, where it has one."""
    system = columns.get("system", "")
    if not isinstance(system, str):
        raise FieldError("system", f"found {describe(system)}; needed text; correct it")
    if not system.strip():
        return messages
    if messages[0].role == "system":
        if messages[0].content == system:
            return messages
        raise FieldError("system", "found a system message in the conversation too, and another; needed one; remove one of them")
    return (Message("system", check_text(system, "system")), *messages)


def _check_prompt(messages: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    if not messages:
        raise FieldError(field, "found no message before the answer; needed a user's message; add it")
    if messages[-1].role not in ("user", "tool"):
        raise FieldError(
            field, f"the prompt ends with a message from {messages[-1].role}; needed the user's last; reorder or merge messages"
        )
    return messages


def _parse_messages(value: object, field: str, columns: Columns) -> tuple[Message, ...]:
    items = as_list(value)
    if not items:
        raise FieldError(field, f"found {describe(value)}; needed a list of messages with role and content; write it so")
    messages = tuple(_parse_message(item, f"{field}[{i}]") for i, item in enumerate(items))
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise FieldError(f"{field}[{i}].role", "found a system message after another; needed it first; move it")
    return _with_system(messages, columns)


def _parse_message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise FieldError(field, f"found {describe(value)}; needed an object with role and content; write it so")
    fields = cast(Columns, value)
    role = fields.get("role")
    if role not in ROLES:
        found = repr(role)[:40] if isinstance(role, str) else describe(role)
        raise FieldError(f"{field}.role", f"found {found}; needed one of {', '.join(ROLES)}; rename it")
    for name in CALLS:
        if fields.get(name):
            needed = "needed the call as the text that the model shall write"
            raise FieldError(f"{field}.{name}", f"found a tool call apart from the text; {needed}; write it into content")
    # An assistant's message may be empty: it can be a (bad) ranked answer. Demonstrations check theirs again.
    content = join_parts(fields.get("content"), f"{field}.content")
    return Message(role, check_text(content, f"{field}.content", may_be_empty=role == "assistant"))


def join_parts(content: object, field: str) -> object:
    """Join a message's typed parts of text, `[{"type": "text", "text": "..."}]`, as templates do; other content stays as it is.

    Raises:
        FieldError: A part is no text.
    """
    parts = as_list(content)
    if not parts:
        return content
    texts: list[str] = []
    for i, part in enumerate(parts):
        fields = as_object(part) or {}
        text = part if isinstance(part, str) else fields.get("text") if fields.get("type", "text") == "text" else None
        if not isinstance(text, str):
            kind = fields.get("type")
            found = f"a part of type {kind[:40]}" if isinstance(kind, str) and kind != "text" else describe(parts[i])
            raise FieldError(f"{field}[{i}]", f"found {found}; needed text, or parts of type text; remove the line")
        texts.append(text)
    return "".join(texts)


def _parse_answer(value: object, field: str, may_be_empty: bool = False) -> str:
    """Read an answer: text, or TRL's conversational form, a list with one assistant message."""
    if as_list(value) is not None:
        messages = _parse_messages(value, field, {})
        if len(messages) != 1 or messages[0].role != "assistant":
            raise FieldError(field, f"found {len(messages)} messages; needed text or one assistant message; keep the answer only")
        value = messages[0].content
    return check_text(value, field, "text", may_be_empty)


def _parse_completions(value: object) -> tuple[str, ...]:
    answers = as_list(value)
    if answers is None:
        raise FieldError("completions", f"found {describe(value)}; needed a list of two or more answers; write it so")
    if len(answers) < 2:
        raise FieldError("completions", f"found {len(answers)}; needed two or more answers to one prompt; add some or remove the line")
    return tuple(_parse_answer(answer, f"completions[{i}]", may_be_empty=True) for i, answer in enumerate(answers))


def _parse_ranks(value: object, num_completions: int) -> tuple[int, ...]:
    ranks = as_list(value)
    if ranks is None:
        raise FieldError("ranks", f"found {describe(value)}; needed a list of whole numbers, 1 = best; write it so")
    if len(ranks) != num_completions:
        raise FieldError(
            "ranks", f"{len(ranks)} ranks for {num_completions} completions; needed equal numbers; give one rank per completion"
        )
    ranks = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks]  # pandas writes 1.0
    for i, rank in enumerate(ranks):
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
            raise FieldError(f"ranks[{i}]", f"found {describe(rank)}; needed a whole number from 1 (best); correct it")
    return tuple(cast(list[int], ranks))


def _parse_grades(value: object, num_completions: int) -> tuple[float | None, ...]:
    """Read how good each answer is; a row in which none is graded has no grades."""
    grades = as_list(value)
    if grades is None:
        raise FieldError("grades", f"found {describe(value)}; needed a list of numbers from 1 (bad) to 7, or null for none; write it so")
    if len(grades) != num_completions:
        found = f"{len(grades)} grades for {num_completions} completions"
        raise FieldError("grades", f"{found}; needed equal numbers; give one grade, or null, per completion")
    read = tuple(None if grade is None else check_number(grade, f"grades[{i}]") for i, grade in enumerate(grades))
    for i, grade in enumerate(read):
        if grade is not None and not MIN_GRADE <= grade <= MAX_GRADE:
            raise FieldError(f"grades[{i}]", f"found {grade:g}; needed {MIN_GRADE} (bad) to {MAX_GRADE}, or null for none; correct it")
    return read if any(grade is not None for grade in read) else ()


def _require(columns: Columns, name: str, needed: str) -> object:
    if name not in columns:
        raise _missing(columns, name, needed)
    return columns[name]


def _missing(columns: Columns, name: str, needed: str) -> FieldError:
    """Name the missing column; of a row that has others than ours, also those that it has."""
    if len(columns) == 1 and (inner := as_list(next(iter(columns.values())))) and as_object(inner[0]) is not None:
        found = f"found one object, whose {next(iter(columns))[:40]} is a list of {len(inner):,} objects"
        return FieldError(name, f"missing; {found}; needed {needed}; if they are the records, write that list alone")
    if columns.keys() - set(OWN_COLUMNS):
        found = ", ".join(list(columns)[:6])[:120]
        return FieldError(name, f"missing; found {found}; needed {needed}, or say by columns: which is which")
    return FieldError(name, f"missing; needed {needed}")
