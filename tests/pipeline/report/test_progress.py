"""A run as it is shown: what each phase of a stage is and how far, on a terminal and in a pipe."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.report import progress
from pipeline.report.progress import ProgressView
from pipeline.terminal import ReaderGone


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the view sees; a test moves them."""
    clock = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.s))
    return clock


def watch(*, terminal, tmp_path):
    stream = io.StringIO()
    view = ProgressView(Console(file=stream, force_terminal=terminal, width=80, highlight=False))
    view.stage_started(SimpleNamespace(stage="sft", why="no artifact yet"), tmp_path)
    return view, stream


def tell(view, phase, step, total, **metrics):
    view.stage_event({"event": "progress", "phase": phase, "step": step, "total": total, "metrics": metrics})


def test_in_a_pipe_each_phase_is_told_every_ten_seconds_with_the_time_that_it_has_left(clock, tmp_path):
    view, stream = watch(terminal=False, tmp_path=tmp_path)
    for seconds, *told in (
        (0, "train", 0, 100),
        (10, "train", 25, 100),
        (5, "train", 40, 100),
        (20, "train", 100, 100),
        (1, "held-out loss", 10, 2000),
        (20, "held-out loss", 510, 2000),
        (11, "saving", 0, 0),
    ):
        clock.s += seconds
        tell(view, *told, **({"train/loss": 0.5} if told[0] == "train" else {}))
    assert stream.getvalue().splitlines()[2:] == [
        "sft: 25/100, loss 0.5, 30 s left",
        "sft: 100/100, loss 0.5",
        "sft: held-out loss 510/2000, 1:00 left",
        "sft: saving",
    ]


def test_within_a_long_step_it_is_told_what_is_done_and_the_time_left_is_by_whole_steps(clock, tmp_path):
    view, stream = watch(terminal=False, tmp_path=tmp_path)
    for seconds, step, doing in (
        (0, 0, "responses 1/16"),
        (100, 1, ""),
        (30, 1, "minibatches 1/4"),
        (40, 1, "minibatches 3/4"),
        (30, 2, ""),
    ):
        clock.s += seconds
        view.stage_event({"event": "progress", "phase": "train", "step": step, "total": 3, "metrics": {"train/loss": 0.5}, "doing": doing})
    assert stream.getvalue().splitlines()[2:] == [
        "sft: 1/3, loss 0.5, 3:20 left",
        "sft: 1/3, minibatches 1/4, loss 0.5, 2:50 left",
        "sft: 1/3, minibatches 3/4, loss 0.5, 2:10 left",
        "sft: 2/3, loss 0.5, 1:40 left",
    ]


def test_on_a_terminal_the_bar_begins_anew_with_each_phase(clock, tmp_path):
    view, stream = watch(terminal=True, tmp_path=tmp_path)
    tell(view, "train", 100, 100)
    clock.s += 3
    tell(view, "held-out answers, sampled", 1, 64)
    shown = stream.getvalue()
    assert "held-out answers, sampled 1/64" in shown
    assert view._bar._progress.tasks[0].completed == 1 and view._bar._progress.tasks[0].total == 64
    tell(view, "saving", 0, 0)
    assert stream.getvalue().rstrip().endswith("saving") and view._bar._progress.finished
    view.stage_failed("sft")


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_that_comes_while_a_line_is_printed_ends_the_run(terminal):
    class Stream(io.StringIO):
        def write(self, text):
            raise SystemExit(130)  # as the handler of the signal does, wherever the program is

    view = ProgressView(Console(file=Stream(), force_terminal=terminal, width=80, highlight=False))
    with pytest.raises(SystemExit):
        view.stage_waits("sft", "process 7 of ann on node3", 1.0, [])


def test_a_reader_that_goes_away_does_not_end_the_run():
    class Stream(io.StringIO):
        def write(self, text):
            raise ReaderGone(141)

    view = ProgressView(Console(file=Stream(), width=80, highlight=False))
    view.stage_waits("sft", "process 7 of ann on node3", 1.0, [])
