"""The chat template that a model is trained and published with: chosen, and its variables and clock written into it."""

import datetime
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from stages.blocks import TEMPLATE_KEYWORDS
from stages.process.errors import StageError
from stages.spec import EXIT_MISSING, EXIT_USAGE

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
# The line break after a role's name: an answer begins a line, so that its tokens are the same in a history as where it is learnt.
PLAIN = (
    "{%- for message in messages %}{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{%- endif %}{{ '\\n\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{%- endif %}"
)
_BOS = "{{- bos_token }}"

# Days are the same for all who run a recipe, so that its weights are: a clock that ran on would give other ones each day.
PINNED_DAY = datetime.date(2025, 1, 1)
_PROCESSORS_FILE = "chat_template.json"
_CLOCK = "strftime_now"
_DIRECTIVES = (*(f"-{code}" for code in "dmHIMSjy"), *"aAbBcdeDFGHhIjklmMpRSTuUVwWxXyYz")
_SETTLED = "{# settled by rlhf #}"  # what stands before it was written by `bake`


def choose_template(tokenizer: Any, wanted: str, *, tools: bool = False) -> tuple[str, str]:
    """Choose the chat template of a base model.

    Args:
        tokenizer: The base model's.
        wanted: `tokens.chat_template`.
        tools: Whether the template is given tools.

    Returns:
        (the template, what it is: for the user).

    Raises:
        StageError: What was asked for is not there.
    """
    found: Any = tokenizer.chat_template or _read_processors(tokenizer)
    named = {name: _clean(text) for name, text in cast("dict[str, str]", found).items()} if isinstance(found, dict) else {}
    if wanted == "auto":
        if isinstance(found, str) and found.strip():
            return _clean(found), "the tokenizer's own"
        for name in ("tool_use",) * tools + ("default",) + tuple(named) * (len(named) == 1):
            if name in named:
                return named[name], f"the tokenizer's own, `{name}` of {len(named)}"
        why = f"the tokenizer has {len(named)}, none of them named `default`" if named else "the tokenizer has none"
        if _has_chatml(tokenizer):
            return _begin(tokenizer) + CHATML, f"ChatML ({why}, but ChatML's tokens)"
        return _begin(tokenizer) + PLAIN, f"plain text, `User:` and `Assistant:` ({why})"
    if wanted == "plain":
        return _begin(tokenizer) + PLAIN, "plain text, `User:` and `Assistant:`"
    if wanted == "chatml":
        if not _has_chatml(tokenizer):
            raise StageError(
                f"tokens.chat_template: found chatml, needed {' and '.join(CHATML_TOKENS)} in the vocabulary of {tokenizer.name_or_path}; "
                "set plain or auto",
                EXIT_USAGE,
            )
        return _begin(tokenizer) + CHATML, "ChatML"
    if wanted in named:
        return named[wanted], f"the tokenizer's own, `{wanted}` of {len(named)}"
    return _read_file(wanted, named), wanted


def _read_processors(tokenizer: Any) -> str | None:
    """Read the template that models which take images too have in a file of its own, where their tokenizer has none."""
    try:
        return json.loads((Path(tokenizer.name_or_path) / _PROCESSORS_FILE).read_text(encoding="utf-8-sig"))["chat_template"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _clean(template: str) -> str:
    """Drop the mark with which some editors begin a file: the template would write it before each prompt."""
    return template.removeprefix("\ufeff")


def bake(template: str, arguments: Mapping[str, Any]) -> str:
    """Write values of its variables, and a clock that stands still, into a template: it then renders the same for whoever opens it.

    What an earlier call wrote stays, and the later value of a variable wins.

    Raises:
        StageError: The template has no such variable, or `date` is no day.
    """
    earlier, _, body = template.rpartition(f"{_SETTLED}\n")
    known = set(re.findall(r"[A-Za-z_]\w*", body))
    lines: list[str] = []
    if _CLOCK in known and ("date" in arguments or _CLOCK not in earlier):
        lines.append(_write_clock(_read_day(arguments.get("date"))))
    for name, value in arguments.items():
        if name in known:
            lines.append(f"{{%- set {name} = {_write_literal(value)} %}}")
        elif name != "date" or _CLOCK not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it away"
            raise StageError(f"tokens.template_args.{name}: the chat template reads no variable of this name; {hint}", EXIT_USAGE)
    written = "".join(f"{line}\n" for line in lines)  # the sandbox drops a line break behind a block
    if not written or earlier.endswith(written):
        return template
    return f"{earlier}{written}{_SETTLED}\n{body}"


def add_opening(template: str, opening: str) -> str:
    """Write what a template lacks at the end of a prompt behind it; a line break at the end of a template writes nothing."""
    body = template.removesuffix("\n")
    return f"{body}{{% if add_generation_prompt %}}{{{{ {_write_literal(opening)} }}}}{{% endif %}}"


def find_pinned_day(template: str) -> str | None:
    """Find the day at which a baked template's clock stands still; None: it has no clock."""
    found = re.findall(r"macro strftime_now.*?replace\('%F', \"([^\"]*)\"\)", template)
    return found[-1] if found else None


def _has_chatml(tokenizer: Any) -> bool:
    return all(token in tokenizer.get_vocab() for token in CHATML_TOKENS)


def _begin(tokenizer: Any) -> str:
    """Begin a template of ours with the token that the tokenizer itself puts before a text, if there is one."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
    return _BOS if begins else ""


def _read_file(path: str, named: Mapping[str, str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        names = [*TEMPLATE_KEYWORDS, *named]
        reason = getattr(error, "strerror", None) or str(error)
        raise StageError(
            f"tokens.chat_template: found {path!r} ({reason}), needed a Jinja file or one of {', '.join(names)}; check it", EXIT_MISSING
        ) from error


def _read_day(value: object) -> datetime.date:
    if value is None:
        return PINNED_DAY
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError as error:
        message = f"tokens.template_args.date: found {value!r}, needed a day such as 2025-01-31: the template has a clock; write it so"
        raise StageError(message, EXIT_USAGE) from error


def _write_clock(day: datetime.date) -> str:
    """Write a macro in place of transformers' `strftime_now`, midnight of one day for ever."""
    moment = datetime.datetime.combine(day, datetime.time())
    values = ((f"%{code}", moment.strftime(f"%{code}")) for code in _DIRECTIVES)
    replaced = "".join(f" | replace('{code}', {_write_literal(value)})" for code, value in values if value != code)
    return f"{{%- macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}"


def _write_literal(value: object) -> str:
    """Write a value of a recipe in Jinja."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value).items()
        return "{" + ", ".join(f"{_write_literal(str(key))}: {_write_literal(inner)}" for key, inner in entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_write_literal(inner) for inner in cast("list[object]", value)) + "]"
    return json.dumps(value, ensure_ascii=False)
