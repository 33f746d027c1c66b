"""OpenAssistant: trees of messages (`prompt` with `replies`), the same as flat rows (`parent_id`), threads, and lists of ranked replies.

A message is `text` from `prompter` or `assistant`; `rank` 0 is the best of its siblings. Demonstrations and prompts follow the best reply
to each message; comparisons are all messages with two or more ranked replies.
"""

from collections.abc import Iterator, Mapping
from typing import cast

from data.fields import Columns, FieldError, as_list, as_object, check_text, describe, present_columns
from data.formats.format import Format, Row, rename_root
from data.formats.scored import rank_scores
from data.formats.turns import read_turns
from data.schema import Problem, RecordKind

ROLES = {"prompter": "user", "assistant": "assistant"}
REJECTED = "messages that were deleted or rejected by reviewers, and what follows them, left out"
NOT_BEST = "replies that are not the best of their siblings left out"
Place = tuple[Columns, list[Columns], str]  # a message, the conversation before it, its path in the row


def matches_tree(row: object) -> bool:
    """Whether a row is a tree, a thread, or a prompt with ranked replies."""
    columns = as_object(row) or {}
    prompt = columns.get("prompt")
    tree = isinstance(prompt, dict) and ("replies" in prompt or "text" in prompt)
    return tree or as_list(columns.get("replies")) is not None or as_list(columns.get("thread")) is not None


def matches_message(row: object) -> bool:
    """Whether a row is one message of a tree."""
    return isinstance(row, dict) and "message_id" in row and "text" in row and "role" in row and "replies" not in row


