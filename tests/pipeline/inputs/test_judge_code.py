"""A judge's code is a part of what is reused: its module, and what that imports beside it."""

import pytest

from pipeline.inputs.judge_code import identify_judge

FILES = {
    "graders/__init__.py": "",
    "graders/strict.py": "import json, torch\nfrom . import words\nfrom .deep import rules\nimport helper\n",
    "graders/words.py": "WORDS = 1\n",
    "graders/deep/rules.py": "def late():\n    from .. import lazy\n",
    "graders/lazy.py": "",
    "helper.py": "import graders.cycle\n",
    "graders/cycle.py": "import helper\n",
}


@pytest.fixture
def write(tmp_path):
    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def test_a_judge_counts_with_all_that_it_imports_beside_it_and_nothing_else(write, tmp_path):
    write(FILES | {"unread.py": "", "graders/unread.py": ""})
    judge, known = "graders.strict:judge", set()
    for name in [None, *FILES]:
        if name:
            write({name: FILES[name] + "# changed\n"})
        known.add(identify_judge(judge, str(tmp_path)))
    assert len(known) == 1 + len(FILES) and None not in known
    write({"unread.py": "1", "graders/unread.py": "1"})
    assert identify_judge(judge, str(tmp_path)) in known


def test_files_that_it_names_count_and_their_place_does_not(write, tmp_path):
    code = """import importlib, os
from pathlib import Path
HERE = Path(__file__).parent
RULES = open(HERE / "rules.txt").read()
WORDS = (Path(__file__).parent / "lists" / "words.txt").read_text()
MORE = open(os.path.join(os.path.dirname(__file__), "lists", "more.json"))
ELSEWHERE = open("ELSEWHERE")
late = importlib.import_module("late")
"""
    outside = tmp_path / "outside.txt"
    files = {"judge.py": code.replace('ELSEWHERE"', f'{outside}"'), "rules.txt": "r", "lists/words.txt": "w", "lists/more.json": "{}"}
    files |= {"late.py": "", "lists/unread.txt": "", "outside.txt": "o"}
    known = []
    for name in [None, *files]:
        write({f"a/{path}" if path != "outside.txt" else path: text + "\n" * (path == name) for path, text in files.items()})
        known.append(identify_judge("judge:score", str(tmp_path / "a")))
    changed = [name for name, key in zip(files, known[1:], strict=True) if key != known[0]]
    assert changed == ["judge.py", "rules.txt", "lists/words.txt", "lists/more.json", "late.py", "outside.txt"]
    write({f"b/{path}": text for path, text in files.items()} | {"outside.txt": "o"})
    assert identify_judge("judge:score", str(tmp_path / "b")) == known[0]


def test_what_it_writes_does_not_count_as_each_run_would_change_it(write, tmp_path):
    code = """import logging, sqlite3
from pathlib import Path
HERE = Path(__file__).parent
LOG = HERE / "log.txt"
CACHE = sqlite3.connect(HERE / "cache.db")
logging.FileHandler("all.log")
def score(prompt, response):
    open(LOG, "a").write(prompt)
    with open(file="asked", mode="w") as asked, (HERE / "more").open("ab"):
        (HERE / "last").write_text(response)
    return len(open("words", "r").read())
"""
    known = {}
    for name in (None, "log.txt", "cache.db", "all.log", "asked", "more", "last", "words"):
        write({"judge.py": code, "words": "w"} | ({name: "changed"} if name else {}))
        known[name] = identify_judge("judge:score", str(tmp_path))
    assert [name for name in known if known[name] != known[None]] == ["words"]


def test_it_is_read_and_never_run(write, tmp_path):
    write({"judgement.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n", "broken.py": "def (:\n"})
    assert identify_judge("judgement:judge", str(tmp_path)) != identify_judge("broken:judge", str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_judge_of_ours_counts_by_the_stages_versions_and_one_that_is_not_there_not_at_all(tmp_path):
    assert [identify_judge(name, str(tmp_path)) for name in ("data.demo.rule:judge", "nowhere:judge")] == [None, None]


def test_a_judge_on_pythonpath_goes_before_one_in_the_directory_as_in_the_stage(write, tmp_path, monkeypatch):
    write({"one/verdict.py": "1", "two/verdict.py": "2"})
    alone = identify_judge("verdict:judge", str(tmp_path / "one"))
    assert identify_judge("verdict:judge", str(tmp_path / "two")) != alone
    monkeypatch.syspath_prepend(tmp_path / "one")
    monkeypatch.syspath_prepend(tmp_path / "scripts")  # where the program itself lies, which stages do not search
    assert identify_judge("verdict:judge", str(tmp_path / "two")) == alone
