"""A judge of the user's: what it may return, and every way in which it can fail, on one line that names it."""

import sys

import pytest

from stages.process.errors import StageError
from stages.responses.judge import Judge, JudgeError, load_judge


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function: source -> a judge's module in a directory of its own; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(source, name):
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)
        return tmp_path

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("answer", "figures"),
    [
        ({"score": 1, "polite": True}, {"score": 1.0, "polite": 1.0}),
        (0.25, {"score": 0.25}),
        (True, {"score": 1.0}),
    ],
)
def test_figures_or_one_number_are_read(answer, figures):
    assert Judge("mine:judge", lambda *_: answer).ask("prompt", "response", True) == figures


@pytest.mark.parametrize(
    "answer",
    [None, "good", {"score": "good"}, {"score": "0.5"}, {"polite": 1.0}, {}, [1.0], {"score": float("nan")}, {1: 2.0, "score": 1.0}],
)
def test_what_is_no_figures_is_told_with_what_was_returned(answer):
    with pytest.raises(JudgeError, match=r"^judge: mine:judge returned .*, needed finite figures with `score` among them") as caught:
        Judge("mine:judge", lambda *_: answer).ask("prompt", "response", True)
    assert repr(answer) in str(caught.value)


def test_a_judge_that_returns_other_figures_than_before_is_told():
    judge = Judge("mine:judge", lambda prompt, *_: {"score": 1.0, prompt: 1.0})
    judge.ask("polite", "", True)
    with pytest.raises(JudgeError, match="returned score, rude, needed score, polite as before"):
        judge.ask("rude", "", True)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise KeyError('gold answer')", r"raised KeyError: 'gold answer' \(raises.py:2\)"),
        ("raise ValueError('two\\nlines')", r"raised ValueError: two lines \(raises.py:2\)"),
        ("import sys; sys.exit(3)", r"raised SystemExit: 3 \(raises.py:2\)"),
        ("return prompt[99]", r"raised IndexError"),
    ],
)
def test_a_judge_that_raises_is_named_with_its_line(module, body, told):
    directory = module(f"def judge(prompt, response, finished):\n    {body}\n", "raises")
    with pytest.raises(JudgeError, match=f"^judge: raises:judge {told}.*; mend it, or leave judge out of the recipe$"):
        load_judge("raises:judge", directory).ask("prompt", "response", True)


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        ("import not_installed_here", "lacks", "it needs not_installed_here, which is not installed"),
        ("1 / 0", "divides", r"its module raised ZeroDivisionError: division by zero \(divides.py:1\); mend it"),
        ("def judge(", "unfinished", "its module raised SyntaxError: "),
        ("raise SystemExit", "leaves", "its module raised SystemExit"),
        ("other = 3", "empty", "found no function judge in .*empty.py"),
        ("judge = 3", "number", "found no function judge in .*number.py"),
        (
            "",
            "json",
            "found no function judge in .*json/__init__.py; give module:function, in a module that is not called as an installed one",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_told(module, source, name, told):
    directory = module(source, name) if name != "json" else None
    with pytest.raises(StageError, match=f"^judge: {name}:judge: {told}") as caught:
        load_judge(f"{name}:judge", directory)
    assert caught.value.exit_code == 2


def test_a_module_that_is_nowhere_is_told_with_where_it_may_lie(tmp_path):
    with pytest.raises(StageError, match=rf"found no module nowhere installed, on PYTHONPATH or in {tmp_path}; put it there"):
        load_judge("nowhere:judge", tmp_path)


def test_a_module_beside_the_recipe_is_found_and_shadows_nothing(module):
    directory = module("raise ValueError('not this one')", "colorsys")
    module("import colorsys\ndef judge(*_): return 1.0", "beside")
    assert load_judge("beside:judge", directory).ask("", "", True) == {"score": 1.0}


@pytest.mark.parametrize("name", ["data.mine:judge", "stages.mine.deep:judge", "pipeline.mine:judge"])
def test_a_package_of_ones_own_with_a_name_of_ours_is_told(tmp_path, name):
    package = name.partition(".")[0]
    (tmp_path / package).mkdir()
    (tmp_path / package / "mine.py").write_text("def judge(prompt, response, finished):\n    return 1.0\n")
    with pytest.raises(StageError, match=rf"in {package}, which is a package of rlhf; needed another name .*; rename it"):
        load_judge(name, tmp_path)
