"""Rows -> the format of a file. The table of formats, and how one is recognised: by most of the first rows, the same on every reading."""

from collections import Counter
from collections.abc import Iterable

from data.fields import as_object
from data.formats.alpaca import ALPACA
from data.formats.format import Format, rename_root
from data.formats.oasst import OASST_MESSAGES, OASST_TREES
from data.formats.scored import SHP, ULTRAFEEDBACK
from data.formats.transcript import TRANSCRIPT
from data.formats.turns import SHAREGPT
from data.records import OWN_COLUMNS
from data.schema import KINDS, RecordKind

# Of the two answers of a pair: UltraFeedback's names are ours, these are RLHFlow's, distilabel's and Argilla's.
OTHER_SCORES = {f"{side}{name}": f"score_{side}" for name in ("_score", "_rating", "-rating", "-score") for side in ("chosen", "rejected")}
OWN = Format(
    "trl",
    "TRL: prompt/completion, messages, chosen/rejected",
    KINDS,
    (*OWN_COLUMNS, *OTHER_SCORES),
    lambda row: not (as_object(row) or {}).keys().isdisjoint(OWN_COLUMNS),
    lambda columns, _: [columns | {OTHER_SCORES[name]: value for name, value in columns.items() if name in OTHER_SCORES}],
    lambda field, columns: rename_root(field, {ours: theirs for theirs, ours in OTHER_SCORES.items() if theirs in columns}),
)
TEXT = Format(
    "text",
    "plain text: a prompt a line, or in the column text",
    ("prompts",),
    ("text",),
    lambda row: (columns := as_object(row) or {}).keys().isdisjoint(OWN_COLUMNS) and isinstance(columns.get("text"), str),
    lambda columns, _: [{"prompt": columns.get("text")}],
    lambda field, _: rename_root(field, {"prompt": "text"}),
)
DOCUMENT = Format(
    "text",
    "plain text: a document in the column text, or a .txt file",
    ("texts",),
    ("text",),
    lambda row: isinstance((as_object(row) or {}).get("text"), str),
    lambda columns, _: [{"text": columns.get("text")}],
    lambda field, _: field,
)
# The surest first; a row is of the first format that it matches and that gives the kind wanted.
FORMATS = (OASST_MESSAGES, OASST_TREES, SHP, ULTRAFEEDBACK, SHAREGPT, TRANSCRIPT, ALPACA, TEXT, DOCUMENT, OWN)
ALL_COLUMNS = tuple(
    dict.fromkeys((*OWN_COLUMNS, *(name for form in FORMATS for name in form.columns), "tools", "margin", "label", "kto_tag"))
)


def recognise(row: object, kind: RecordKind) -> Format | None:
    """Name the format of one row; None where it has no column that any format knows."""
    matching = [form for form in FORMATS if form.matches(row)]
    giving = [form for form in matching if kind in form.kinds]
    if giving == [OWN] and kind == "demonstrations" and not any(name in (as_object(row) or {}) for name in ("completion", "messages")):
        giving = []  # `completions` and `prompt` are columns of others too
    return next(iter(giving or matching), None)


def choose_format(rows: Iterable[object], kind: RecordKind, name: str | None) -> Format:
    """Choose the format of a file: of `name`, where it is given, the one that most of the rows match; else that of most rows.

    Rows that no format knows have no voice; a draw goes to the format that came first; without a voice it is our own.
    """
    voices: Counter[str] = Counter()
    named = [form for form in FORMATS if form.name == name]
    named = [form for form in named if kind in form.kinds] or named
    for row in rows:
        form = next((form for form in named if form.matches(row)), None) if name else recognise(row, kind)
        if form:
            voices[form.looks] += 1
    if not voices:
        return named[-1] if named else OWN
    looks = voices.most_common(1)[0][0]
    return next(form for form in FORMATS if form.looks == looks)
