"""A stage process from start to end: exit codes, last lines, signals, and nothing left behind. Real processes throughout."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.launch.commands import Command
from pipeline.launch.failure import StageFailed
from pipeline.launch.launch import launch
from pipeline.launch.processes import find_marked
from tests.conftest import ROOT
from tests.waiting import wait_until


def failure_of(run_script, source):
    with pytest.raises(StageFailed) as caught:
        run_script(source)
    return caught.value


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_events_arrive_in_order_and_output_goes_to_the_log(run_script, tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "progress", "step": 0}\n')  # of an earlier attempt
    received, events = run_script("""
        print("hello"); print("oops", file=sys.stderr)
        with open(EVENTS, "a") as stream:
            for step in range(3):
                stream.write(json.dumps({"event": "progress", "step": step + 1}) + chr(10)); stream.flush(); time.sleep(0.1)
    """)
    assert received is None
    assert [event["step"] for event in events] == [1, 2, 3]
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith(f"$ {sys.executable} -c ")
    assert "hello" in log
    assert "oops" in log


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 130, 143])
def test_the_exit_code_of_the_stage_is_kept(run_script, code):
    error = failure_of(run_script, f"sys.exit({code})")
    assert error.exit_code == code
    assert str(error) == f"sft: ended with exit code {code}"


def test_an_unknown_exit_code_is_a_failed_stage(run_script):
    assert failure_of(run_script, "sys.exit(77)").exit_code == 1


def test_the_error_event_says_what_went_wrong_even_where_a_launcher_ends_with_1(run_script):
    error = failure_of(
        run_script,
        """
        open(EVENTS, "a").write(json.dumps({"event": "error", "message": "no space" + chr(27) + "[2J", "exit_code": 5}) + chr(10))
        sys.exit(1)
        """,
    )
    assert (error.exit_code, str(error)) == (5, "sft: no space")


def test_the_last_lines_come_without_escapes_and_redrawn_progress(run_script, tmp_path):
    error = failure_of(
        run_script,
        r"""
        print("\n".join(f"line {i}" for i in range(50)))
        print("10%\r50%\r100%")
        print("\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 \x9b31m")
        sys.exit(1)
        """,
    )
    assert len(error.last_lines) == 20
    assert error.last_lines[-3:] == ["line 49", "100%", "red bell 31m"]
    assert error.log_path == tmp_path / "log.txt"


def test_a_killed_stage_says_so_and_hints_at_memory(run_script):
    error = failure_of(run_script, "os.kill(os.getpid(), signal.SIGKILL)")
    assert error.exit_code == 1
    assert "killed by SIGKILL" in str(error)
    assert "out of memory" in str(error)


def test_a_segfault_is_named(run_script):
    assert "SIGSEGV" in str(failure_of(run_script, "os.kill(os.getpid(), signal.SIGSEGV)"))


def send_when(path, *signals, gap_s=0.3):
    """Send ourselves signals once a file exists."""

    def send():
        wait_until(path.exists)
        for number in signals:
            time.sleep(gap_s)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


GRACEFUL = """
    def stop(number, frame):
        print("got", number, flush=True); time.sleep(0.2); print("saved", flush=True); sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
    open(os.path.dirname(EVENTS) + "/ready", "w").close()
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_the_stage_may_save(run_script, tmp_path, number):
    thread = send_when(tmp_path / "ready", number)
    error = failure_of(run_script, GRACEFUL)
    thread.join()
    assert error.exit_code == 128 + number
    assert error.interrupted
    assert error.last_lines[-2:] == [f"got {number:d}", "saved"]


