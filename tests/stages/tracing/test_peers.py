"""Processes that measure at once: all hear the mean, and none waits for one that is gone."""

import multiprocessing
import os
import signal
import time

import torch
from accelerate import Accelerator
from pytest import approx, mark, raises
from torch import nn

from stages.process.errors import StageError
from stages.spec import EXIT_RESOURCE
from stages.tracing.peers import run_together


def in_a_process_of_its_own(work):
    """Who joins a group is its member to the end, and keeps its environment."""
    found, told = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: told.send(work()))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return found.recv()


def test_all_go_on_with_the_mean_of_what_each_measured():
    assert run_together(3, lambda peers: [peers.average(peers.rank), peers.average(10.0 * peers.rank)]) == approx([1.0, 10.0])


END = mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(1)])


@END
def test_one_that_ends_too_early_ends_all_in_one_line(end):
    def work(peers):
        if peers.rank == 1:
            end()
        peers.wait()

    start_s = time.monotonic()
    with raises(StageError, match=r"ended, or hangs; is there memory for all\? Lower hardware\.processes"):
        run_together(2, work)
    assert time.monotonic() - start_s < 60


def test_processes_that_cannot_share_locks_are_told_where_these_would_lie(monkeypatch):
    monkeypatch.setattr("stages.tracing.peers.has_semaphores", lambda: False)
    with raises(StageError, match=r"^/dev/shm: found missing, full or read-only, needed by processes") as caught:
        run_together(2, lambda peers: 0)
    assert caught.value.exit_code == EXIT_RESOURCE


def test_models_in_training_average_their_gradients_over_all_who_joined():
    def work(peers):
        peers.join()
        prepared = Accelerator(cpu=True).prepare_model(nn.Linear(1, 1, bias=False))
        prepared(torch.full((1, 1), 1.0 + peers.rank)).sum().backward()
        return peers.average(float(next(prepared.parameters()).grad))

    assert in_a_process_of_its_own(lambda: run_together(3, work)) == approx(2.0)  # of 1, 2, 3


@END
def test_one_that_ends_while_others_wait_for_its_gradients_ends_all_in_one_line(end):
    def work(peers):
        peers.join()
        peers.wait()
        if peers.rank == 1:
            end()
        torch.distributed.all_reduce(torch.zeros(1))

    def ask():
        with raises(StageError, match=r"ended, or hangs; is there memory for all\?"):
            run_together(2, work)

    in_a_process_of_its_own(ask)


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
