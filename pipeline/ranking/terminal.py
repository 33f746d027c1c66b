"""Ranking on a terminal, for those on ssh: the same study and journal as the page's, a line for each judgement.

Nothing that a model said steers the terminal; long answers are folded, and it is said by how much.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from data.answers import AnswerSet
from pipeline.ranking.assignment import Assignment
from pipeline.ranking.journal import Judgement
from pipeline.ranking.ranks import parse_levels, read_place, write_levels
from pipeline.ranking.study import Study
from pipeline.text import show_controls

_FOLDED_LINES = 16
HELP = """\
213      answer 2 is best, then 1, then 3; what is not named is worse
2=13     2 and 1 are equally good, then 3
g 6      grade of the best answer: 1 (bad) to 7 (as good as can be)
f FLAG 2 mark answer 2, or take the mark away; f alone lists the flags
n TEXT   a note                  + 2      answer 2 in full (+ alone: all of it)
c        cannot say              s WHY    skip, with the reason
u        undo the last           i        the guidelines
?        this help               q        end; nothing is lost"""


@dataclass
class _Draft:
    """What is said of a set before it is sent."""

    flags: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    grade: int | None = None
    grades: dict[int, int | None] = field(default_factory=dict[int, int | None])
    note: str = ""
    was: str = ""  # what was taken back: a ranking, or why there was none
    since: float = field(default_factory=time.monotonic)


def rank_on_terminal(study: Study, annotator: str, console: Console, read_line: Callable[[], str]) -> None:
    """Show set after set and take what the annotator says, until all are done or there is no more to read.

    Args:
        study: What is ranked.
        annotator: By whom.
        console: Where it is shown.
        read_line: Asks for a line. Raises EOFError where there is no more.

    Raises:
        ResourceError: The disk is full.
    """
    each = "g 2 6    grade of answer 2: 1 (bad) to 7 (as good as can be)"
    say(console, HELP if not study.settings.grade_each else re.sub(r"g 6 .*", each, HELP))
    drafts: dict[tuple[str, bool], _Draft] = {}  # one stays until it is sent, whatever is undone meanwhile
    shown: Assignment | None = None
    while True:
        if (assignment := study.next(annotator)) is None:
            say(console, "All done: there is nothing left to rank. What you said is on the disk. u undoes the last; Enter ends.")
            with suppress(EOFError):
                if read_line().strip() == "u" and _undo(study, annotator, console, drafts):
                    shown = None
                    continue
            return
        draft = drafts.setdefault((assignment.item, assignment.repeat), _Draft())
        if assignment != shown:
            draft.since, shown = time.monotonic(), assignment
            _show(console, study, annotator, study.answers[assignment.item], assignment.order)
            _tell_draft(console, study, draft)
        try:
            line = read_line().strip()
        except EOFError:
            return
        if line == "q":
            return
        try:
            if line == "u":
                _undo(study, annotator, console, drafts)
            elif _obey(line, study, annotator, console, assignment, draft):
                del drafts[assignment.item, assignment.repeat]
        except ValueError as error:
            say(console, str(error))


def _obey(line: str, study: Study, annotator: str, console: Console, assignment: Assignment, draft: _Draft) -> bool:
    """Do what a line says; tells whether the draft was sent.

    Raises:
        ValueError: It says nothing that is known.
    """
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    order = assignment.order
    if not line:
        return False
    if line[0] in "123456789":
        return _send(study, annotator, console, assignment, draft, "ranked", levels=parse_levels(line, len(order)))
    if line[0] == "+":
        place = read_place(line[1:].strip(), len(order)) if line[1:].strip() else None
        _show(console, study, annotator, study.answers[assignment.item], order, unfold=True, only=place)
    elif word == "c" and not rest:
        return _send(study, annotator, console, assignment, draft, "cannot say")
    elif word == "s":
        if not rest:
            raise ValueError("found no reason; needed one; write `s` and why")
        return _send(study, annotator, console, assignment, draft, "skipped", reason=rest)
    elif word == "g" or (word[0] == "g" and word[1:].isdecimal()):
        say(console, _grade(word[1:] + rest, study, draft, len(order)))
    elif word == "f":
        say(console, _flag(rest, study, draft, len(order)))
    elif word == "n":
        draft.note = rest
        say(console, f"note: {rest}" if rest else "no note")
    elif word == "i" and not rest:
        say(console, study.settings.guidelines or "There are no guidelines.")
    elif word == "?":
        say(console, HELP)
    else:
        raise ValueError(f"found {line[:40]!r}; needed a ranking such as 2=13, or a letter; ? lists them")
    return False


def _send(
    study: Study,
    annotator: str,
    console: Console,
    assignment: Assignment,
    draft: _Draft,
    outcome: str,
    levels: Sequence[Sequence[int]] = (),
    reason: str = "",
) -> bool:
    sent: dict[str, object] = {"id": secrets.token_hex(16), "item": assignment.item, "order": assignment.order, "repeat": assignment.repeat}
    sent |= {"outcome": outcome, "levels": levels, "reason": reason, "flags": draft.flags, "grade": draft.grade, "note": draft.note}
    sent |= {"grades": draft.grades}
    try:
        judgement = study.read_judgement(annotator, sent | {"seconds": min(time.monotonic() - draft.since, 1e6)})
    except ValidationError as error:
        what = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, what['loc']))}: {what['msg']}; write it anew") from error
    if not study.judge(judgement):
        say(console, "You have judged this set elsewhere meanwhile; what you said there stands.")
    return True


def _undo(study: Study, annotator: str, console: Console, drafts: dict[tuple[str, bool], _Draft]) -> bool:
    """Take the last one back, and keep what was said; tells whether there was one."""
    if (undone := study.undo(annotator)) is not None:
        drafts[undone.item, undone.repeat] = _take_back(undone, study)
    say(console, "There is nothing to undo." if undone is None else "Taken back.")
    return undone is not None


def _take_back(undone: Judgement, study: Study) -> _Draft:
    """Make what was said anew what is said, as far as the study still asks for it."""
    said, settings = study.list_said(undone), study.settings
    was = write_levels(said["levels"]) if said["levels"] else f"s {said['reason']}" if said["reason"] else "c"
    draft = _Draft({flag: places for flag, places in said["flags"].items() if flag in settings.flags}, note=said["note"], was=was)
    if settings.grade_each:
        draft.grades = said["grades"]
    elif settings.grade:
        draft.grade = said["grade"]
    return draft


def _tell_draft(console: Console, study: Study, draft: _Draft) -> None:
    """Say what is said of a set already, where anything is: all but the ranking stays as it is."""
    if draft.was:
        say(console, f"you had said: {draft.was}")
    if any(draft.flags.values()):
        say(console, _list_flags(study, draft))
    if draft.grade:
        say(console, f"grade {draft.grade}")
    if any(draft.grades.values()):
        say(console, _list_grades(draft))
    if draft.note:
        say(console, f"note: {draft.note}")


def _list_grades(draft: _Draft) -> str:
    return "grades: " + (", ".join(f"answer {each + 1}: {grade}" for each, grade in sorted(draft.grades.items()) if grade) or "none")


def _list_flags(study: Study, draft: _Draft) -> str:
    flags = study.settings.flags
    marks = [f"{flag} {' '.join(str(place + 1) for place in sorted(draft.flags.get(flag, ())))}".strip() for flag in flags]
    return "flags: " + (", ".join(marks) or "none")


def _grade(text: str, study: Study, draft: _Draft, count: int) -> str:
    """Take a grade of the best answer, or where the study asks for each one's, of an answer; returns what stands then."""
    if not study.settings.grade and not study.settings.grade_each:
        raise ValueError("this study asks for no grade")
    text = text.replace(" ", "")
    place = read_place(text[:1], count) if study.settings.grade_each else None
    text = text if place is None else text[1:]
    if text not in ("", "-", *"1234567"):
        raise ValueError(f"found the grade {text[:40]!r}; needed 1 to 7; write it so")
    grade = int(text) if text.isdecimal() else None
    if place is None:
        draft.grade = grade
        return f"grade {grade or 'none'}"
    draft.grades[place] = grade
    return _list_grades(draft)


