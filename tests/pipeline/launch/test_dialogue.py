"""A program that runs to its end, and what is heard of it meanwhile."""

import subprocess

from pytest import fixture, raises

from pipeline.launch import dialogue
from pipeline.launch.dialogue import run_program


@fixture
def program(tmp_path, monkeypatch):
    """A module that prints two lines, and part of a third one, and ends when it has been told to or after a minute."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('one')\nprint('two')\nprint('thr', end='', flush=True)\n"
        "time.sleep(float(sys.argv[1]))\nprint('ee', sys.stdin.read())\nsys.exit(3)\n"
    )
    environment = dialogue.stage_environment("", offline=True)[0] | {"PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(dialogue, "stage_environment", lambda *_, **__: (environment, None))
    return "slow"


def test_whole_lines_are_heard_while_a_program_runs_and_all_it_printed_in_the_end(program):
    heard: list[str] = []
    done = run_program(program, "2.5", offline=True, asked="to say", told=heard.append)
    assert heard[-1] == "two"
    assert (done.returncode, done.stdout) == (3, "one\ntwo\nthree to say\n")


def test_one_that_takes_too_long_is_ended(program):
    with raises(subprocess.TimeoutExpired):
        run_program(program, "60", offline=True, limit_s=1.5)
