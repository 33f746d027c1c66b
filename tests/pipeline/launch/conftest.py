"""A stage that is a few lines of Python."""

import sys
import textwrap

import pytest

from pipeline.launch.commands import Command
from pipeline.launch.launch import launch


@pytest.fixture
def run_script(tmp_path):
    """A function: Python source -> launch it; returns (result, events)."""

    def run_script(source):
        events = []
        script = f"import sys, os, time, json, signal\nEVENTS = {str(tmp_path / 'events.jsonl')!r}\n" + textwrap.dedent(source)
        received = launch("sft", lambda _: [Command([sys.executable, "-c", script])], tmp_path, events.append)
        return received, events

    return run_script
