"""What the check of GPUs runs beside what, and that nothing of it outlives it."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gpu import lanes
from tests.gpu.lanes import PARTS, Processes, arrange, run_turns

_SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch):
    monkeypatch.delenv("RLHF_TEST_VLLM", raising=False)


def test_speed_is_measured_alone_and_the_rest_in_lanes():
    beside = [["demo"], ["parity", "kernels", "zero2", "zero3"], ["processes", "models"]]
    assert arrange(PARTS, pretend=False) == [[["steps"]], [["rollout"]], beside]
    assert arrange(["rollout", "zero3", "models", "zero2"], pretend=False) == [[["rollout"]], [["zero2", "zero3"], ["models"]]]
    assert arrange(["rollout"], pretend=False) == [[["rollout"]]]
    assert arrange(PARTS, pretend=True) == [[list(PARTS)]]


def test_what_starts_vllm_has_the_gpu_to_itself(monkeypatch):
    monkeypatch.setenv("RLHF_TEST_VLLM", "vllm")
    assert arrange(["demo", "processes", "parity"], pretend=False) == [[["demo"], ["parity"]], [["processes"]]]


def test_lanes_run_beside_each_other_and_their_parts_in_turn():
    running, seen, firsts, lock = set(), [], threading.Barrier(3), threading.Lock()

    def run_part(name):
        with lock:
            running.add(name)
            seen.append((name, set(running)))
        if name in {"demo", "parity", "processes"}:
            firsts.wait(60)  # none goes on before both run
        with lock:
            running.remove(name)

    run_turns(arrange(PARTS, pretend=False), run_part, Processes())
    assert [name for name, _ in seen][:2] == ["steps", "rollout"] and {name for name, _ in seen} == set(PARTS)
    for name, others in seen:
        assert {"zero2", "zero3"} - others and (name not in {"steps", "rollout"} or others == {name})


def test_ctrl_c_ends_what_runs_and_starts_nothing_more(monkeypatch):
    monkeypatch.setattr(lanes, "_GRACE_S", 0.1)  # in a terminal they would have been told too
    processes, started, seen = Processes(), [], []

    def run_part(name):
        started.append(name)
        processes.run(_SLEEP, 1000.0)

    def interrupt():
        while len(processes._running) < 2:
            time.sleep(0.01)
        seen.extend(processes._running)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell runs in the background are born deaf to it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run_turns(arrange(["demo", "zero2", "zero3"], pretend=False), run_part, processes)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(started) == ["demo", "zero2"] and [each.returncode for each in seen] == [-signal.SIGKILL] * 2


def test_ctrl_c_between_the_starts_of_two_lanes_ends_the_first(monkeypatch):
    monkeypatch.setattr(lanes, "_GRACE_S", 0.1)
    processes, seen = Processes(), []

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args):
            super().submit(*args)
            while not processes._running:
                time.sleep(0.01)
            seen.extend(processes._running)
            raise KeyboardInterrupt

    monkeypatch.setattr(lanes, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_turns(arrange(["demo", "zero2"], pretend=False), lambda _: processes.run(_SLEEP, 1000.0), processes)
    assert [each.returncode for each in seen] == [-signal.SIGKILL]


def test_an_error_in_one_lane_ends_the_others(monkeypatch):
    monkeypatch.setattr(lanes, "_GRACE_S", 0.1)
    processes = Processes()

    def run_part(name):
        if name == "demo":
            raise OSError("no space for the table")
        processes.run(_SLEEP, 100.0)

    with pytest.raises(OSError, match="no space"):
        run_turns(arrange(["demo", "zero2", "zero3"], pretend=False), run_part, processes)
    assert not processes._running


def test_what_takes_too_long_is_ended():
    processes = Processes()
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(_SLEEP, 0.1)
    assert not processes._running and processes.run([sys.executable, "-S", "-c", "raise SystemExit(3)"], 100.0) == 3