def _flag(text: str, study: Study, draft: _Draft, count: int) -> str:
    """Mark answers, or take marks away; returns what stands then."""
    flags = study.settings.flags
    if text:
        name = next((flag for flag in sorted(flags, key=len, reverse=True) if text == flag or text.startswith(flag + " ")), None)
        known = [flag for flag in flags if flag.startswith(text.split()[0])]
        if name is None and len(known) == 1:  # the beginning of its name will do
            name, text = known[0], known[0] + text[len(text.split()[0]) :]
        if name is None:
            raise ValueError(f"found the flag {text[:40]!r}; needed one of {', '.join(flags) or 'none'}; write it so")
        for char in text[len(name) :].replace(",", " ").split():
            place, marked = read_place(char, count), draft.flags.setdefault(name, [])
            marked.remove(place) if place in marked else marked.append(place)
    return _list_flags(study, draft)


def _show(
    console: Console,
    study: Study,
    annotator: str,
    answers: AnswerSet,
    order: Sequence[int],
    *,
    unfold: bool = False,
    only: int | None = None,
) -> None:
    """Show a prompt and its answers, or one answer."""
    if only is None:
        progress = study.progress(annotator)
        say(console, f"\n{annotator}: {progress.done} done, {progress.left} left")
        for message in answers.prompt:
            _show_text(console, message.role, message.content, "+", unfold=unfold)
    for place, answer in enumerate(order):
        if only in (None, place):
            _show_text(console, str(place + 1), answers.completions[answer], f"+ {place + 1}", unfold=unfold)


def _show_text(console: Console, title: str, text: str, command: str, *, unfold: bool) -> None:
    say(console, f"--- {title} ".ljust(min(console.width, 60), "-"))
    # Indented: no answer can be taken for a heading of ours.
    lines = [f"  {line}" for line in wrap(text if text.strip() else "(nothing)", console.width - 2)]
    shown = lines if unfold or len(lines) <= _FOLDED_LINES + 1 else lines[:_FOLDED_LINES]
    for line in shown:
        _print(console, line)
    if len(shown) < len(lines):
        say(console, f"... {len(lines) - len(shown):,} more lines; {command} shows them")


def wrap(text: str, width: int) -> Iterator[str]:
    """Break a text into lines of at most so many cells; what could steer a terminal is shown by its code."""
    console = Console(width=width)
    for line in show_controls(text).split("\n"):
        yield from (part.plain for part in Text(line).wrap(console, width, overflow="fold", tab_size=4))


def say(console: Console, text: str) -> None:
    """Print lines of our own, in which other people's words may stand."""
    for line in wrap(text, console.width):
        _print(console, line)


def _print(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True, highlight=False)
