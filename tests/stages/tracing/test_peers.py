"""Processes that measure at once: all hear the mean, and none waits for one that is gone."""

import os
import signal
import time

from pytest import approx, mark, raises

from stages.process.errors import StageError
from stages.tracing.peers import run_together


def test_all_go_on_with_the_mean_of_what_each_measured():
    assert run_together(3, lambda peers: [peers.average(peers.rank), peers.average(10.0 * peers.rank)]) == approx([1.0, 10.0])


@mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(1)])
def test_one_that_ends_too_early_ends_all_in_one_line(end):
    def work(peers):
        if peers.rank == 1:
            end()
        peers.wait()

    start_s = time.monotonic()
    with raises(StageError, match=r"ended, or hangs; is there memory for all\? Lower hardware\.processes"):
        run_together(2, work)
    assert time.monotonic() - start_s < 60


def test_an_error_of_its_own_comes_out_and_leaves_no_process(tmp_path):
    def work(peers):
        (tmp_path / str(peers.rank)).write_text(str(os.getpid()))
        peers.wait()
        if peers.rank == 0:
            raise ValueError("mine")
        time.sleep(600)

    with raises(ValueError, match="mine"):
        run_together(2, work)
    with raises(ProcessLookupError):
        os.kill(int((tmp_path / "1").read_text()), 0)
