"""The value `demo`: where it lies, and that it is made once and whole."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.demo import DEMO_VERSION
from pipeline.inputs.demo import demo_directory, demo_seeds, locate, make_demo
from pipeline.recipe.load import load_recipe


@pytest.fixture
def quick_demo(monkeypatch):
    """A demo that is written in no time, to count and to disturb."""
    calls = []

    def write(directory, seed):
        calls.append(seed)
        (Path(directory) / "base").mkdir(parents=True)
        (Path(directory) / "prompts.train.jsonl").write_text("{}")
        if seed == 13:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.demo.materialize.write_demo", write)
    return calls


def test_demo_values_become_paths(tmp_path):
    assert locate("demo", tmp_path) == f"{tmp_path}/demo/7-v{DEMO_VERSION}/base"
    assert locate("demo@101:prompts.eval", tmp_path) == f"{tmp_path}/demo/101-v{DEMO_VERSION}/prompts.eval.jsonl"
    for other in ("demo2", "demos", "org/demo", "demo@x", "demo:secrets.train", "/data/demo"):
        assert locate(other, tmp_path) == other


def test_a_recipe_may_mix_demos(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x\nbase_model: demo\ndata: {demonstrations: demo@1, comparisons: demo@2, prompts: demo}\n")
    assert demo_seeds(load_recipe(tmp_path / "recipe.yaml")) == {7, 1, 2}


def test_a_demo_is_made_once(tmp_path, quick_demo):
    first = make_demo(tmp_path, 7)
    assert make_demo(tmp_path, 7) == first == demo_directory(tmp_path, 7)
    assert quick_demo == [7]


def test_many_at_once_do_no_harm(tmp_path, quick_demo):
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: make_demo(tmp_path, 7), range(16)))
    assert made == {demo_directory(tmp_path, 7)}
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [f"7-v{DEMO_VERSION}"]


def test_a_draft_that_vanishes_while_it_is_looked_at_does_no_harm(tmp_path, quick_demo):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".draft-of-another").symlink_to("gone")
    assert make_demo(tmp_path, 7).is_dir()


def test_a_demo_that_could_not_be_written_is_not_there(tmp_path, quick_demo):
    from pipeline.errors import ResourceError

    with pytest.raises(ResourceError) as caught:
        make_demo(tmp_path, 13)
    assert caught.value.exit_code == 5
    assert list((tmp_path / "demo").iterdir()) == []


def test_what_a_killed_generation_left_is_removed_later(tmp_path, quick_demo):
    old, young = tmp_path / "demo" / ".draft-old", tmp_path / "demo" / ".draft-young"
    for draft in (old, young):
        draft.mkdir(parents=True)
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    make_demo(tmp_path, 5)
    assert not old.exists() and young.exists()  # the young one may be another process's, at work
