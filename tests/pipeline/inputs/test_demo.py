"""The value `demo`: where it lies, and that it is made once and whole."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.demo import DEMO_VERSION
from data.system.drafts import make_draft
from pipeline.errors import StoreError
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
        (Path(directory) / "base" / "model.safetensors").touch(0o600)  # as the library writes it
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


def test_f11_a_demo_may_be_read_by_whom_the_umask_lets(tmp_path, quick_demo):
    before = os.umask(0o022)
    try:
        directory = make_demo(tmp_path, 7)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in directory.rglob("*") if path.is_file()} == {"0o644"}
    assert directory.stat().st_mode & 0o777 == 0o755


def test_many_at_once_do_no_harm(tmp_path, quick_demo):
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: make_demo(tmp_path, 7), range(16)))
    assert made == {demo_directory(tmp_path, 7)}
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [f"7-v{DEMO_VERSION}"]


def test_a_draft_that_vanishes_while_it_is_looked_at_does_no_harm(tmp_path, quick_demo):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".draft-another0").symlink_to("gone")
    assert make_demo(tmp_path, 7).is_dir()


def test_a_demo_that_could_not_be_written_is_not_there(tmp_path, quick_demo):
    from pipeline.errors import ResourceError

    with pytest.raises(ResourceError) as caught:
        make_demo(tmp_path, 13)
    assert caught.value.exit_code == 5
    assert list((tmp_path / "demo").iterdir()) == []


def test_what_a_killed_generation_left_is_removed_later(tmp_path, quick_demo):
    old, young = tmp_path / "demo" / ".draft-00000old", tmp_path / "demo" / ".draft-000young"
    for draft in (old, young):
        draft.mkdir(parents=True)
    (tmp_path / "demo" / ".draft-mine").mkdir()
    two_hours_ago = time.time() - 7200
    for path in (tmp_path / "demo").iterdir():
        if path != young:
            os.utime(path, (two_hours_ago, two_hours_ago))
    make_demo(tmp_path, 5)
    assert not old.exists() and young.exists()  # the young one may be another process's, at work
    assert (tmp_path / "demo" / ".draft-mine").exists()  # not named by us


def test_f7_a_draft_that_its_maker_still_locks_is_left_alone_however_old(tmp_path):
    with make_draft(tmp_path / "x", stale_s=0) as draft:
        os.utime(draft, (1, 1))
        with make_draft(tmp_path / "x", stale_s=0):
            assert draft.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["flip", "shorten", "remove", "add", "link", "hashes"])
def test_f6_a_demo_that_was_changed_is_refused_with_the_file_and_left_as_it_is(tmp_path, quick_demo, how):
    directory = make_demo(tmp_path, 7)
    file = directory / "prompts.train.jsonl"
    if how in ("flip", "shorten"):
        file.write_text("{]" if how == "flip" else "{")
    elif how == "remove":
        file.unlink()
    elif how == "add":
        file = directory / "base" / "more.json"
        file.write_text("")
    elif how == "link":
        (tmp_path / "same").write_text("{}")
        file.unlink()
        file.symlink_to(tmp_path / "same")
    else:
        file = directory / "made.json"
        file.write_text('{"prompts.train.jsonl": null}')
    for _ in range(2):
        with pytest.raises(StoreError, match=f"^{file}: .*; remove {directory} to have it made again") as refusal:
            make_demo(tmp_path, 7)
        assert refusal.value.exit_code == 3
    assert quick_demo == [7]


def test_f6_a_demo_from_before_hashes_were_kept_gets_them_where_it_is_as_it_was_made(tmp_path, quick_demo):
    directory = make_demo(tmp_path, 7)
    (directory / "made.json").unlink()
    made = directory.stat().st_ino
    assert make_demo(tmp_path, 7, may_write=False) == directory and not (directory / "made.json").exists()
    assert make_demo(tmp_path, 7) == directory and (directory / "made.json").exists()
    assert quick_demo == [7, 7] and directory.stat().st_ino == made
    (directory / "made.json").unlink()
    (directory / "prompts.train.jsonl").write_text("{]")
    with pytest.raises(StoreError, match="jsonl: found"):
        make_demo(tmp_path, 7)
