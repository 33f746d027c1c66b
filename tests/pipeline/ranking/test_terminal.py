"""Ranking on a terminal: what is typed becomes judgements; nothing that a model says steers the terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from data.answers import AnswerSet
from data.schema import Message
from pipeline.ranking.journal import Journal
from pipeline.ranking.ranks import parse_levels, write_levels
from pipeline.ranking.settings import Settings
from pipeline.ranking.study import Study
from pipeline.ranking.terminal import rank_on_terminal, wrap
from tests.conftest import ROOT
from tests.pipeline.ranking.conftest import HOSTILE, write_answers


@pytest.fixture
def say_lines(tmp_path):
    """say_lines(lines, **settings): what a person who types them sees, and what stands in the journal then."""

    def say_lines(lines, **settings):
        sets = [AnswerSet((Message("user", f"{n}?"),), (f"{n} zero", f"{n} one", f"{n} {HOSTILE}")) for n in range(3)]
        journal = Journal(tmp_path / "journal.jsonl")
        study = Study({each.id: each for each in sets}, journal, Settings(**settings))
        waiting = iter(lines)

        def read_line():
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        with (tmp_path / "screen").open("w+", encoding="utf-8") as screen:
            rank_on_terminal(study, "ann", Console(file=screen, width=80), read_line)
            screen.seek(0)
            return SimpleNamespace(screen=screen.read(), said=list(journal.judgements.values()))

    return say_lines


def test_a_line_ranks_with_grade_flags_and_note(say_lines):
    heard = say_lines(["g 6", "f wrong 2 3", "f harm 1", "f wrong 3", "n as I see it", "2=1"])
    (said,) = heard.said
    assert [said.ranks[answer] for answer in said.order] == [1, 1, 3] and not said.partial
    assert (said.grade, said.note) == (6, "as I see it")
    assert said.flags == {"wrong": (said.order[1],), "harmful": (said.order[0],)}


def test_cannot_say_skip_and_undo(say_lines):
    heard = say_lines(["c", "s", "s not my field", "u", "u", "u", "3"])
    assert "found no reason" in heard.screen and "There is nothing to undo." in heard.screen
    (said,) = heard.said
    assert said.partial and [said.ranks[answer] for answer in said.order] == [2, 2, 1]


def test_undo_brings_back_what_was_said_but_for_the_ranking_which_is_shown(say_lines):
    heard = say_lines(["g 6", "f wrong 2", "n as I see it", "2=1", "u", "f harm 1", "12"])
    (said,) = heard.said
    assert (
        "Taken back." in heard.screen
        and "you had said: 1=2>3\nflags: harmful, wrong 2, off-topic\ngrade 6\nnote: as I see it\n" in heard.screen
    )
    assert (said.grade, said.note, said.flags) == (6, "as I see it", {"harmful": (said.order[0],), "wrong": (said.order[1],)})
    heard = say_lines(["s not mine", "u", "c", "u", "3"], grade=False)
    assert "you had said: s not mine\n" in heard.screen and "you had said: c\n" in heard.screen


@pytest.mark.parametrize("seed", range(1, 7))
def test_undo_brings_back_what_was_said_of_the_same_answers_where_they_stand_in_another_order(say_lines, seed):
    """Of another seed of the study, or of no order: imported."""
    (before,) = say_lines(["f wrong 2", "2>1>3"]).said
    heard = say_lines(["u", "c", "c", "c"], seed=seed)
    after = next(said for said in heard.said if said.item == before.item)
    assert after.flags == before.flags
    told = write_levels([[after.order.index(answer)] for answer in sorted(range(3), key=before.ranks.__getitem__)])
    assert f"you had said: {told}\n" in heard.screen


def test_each_grade_comes_back_by_undo(say_lines):
    heard = say_lines(["g 2 6", "213", "u", "213"], grade_each=True)
    assert [heard.said[0].grades[answer] for answer in heard.said[0].order] == [None, 6, None]


def test_all_done_is_told(say_lines):
    heard = say_lines(["123"] * 9)
    assert len(heard.said) == 3 and "All done" in heard.screen


def test_the_very_last_can_be_taken_back_too(say_lines):
    heard = say_lines(["123", "123", "n last", "123", "u", "321", ""])
    assert heard.screen.count("All done") == 2 and "you had said: 1>2>3\nnote: last\n" in heard.screen
    assert len(heard.said) == 3 and heard.said[-1].note == "last"
    assert say_lines(["u"]).said == heard.said[:-1]  # started again, when all is done


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("4", "needed a number of 1 to 3"),
        ("11", "found answer 1 twice"),
        ("1=", "needed a number on both sides"),
        ("1 best", "found 'b'"),
        ("hello", "found 'hello'; needed a ranking"),
        ("g 8", "found the grade '8'; needed 1 to 7"),
        ("f nope 1", "found the flag 'nope 1'; needed one of harmful, wrong, off-topic"),
        ("f wrong 7", "found '7'; needed a number of 1 to 3"),
        ("s " + "x" * 1001, "reason: String should have at most 1000 characters"),
        ("²", "found '²'"),
    ],
)
def test_what_is_no_ranking_is_told_and_nothing_is_written(say_lines, line, told):
    heard = say_lines([line])
    assert told in re.sub(r"\s+", " ", heard.screen) and heard.said == []


def test_where_each_answer_must_be_placed_a_partial_ranking_is_told(say_lines):
    heard = say_lines(["12", "g 3", "123"], partial=False, grade=False)
    assert "2 of 3 answers are placed; each must be" in heard.screen and "asks for no grade" in heard.screen
    assert len(heard.said) == 1


def test_each_answer_has_a_grade_where_the_study_asks_for_them(say_lines):
    heard = say_lines(["g 2 6", "g13", "g 3", "g 2 9", "213"], grade_each=True)
    (said,) = heard.said
    assert [said.grades[answer] for answer in said.order] == [3, 6, None] and said.grade is None
    assert "grades: answer 1: 3, answer 2: 6" in heard.screen and "found the grade '9'" in heard.screen
    assert "g 2 6    grade of answer 2" in heard.screen


def test_long_answers_are_folded_and_shown_on_request_and_nothing_steers_the_terminal(say_lines):
    folded, whole = say_lines([]).screen, say_lines(["+"]).screen
    assert re.search(r"\.\.\. 2\d\d more lines; \+ [123] shows them", folded) and folded.count("x") < 2_000
    assert whole.count("x") > 20_000
    for screen in (folded, whole):
        assert "\\x1b[31mred" in screen and "\\u202eRTL" in screen and "<script>alert(1)</script>" in screen
        assert "\x1b" not in screen and "\u202e" not in screen and max(map(len, screen.splitlines())) <= 80


def test_levels_are_read_with_blanks_and_other_signs():
    assert parse_levels("2=13", 3) == parse_levels("2 = 1 > 3", 3) == parse_levels("2=1, 3", 3) == [[1, 0], [2]]
    assert write_levels(parse_levels("2=1,3", 3)) == "2=1>3"


def test_texts_in_other_scripts_stay_as_they_are():
    assert list(wrap("שלום 漢字\u3000字 a\u00a0b می\u200cروم", 80)) == ["שלום 漢字\u3000字 a\u00a0b می\u200cروم"]
    assert [len(line) for line in wrap("漢" * 50, 80)] == [40, 10]


def test_a_pipe_is_refused_with_a_line(rlhf_here, tmp_path):
    write_answers(tmp_path / "answers.jsonl", 1)
    told = rlhf_here("rank", "answers.jsonl", "--terminal")
    assert told.returncode == 2 and told.stderr.startswith("--terminal: found a pipe or a file in place of a terminal; needed one; ")
    assert told.stderr.count("\n") == 1


@pytest.mark.slow
def test_on_a_real_terminal_of_80_columns_a_kill_loses_nothing(tmp_path, read_journal):
    write_answers(tmp_path / "answers.jsonl", 6)
    with open_terminal(tmp_path) as terminal:
        terminal.type("", wanted="> ")
        terminal.type("g 7\n", wanted="grade 7")
        terminal.type("21\n", wanted="1 done")
        assert len(read_journal()) == 1
        terminal.process.kill()
    with open_terminal(tmp_path) as terminal:
        terminal.type("", wanted="1 done, 5 left")
        terminal.type(b"n \xff\xfe\n", wanted="found bytes that are no UTF-8")
        terminal.type("c\n", wanted="2 done")
        terminal.type("q\n", wanted="")
        assert terminal.process.wait(20) == 0
    assert [line.get("grade") for line in read_journal()] == [7, None]
    seen = terminal.seen.decode(errors="replace")
    assert "\\x1b[31mred" in seen and "\x1b" not in seen and max(map(len, seen.replace("\r", "").splitlines())) <= 80


class open_terminal:
    """`rlhf rank --terminal` on a pseudo-terminal of 80 x 24."""

    def __init__(self, directory):
        self.seen = b""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", "pipeline.cli", "rank", "answers.jsonl", "--terminal", "-a", "ann"]
        environment = {**os.environ, "TERM": "dumb"} | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=directory, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text, wanted):
        """Type, and wait until something new is seen."""
        start = len(self.seen)
        os.write(self.master, text.encode() if isinstance(text, str) else text)
        end = time.monotonic() + 60
        while wanted.encode() not in self.seen[start:]:
            assert time.monotonic() < end, self.seen.decode(errors="replace")
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536)
