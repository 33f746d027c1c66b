"""One node of a stage that runs on several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.launch.node import pack_environment
from tests.waiting import wait_until


def test_a_node_runs_its_command_as_long_as_somebody_listens(tmp_path):
    """The end of the pipe, whatever became of the orchestrator, ends what was started, a daemon included."""
    source = (
        "import os, subprocess, sys, time;"
        "daemon = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
        f"open({str(tmp_path / 'pids')!r}, 'w').write("
        "f'{os.getpid()} {daemon.pid} ' + os.environ['HF_TOKEN'] + ' ' + os.environ.get('OTHER', '-')); time.sleep(600)"
    )
    marker = f"node-test-{os.getpid()}"
    agent = [sys.executable, "-P", "-m", "pipeline.launch.node", marker, "--", sys.executable, "-c", source]
    environment = {**os.environ, "RLHF_STAGE_RUN": marker, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(agent, stdin=subprocess.PIPE, env=environment)
    process.stdin.write(pack_environment({"HF_TOKEN": "hf_secret", "OTHER": "stays here"}))
    process.stdin.flush()
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), 20)
    assert (tmp_path / "pids").read_text().split()[2:] == ["hf_secret", "-"]
    process.send_signal(signal.SIGTERM)  # not how it is told to stop
    time.sleep(0.2)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=10) != 0
    for pid in map(int, (tmp_path / "pids").read_text().split()[:2]):
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