def convert(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Walk a tree: a row in our own columns for each prompter's message that gives a record of this kind."""
    if "thread" in columns:
        return [{"messages": read_turns(columns["thread"], "thread")}] if kind != "comparisons" else []
    if not isinstance(columns.get("prompt"), dict):
        return _convert_replies(columns, kind)
    rows: list[Columns] = []
    for (message, before, path), replies, best in _walk(columns, best_only=kind != "comparisons"):
        prompt = [*before, _as_turn(message, path)]
        if kind == "prompts":
            rows.append({"prompt": prompt})
        elif kind == "demonstrations" and best is not None:
            rows.append({"prompt": prompt, "completion": check_text(best[0].get("text"), f"{best[1]}.text")})
        elif kind == "comparisons":
            ranked = [(reply, at) for reply, at in replies if reply.get("rank") is not None]
            if len(ranked) > 1:
                texts = [check_text(reply.get("text"), f"{at}.text", may_be_empty=True) for reply, at in ranked]
                rows.append({"prompt": prompt, "completions": texts, "ranks": rank_scores([-_rank_of(reply, at) for reply, at in ranked])})
    return rows


def count(columns: Columns, kind: RecordKind) -> dict[str, int]:
    """Count the messages that no record holds."""
    if not isinstance(columns.get("prompt"), dict):
        return {}
    found = {REJECTED: 0, NOT_BEST: 0}
    for (message, _, path), replies, _ in _walk(columns, best_only=kind != "comparisons"):
        found[REJECTED] += len(_children(message, path)) - len(replies)
        found[NOT_BEST] += max(len(replies) - 1, 0) if kind == "demonstrations" else 0
    return found


Replies = list[tuple[Columns, str]]


def _walk(columns: Columns, *, best_only: bool) -> Iterator[tuple[Place, Replies, tuple[Columns, str] | None]]:
    """Yield each prompter's message with its usable replies and the best of them; below replies that are not, only if asked."""
    root = cast(Columns, columns["prompt"])
    stack: list[Place] = [] if _is_rejected(root) else [(root, [], "prompt")]
    while stack:
        message, before, path = place = stack.pop()
        if message.get("role") != "prompter":
            raise FieldError(f"{path}.role", f"found {describe(message.get('role'))}; needed prompter, before each answer; correct it")
        replies = [(reply, at) for reply, at in _children(message, path) if not _is_rejected(reply)]
        best = min(replies, key=lambda reply: _rank_of(*reply), default=None)
        yield place, replies, best
        followed = replies if not best_only else [best] if best else []
        for reply, at in reversed(followed):
            so_far = [*before, _as_turn(message, path), _as_turn(reply, at)]
            stack += [(child, so_far, below) for child, below in reversed(_children(reply, at)) if not _is_rejected(child)]


def _children(message: Columns, path: str) -> Replies:
    given = message.get("replies")
    children = [as_object(child) for child in as_list(given) or ()]
    if (given is not None and as_list(given) is None) or None in children:
        raise FieldError(f"{path}.replies", f"found {describe(given)}; needed a list of messages; correct it")
    return [(child, f"{path}.replies[{i}]") for i, child in enumerate(children) if child is not None]


def _is_rejected(message: Columns) -> bool:
    return message.get("deleted") is True or message.get("review_result") is False


def _rank_of(message: Columns, path: str) -> float:
    """Its rank; of a message without one, behind all that have one."""
    rank = message.get("rank")
    if rank is None:
        return float("inf")
    if isinstance(rank, bool) or not isinstance(rank, int | float) or not -1e300 < rank < 1e300 or rank != int(rank):
        raise FieldError(f"{path}.rank", f"found {describe(rank)}; needed a whole number from 0 (best); correct it")
    return float(rank)


def _as_turn(message: Columns, path: str) -> Columns:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise FieldError(f"{path}.role", f"found {describe(role)}; needed prompter or assistant; rename it")
    return {"role": ROLES[role], "content": check_text(message.get("text"), f"{path}.text")}


def _convert_replies(columns: Columns, kind: RecordKind) -> list[Columns]:
    """Ready-made lists of replies: ranked by `rank` where each has one, else the best comes first."""
    own: Columns = {key: columns[key] for key in ("prompt", "system", "source") if key in columns}
    replies = as_list(columns.get("replies")) or []
    fields = [cast(Columns, reply) if isinstance(reply, dict) else {"text": reply} for reply in replies]
    ranks = [_rank_of(reply, f"replies[{i}]") for i, reply in enumerate(fields)]
    ranks = ranks if float("inf") not in ranks else [float(i) for i in range(len(fields))]
    texts = [reply.get("text", reply.get("content")) for reply in fields]
    if kind == "comparisons":
        return [{**own, "completions": texts, "ranks": rank_scores([-rank for rank in ranks])}]
    if kind == "demonstrations" and texts:
        return [{**own, "completion": texts[ranks.index(min(ranks))]}]
    return [own]


def gather(rows: Iterator[Row | Problem]) -> Iterator[Row | Problem]:
    """Put flat messages together into trees, wherever their rows stand; a tree is told at its first message's line."""
    messages: dict[str, tuple[str, Columns]] = {}
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        where, value = row
        try:
            message = present_columns(value)
            name = check_text(message.get("message_id"), "message_id")
            if name in messages:
                raise FieldError(
                    "message_id", f"found again, after {messages[name][0].rpartition('/')[2]}; needed one row per message; remove one"
                )
            _as_turn(message, "message")
        except FieldError as error:
            yield Problem(where, error.field.removeprefix("message."), error.message)
            continue
        messages[name] = (where, {key: message[key] for key in NODE if key in message} | {"replies": []})
    roots: list[Row] = []
    for where, message in messages.values():
        parent = message.get("parent_id")
        if parent is None:
            roots.append((where, {"message_tree_id": message["message_id"], "prompt": message}))
        elif isinstance(parent, str) and parent in messages:
            cast(list[object], messages[parent][1]["replies"]).append(message)
        else:
            yield Problem(where, "parent_id", f"found {describe(parent)}, which no row has; needed the message before it; add or remove it")
    for where, message in _find_circle(messages):
        found = f"found {describe(message['parent_id'])}, which comes after this message too"
        yield Problem(where, "parent_id", f"{found}; needed the message before it; correct it")
    yield from roots


def _find_circle(messages: Mapping[str, tuple[str, Columns]]) -> Iterator[tuple[str, Columns]]:
    """Yield the messages that are their own ancestors: no tree begins above them."""
    settled: set[object] = set()
    for start in messages:
        above, name = list[object](), cast(object, start)
        while isinstance(name, str) and name in messages and name not in settled:
            above.append(name)
            settled.add(name)
            name = messages[name][1].get("parent_id")
        if name in above:
            yield from (messages[cast(str, each)] for each in above[above.index(name) :])


NODE = ("message_id", "parent_id", "text", "role", "rank", "deleted", "review_result")


def rename(field: str, columns: Columns) -> str:
    """Name the messages of a thread and of ready-made replies; those of a tree are checked under their own names."""
    return rename_root(field, {"messages": "thread", "completions": "replies", "completion": "replies"})


KINDS: tuple[RecordKind, ...] = ("demonstrations", "comparisons", "prompts")
OASST_TREES = Format(
    "oasst",
    "OASST trees: prompt and replies",
    KINDS,
    ("message_tree_id", "prompt", "replies", "thread", "system", "source"),
    matches_tree,
    convert,
    rename,
    count,
)
OASST_MESSAGES = Format(
    "oasst", "OASST messages: message_id/parent_id/text/role/rank", KINDS, NODE, matches_message, convert, rename, count, gather
)
