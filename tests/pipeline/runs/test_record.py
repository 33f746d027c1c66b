"""`run.json` and `rlhf runs`: who ran what, when, and how it ended."""

import errno
import io
import os
import sys
from contextlib import ExitStack

import pytest
from rich.console import Console

from pipeline.launch.failure import StageFailed
from pipeline.report.runs import print_runs
from pipeline.runs.listing import list_runs
from pipeline.runs.record import read_record, record_attempt
from pipeline.store.directory import open_root
from pipeline.store.disk import take_lock
from pipeline.store.store import Store


@pytest.fixture
def run_dir(tmp_path):
    """A run's directory in a store, open."""
    (tmp_path / "store/runs/sft-0123456789abcdef").mkdir(parents=True)
    with open_root(tmp_path / "store") as store, store.enter("runs/sft-0123456789abcdef") as directory:
        yield directory


def show(rows, **console):
    out = io.StringIO()
    print_runs(Console(file=out, highlight=False, **console), rows, "store")
    return out.getvalue().splitlines()


@pytest.mark.slow
def test_a_run_leaves_who_made_what_with_which_command(finished_run):
    rows = list_runs(Store(finished_run.store))
    assert [(row["stage"], row["outcome"], row["ref"], row["attempts"]) for row in rows] == [
        (stage, "published", f"{stage}@v1", 1) for stage in ("ppo", "rm", "sft")
    ]
    assert all(row["command"].endswith(f"run {finished_run.recipe_path} --store {finished_run.store}") for row in rows)
    assert all(row["duration_s"] > 0 and row["end"] > row["start"] and row["host"] and row["user"] for row in rows)


@pytest.mark.parametrize(
    ("error", "outcome", "reason", "code"),
    [
        (StageFailed("sft: the loss is nan", 1, [], None), "failed", "sft: the loss is nan", 1),
        (StageFailed("sft: stopped by SIGTERM", 143, [], None), "stopped", "sft: stopped by SIGTERM", 143),
        (SystemExit(130), "stopped", "by SIGINT", 130),
        (RuntimeError("a\nbug \x1b[2J in hf_abcdefghijklmnopqrstuvwx"), "failed", "RuntimeError: a bug  in ***", 1),
    ],
)
def test_each_end_of_an_attempt_is_written_and_told(run_dir, tmp_path, error, outcome, reason, code):
    with pytest.raises(type(error)), record_attempt(run_dir):
        assert read_record(run_dir).last.outcome == "running"
        raise error
    last = read_record(run_dir).last
    assert (last.outcome, last.reason, last.exit_code) == (outcome, reason, code)
    (row,) = list_runs(Store(tmp_path / "store"))
    assert show([row])[1].endswith(f"{outcome}: {reason.removeprefix('sft: ')}")


@pytest.mark.parametrize(("reason", "outcome"), [("the disk is full", "failed"), ("x" * 15_000, "running")])
def test_on_a_full_disk_the_end_is_written_where_the_beginning_stands_if_it_fits(run_dir, monkeypatch, reason, outcome):
    def refuse(*_arguments, **_fields):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StageFailed), record_attempt(run_dir):
        monkeypatch.setattr("pipeline.runs.record.replace_durably", refuse)
        raise StageFailed(f"sft: {reason}", 5, [], None)
    last = read_record(run_dir).last
    assert (last.outcome, last.reason) == (outcome, f"sft: {reason}" if outcome == "failed" else "")


def test_the_command_line_keeps_no_secret(run_dir, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "swordfish-4711-swordfish")
    monkeypatch.setattr(sys, "argv", ["rlhf", "run", "a b", "--set", "x=swordfish-4711-swordfish", "hf_abcdefghijklmnopqrstuvwx"])
    with record_attempt(run_dir) as published:
        published("sft@v3")
    assert read_record(run_dir).last.command == "rlhf run 'a b' --set x=*** ***"
    assert read_record(run_dir).last.ref == "sft@v3"


