"""A page that is served, as people have it: by the command, in a process of its own."""

import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.ranking.journal import Journal

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> \u202eRTL\u202c \x1b[31mred " + "x" * 20_000


def write_answers(path, count):
    """Sets of three answers, of which the second has code and the third is hostile."""
    rows = [
        {"prompt": f"Question {n}? {HOSTILE[:200]}", "completions": [f"{n} plain", f"{n} code:\n```py\nx = 1\n```\nso", f"{n} {HOSTILE}"]}
        | {"models": ["hidden-model"] * 3, "arm": "hidden-arm"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def serve(tmp_path):
    """serve(count, *options): starts `rlhf rank`; again, it goes on with the same journal."""
    started = []

    def serve(count=8, *options):
        answers = tmp_path / "answers.jsonl"
        if not answers.exists():
            write_answers(answers, count)
        command = [sys.executable, "-u", "-m", "pipeline.cli", "rank", str(answers), "-a", "ann", "-a", "ben", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        links, line = {}, " "
        while line and "Ctrl-C" not in line:
            line = process.stdout.readline()
            if match := re.match(r"(\w+): .*: (http\S+)", line):
                links[match[1]] = match[2]
        assert set(links) == {"ann", "ben"}
        return SimpleNamespace(process=process, links=links, port=links["ann"].split(":")[2].split("/")[0], answers=answers)

    yield serve
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def read_journal(tmp_path):
    """read_journal(): the lines that stand on the disk."""

    def read_journal():
        path = tmp_path / "answers.rankings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read_journal


@pytest.fixture
def bring_in(rlhf_here, tmp_path):
    """bring_in(content, *options, name): what the command said of a file with it, the answer sets and the judgements that stand then."""

    def bring_in(content, *options, name="export.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
        told = rlhf_here("rankings", "answers.jsonl", "--import", name, *options)
        path, journal = tmp_path / "answers.jsonl", tmp_path / "answers.rankings.jsonl"
        sets = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        said = list(Journal(journal).judgements.values()) if journal.exists() else []
        return SimpleNamespace(told=told, sets=sets, said=said, out=told.stdout, error=told.stderr)

    return bring_in
