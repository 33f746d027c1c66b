"""Every command's help, and whatever reads, at 80 columns: on a terminal no line is longer, in a pipe nothing steers a terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from pipeline.cli import app

COMMANDS = [command.name for command in app.registered_commands]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What each command that reads is asked of a store with an evaluation; all take --json.
READS = [
    ["ls"],
    ["ls", "ppo"],
    ["runs"],
    ["show", "evaluation"],
    ["show", "ppo", "--all"],
    ["lineage", "evaluation"],
    ["diff", "sft", "ppo"],
    ["samples", "evaluation", "--worst"],
    ["report", "evaluation"],
    ["verify"],
    ["doctor"],
    ["gc"],
]


@pytest.fixture
def wide(rlhf_here, monkeypatch):
    """A function: arguments -> the lines that a command shows on a terminal of 80 columns, and how it ended."""

    def wide(*arguments):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        shown = bytearray()

        def read():
            try:
                while chunk := os.read(ours, 65536):
                    shown.extend(chunk)
            except OSError:  # the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        try:
            with monkeypatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
                patch.setenv("TERM", "xterm-256color")
                patch.delenv("COLUMNS", raising=False)
                patch.setattr(sys, "stdout", terminal)
                patch.setattr(sys, "stderr", terminal)
                ended = rlhf_here(*arguments)
                terminal.flush()
        finally:
            reader.join(10)
            os.close(ours)
        return ESCAPES.sub("", shown.decode()).replace("\r", "").split("\n"), ended.returncode

    return wide


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_fits_80_columns_in_a_pipe(rlhf_here, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    done = rlhf_here(command, "--help")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert "Example" in done.stdout or command == "tag"  # the same as alias
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_what_reads_fits_a_terminal_of_80_columns_and_a_pipe_gets_no_escapes_and_json(rlhf_here, wide, evaluated, arguments):
    check(rlhf_here, wide, arguments)


def test_so_does_a_plan(rlhf_here, wide, recipe_path):
    check(rlhf_here, wide, ["plan", str(recipe_path)])


def check(rlhf_here, wide, arguments):
    lines, code = wide(*arguments)
    assert code == 0 and len(lines) > 1
    # A path or a content id is never broken: whoever copies it gets all of it.
    assert [line for line in lines if len(line) > 80 and not any(len(word) > 40 for word in line.split())] == []
    piped = rlhf_here(*arguments)
    assert piped.returncode == 0 and piped.stdout.strip() and "\x1b" not in piped.stdout + piped.stderr
    told = rlhf_here(*arguments, "--json")
    assert told.returncode == 0 and "\x1b" not in told.stdout
    json.loads(told.stdout)
