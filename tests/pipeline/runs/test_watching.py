"""Watching a run that somebody else began."""

import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from pipeline.errors import StoreError
from pipeline.launch.events import EventReader
from pipeline.launch.failure import StageFailed
from pipeline.report.runs import WatchView
from pipeline.runs.directory import open_run_directory
from pipeline.runs.record import record_attempt
from pipeline.runs.watching import Place, advance, find_run, follow, read_exit_code
from stages.events import append_event
from tests.waiting import wait_until

NAME = "ppo-0123456789abcdef"


def progress(step, time, phase="train", **metrics):
    return {"event": "progress", "time": time, "phase": phase, "step": step, "total": 10, "metrics": metrics}


def walk(*events):
    place = Place()
    for event in events:
        place = advance(place, event)
    return place


def test_rate_and_time_left_are_those_of_the_phase_since_this_attempt_began():
    place = walk(progress(1, 0.0), progress(2, 100.0), {"event": "start", "time": 1000.0}, progress(3, 1000.0), progress(5, 1004.0, kl=0.5))
    assert (place.step, place.total, place.figures) == (5, 10, {"kl": 0.5})
    assert place.steps_per_s == pytest.approx(0.5)  # 2 steps in 4 s
    assert place.left_s == pytest.approx(10.0)  # 5 more
    place = advance(place, progress(0, 1010.0, phase="held-out answers"))
    assert (place.phase, place.steps_per_s, place.left_s, place.figures) == ("held-out answers", None, None, {})


def test_a_clock_that_is_set_back_begins_the_rate_anew():
    before = (progress(0, 1000.0), progress(4, 1008.0))
    place = walk(*before, progress(5, 990.0))
    assert (place.step, place.steps_per_s, place.left_s) == (5, None, None)
    assert advance(place, progress(6, 994.0)).left_s == pytest.approx(16.0)  # 4 more, of 4 s each
    inside = walk(*before, progress(5, 1004.0), progress(6, 1006.0))  # still after the phase began: it was told as 1.33 s a step
    assert inside.left_s == pytest.approx(8.0)


def test_what_a_long_step_does_is_told_and_leaves_the_rate_of_whole_steps():
    place = walk(progress(0, 0.0), progress(2, 100.0, kl=0.5), {**progress(2, 140.0), "doing": "minibatches 1/4"})
    assert (place.doing, place.steps_per_s, place.figures) == ("minibatches 1/4", pytest.approx(0.02), {"kl": 0.5})
    assert advance(place, progress(3, 150.0)).doing == ""


@pytest.mark.parametrize(
    "damaged", [{}, {"event": "progress", "time": "x"}, {"event": "progress", "time": 1.0, "step": "3"}, {"time": None}]
)
def test_an_event_that_is_damaged_leaves_it_where_it_was(damaged):
    place = walk(progress(1, 0.0), progress(2, 1.0))
    assert advance(place, damaged) == place


def test_who_watches_is_told_of_notes_warnings_and_errors(capsys):
    row = {"run": NAME, "stage": "ppo", "start": None, "outcome": "running"}
    with WatchView(Console(width=80, highlight=False), row) as view:
        view.show([{"event": name, "message": f"a {name}"} for name in ("note", "warning", "checkpoint", "error")], Place(), row)
    assert capsys.readouterr().out.splitlines()[1:4] == ["ppo: note: a note", "ppo: warning: a warning", "ppo: error: a error"]


def test_a_reader_begins_anew_where_the_file_was_begun_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    append_event(path, "note", message="a long one that was there before")
    reader = EventReader(path, from_start=True)
    assert len(reader.read()) == 1
    path.unlink()
    append_event(path, "note", message="new")
    assert [event["message"] for event in reader.read()] == ["new"]


@pytest.fixture
def begin(store):
    """A run that goes on inside of the block, and ends as the block does."""

    def begin(name=NAME):
        return open_run_directory(store.root, name)

    return begin


def test_the_run_that_is_watched_is_the_one_that_runs_or_the_newest_of_its_stage_or_named(store, begin):
    with pytest.raises(StoreError, match="nothing runs"):
        find_run(store, None)
    for name in ("sft-1111111111111111", "sft-1122222222222222"):
        with begin(name) as held, record_attempt(held.directory) as published:
            published("sft@v1")
    assert find_run(store, "sft")["run"] == "sft-1122222222222222"
    with begin() as held, record_attempt(held.directory):
        assert find_run(store, None)["run"] == NAME
        assert find_run(store, "sft-111")["run"] == "sft-1111111111111111"
        for wanted, code in (("sft-11", 2), ("rm", 4), ("../sft", 4)):
            with pytest.raises(StoreError) as caught:
                find_run(store, wanted)
            assert caught.value.exit_code == code


def test_a_run_that_is_over_is_told_with_its_exit_code(store, begin):
    with pytest.raises(StageFailed), begin() as held, record_attempt(held.directory):
        raise StageFailed("ppo: no more memory", 5, [], held.directory.path / "log.txt")
    ((events, place, row),) = follow(store, NAME)
    assert (events, place.phase, row["outcome"], row["reason"]) == ([], "starting", "failed", "ppo: no more memory")
    assert read_exit_code(row) == 5
    assert read_exit_code({"outcome": "published"}) == 0
    assert read_exit_code({"outcome": "killed", "exit_code": None}) == 1
    assert read_exit_code({"outcome": "stopped", "exit_code": 130}) == 130


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_watching_in_a_pipe_is_a_line_for_each_change_until_the_run_ends(store, begin, tmp_path, as_json):
    command = [sys.executable, "-P", "-m", "pipeline.cli", "watch", "--store", str(store.root), *(["--json"] if as_json else [])]
    output = tmp_path / "output.txt"
    with output.open("w") as stream, pytest.raises(StageFailed), begin() as held, record_attempt(held.directory):
        events = held.directory.path / "events.jsonl"
        append_event(events, "progress", phase="train", step=1, total=10, metrics={"objective/kl": 0.25})
        watcher = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=dict(os.environ))
        wait_until(lambda: "0.25" in output.read_text(), 60)
        append_event(events, "note", message="look here \x1b[31m")
        append_event(events, "progress", phase="train", step=2, total=10, metrics={"objective/kl": 0.5})
        wait_until(lambda: "0.5" in output.read_text(), 60)
        raise StageFailed("ppo: failed here", 7, [], events)
    assert watcher.wait(60) == 7
    told = output.read_text()
    if as_json:
        rows = [json.loads(line) for line in told.splitlines()]
        assert [row["step"] for row in rows if row["outcome"] == "running"][-1] == 2
        assert "look here \x1b[31m" in [message for row in rows for message in row["messages"]]
        assert (rows[-1]["outcome"], rows[-1]["reason"]) == ("failed", "ppo: failed here")
        return
    lines = told.splitlines()
    assert lines[0].startswith(f"{NAME}, process {os.getpid()} on ")
    assert lines[1] == "ppo: 1/10, KL 0.25"
    assert lines[2] == "ppo: note: look here "
    assert lines[3].startswith("ppo: 2/10, ") and lines[3].endswith("left, KL 0.5")
    assert lines[4].startswith("ppo: failed: failed here after ")
    assert len(lines) == 5 and "\x1b" not in told


def test_who_watches_a_stage_that_has_said_nothing_yet_is_told_that_it_starts(store, begin):
    with begin() as held, record_attempt(held.directory):
        events, place, row = next(follow(store, NAME))
        assert (events, place.phase, row["outcome"]) == ([], "starting", "running")