@pytest.fixture
def terminal():
    """SIGHUP as a terminal's programs find it; under nohup it is ignored, and `launch` leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_a_closed_terminal_lets_the_stage_save(run_script, tmp_path):
    thread = send_when(tmp_path / "ready", signal.SIGHUP)
    error = failure_of(run_script, GRACEFUL)
    thread.join()
    assert error.exit_code == 143
    assert error.last_lines[-1] == "saved"


@pytest.mark.slow
def test_a_second_signal_ends_a_stage_that_does_not_want_to(run_script, tmp_path):
    source = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(os.path.dirname(EVENTS) + "/ready", "w").close()
        time.sleep(60)
    """
    thread = send_when(tmp_path / "ready", signal.SIGTERM, signal.SIGTERM, gap_s=1.2)
    error = failure_of(run_script, source)
    thread.join()
    assert error.exit_code == 143  # by itself it would end with 0, after a minute


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterms_within_a_second_are_one_wish_to_stop(run_script, tmp_path, number):
    """SLURM signals every process of a job, the launchers too, which pass it on; of a closed terminal both system and shell tell."""
    thread = send_when(tmp_path / "ready", number, number, number, gap_s=0.05)
    error = failure_of(run_script, GRACEFUL)
    thread.join()
    assert error.exit_code == 143 and error.last_lines[-1] == "saved"


def test_our_own_signal_handlers_come_back(run_script):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run_script("pass")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_a_signal_to_a_stage_that_ends_well_all_the_same_is_told(run_script, tmp_path):
    source = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(os.path.dirname(EVENTS) + "/ready", "w").close()
        time.sleep(1.5)
    """
    thread = send_when(tmp_path / "ready", signal.SIGTERM)
    received, _ = run_script(source)
    thread.join()
    assert received == signal.SIGTERM


def test_what_a_stage_leaves_running_is_killed_even_in_a_session_of_its_own(run_script, tmp_path):
    run_script("""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        open(os.path.dirname(EVENTS) + "/pid", "w").write(str(child.pid))
    """)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid), 5)


ORCHESTRATOR = """
import sys
from pathlib import Path
from pipeline.launch.commands import Command
from pipeline.launch.launch import launch
child = (
    "import os, subprocess, sys, time;"
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {worker.pid}'); time.sleep(600)"
)
launch("sft", lambda _: [Command([sys.executable, "-c", child, sys.argv[1] + "/pids"])], Path(sys.argv[1]), print)
"""


@pytest.mark.parametrize("victim", ["orchestrator", "launcher"])
def test_kill_9_leaves_no_process(tmp_path, victim):
    orchestrator = subprocess.Popen([sys.executable, "-c", ORCHESTRATOR, str(tmp_path)], stderr=subprocess.DEVNULL)
    pids_path = tmp_path / "pids"
    wait_until(lambda: pids_path.exists() and len(pids_path.read_text().split()) == 2)
    launcher, worker = map(int, pids_path.read_text().split())
    os.kill(orchestrator.pid if victim == "orchestrator" else launcher, signal.SIGKILL)
    orchestrator.wait(10)
    wait_until(lambda: not is_alive(launcher) and not is_alive(worker), 5)


def test_a_marker_is_found_only_where_it_is(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, "RLHF_STAGE_RUN": "mark-1"})
    try:
        wait_until(lambda: find_marked("mark-1") == [child.pid])
        assert find_marked("mark-") == []
    finally:
        child.kill()
        child.wait()


def test_shell_characters_in_a_path_are_only_characters(tmp_path):
    run_dir = tmp_path / "$(touch x); `id` 'ü\n"
    run_dir.mkdir()
    launch("sft", lambda _: [Command([sys.executable, "-c", "import sys; print(sys.argv[1])", str(run_dir)])], run_dir, print)
    assert str(run_dir) in (run_dir / "log.txt").read_text()
    assert not (tmp_path / "x").exists()


def test_a_program_that_a_command_waits_for_ends_with_it_however_that_ends():
    """A plan that was killed left a trace behind that kept all cores busy."""
    waits = "import time; time.sleep(100)"
    script = f"from pipeline.launch.dialogue import run_program; run_program('timeit', '-n', '1', {waits!r}, offline=True)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as command:
        started = psutil.Process(command.pid)
        wait_until(lambda: any("timeit" in child.cmdline() for child in started.children()), limit_s=60)
        (program,) = started.children()
        command.kill()
    wait_until(lambda: not is_alive(program.pid))