def test_an_attempt_that_was_killed_is_told_and_counted(run_dir, tmp_path, publish):
    store = Store(tmp_path / "store")
    with pytest.raises(StageFailed), record_attempt(run_dir):
        killed = (run_dir.path / "run.json").read_bytes()  # as kill -9 leaves it
        raise StageFailed("sft: bad", 1, [], None)
    (run_dir.path / "run.json").write_bytes(killed)
    (run_dir.path / "checkpoints/checkpoint-12").mkdir(parents=True)
    (run_dir.path / "checkpoints/checkpoint-12/COMPLETE.json").write_text("{}")
    assert show(list_runs(store))[1].endswith("killed, goes on from 12")
    lock = take_lock("lock", wait=False, dir_fd=run_dir.fd)
    (row,) = list_runs(store)
    assert row["outcome"] == "running"
    assert row["duration_s"] < 60
    os.close(lock)
    with record_attempt(run_dir) as published:
        published("sft@v1")
    record = read_record(run_dir)
    assert [attempt.outcome for attempt in record.attempts] == ["killed", "published"]
    assert record.began == 2


def test_a_run_that_began_later_than_it_is_now_has_no_time(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runs.record._now", lambda: "2999-01-01T00:00:00.000+00:00")  # the clock was set back since
    with record_attempt(run_dir):
        lock = take_lock("lock", wait=False, dir_fd=run_dir.fd)
        (row,) = list_runs(Store(tmp_path / "store"))
        os.close(lock)
    assert (row["outcome"], row["duration_s"]) == ("running", None)
    assert show([row])[1].startswith("sft-0123456789abcdef  2999-01-01 00:00           running, process ")


def test_a_run_that_was_killed_after_publishing_is_told_as_published(run_dir, tmp_path, publish):
    store = Store(tmp_path / "store")
    with record_attempt(run_dir):
        killed = (run_dir.path / "run.json").read_bytes()
        publish(store, run_id="sft-0123456789abcdef")
    (run_dir.path / "run.json").write_bytes(killed)
    assert show(list_runs(store))[1].endswith("published sft@v1: killed after that")


def test_so_is_one_whose_artifact_has_another_name_than_its_stage(tmp_path, publish):
    store, name = Store(tmp_path / "store"), "evaluate-0123456789abcdef"
    (store.root / "runs" / name).mkdir(parents=True)
    with open_root(store.root) as root, root.enter(f"runs/{name}") as run_dir, record_attempt(run_dir):
        killed = (run_dir.path / "run.json").read_bytes()
        publish(store, "evaluation", {"evaluation.json": b"{}"}, run_id=name)
    (store.root / "runs" / name / "run.json").write_bytes(killed)
    assert [(row["outcome"], row["ref"]) for row in list_runs(store)] == [("published", "evaluation@v1")]


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b'{"began": 1, "attempts": []}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_told_and_no_obstacle(run_dir, tmp_path, content):
    (run_dir.path / "run.json").write_bytes(content)
    (row,) = list_runs(Store(tmp_path / "store"))
    assert row["outcome"] == "not known"
    assert row["reason"].startswith("run.json: ")
    with record_attempt(run_dir) as published:
        published("sft@v1")
    assert list_runs(Store(tmp_path / "store"))[0]["outcome"] == "published"


def test_runs_are_listed_newest_first_and_one_a_line(tmp_path):
    store = Store(tmp_path / "store")
    for number, stage in enumerate(("sft", "pretrain", "ppo")):
        (tmp_path / f"store/runs/{stage}-{number:016x}").mkdir(parents=True)
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(StageFailed))
            directory = stack.enter_context(stack.enter_context(open_root(store.root)).enter(f"runs/{stage}-{number:016x}"))
            stack.enter_context(record_attempt(directory))
            raise StageFailed(f"{stage}: {'日本 long ' * 30}", 1, [], None)
    (tmp_path / "store/runs/other").mkdir()
    (tmp_path / "store/runs/rm-0123456789abcdef").symlink_to(tmp_path)
    rows = list_runs(store)
    assert [row["stage"] for row in rows] == ["ppo", "pretrain", "sft"]
    narrow = show(rows, force_terminal=True, width=80, color_system=None)
    assert len(narrow) == 4
    assert all(line.endswith("…") for line in narrow[1:])
    whole = show(rows, width=200)
    assert len(whole) == 4
    assert whole[1].count("long") == 30


def test_a_store_without_runs_says_so(tmp_path):
    assert show(list_runs(Store(tmp_path / "nothing"))) == ["no runs in store; `rlhf run` begins some"]
