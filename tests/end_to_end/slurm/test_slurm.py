"""The three stages as jobs of a real SLURM on this machine; run by `make test-slurm`, which installs and starts it."""

import os
import re
import subprocess
import time

import pytest

from pipeline.store.store import Store
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.skipif("RLHF_TEST_SLURM" not in os.environ, reason="needs SLURM on this machine; run `make test-slurm`"),
    pytest.mark.timeout(600),
]
TWO = ("--set", "hardware.processes=2", "--set", "hardware.engine=deepspeed")


def scontrol(*arguments):
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout


def content_ids(pipeline):
    return {artifact.kind: artifact.content_id for artifact in Store(pipeline.store_root).list()}


def test_three_jobs_leave_what_a_run_without_slurm_leaves_and_a_requeued_one_goes_on(make_pipeline, tmp_path):
    plain = make_pipeline(tmp_path / "plain", *TWO)
    plain.run()
    pipeline = make_pipeline(tmp_path / "slurm", "--slurm", *TWO, "--set", "hardware.sbatch=[--time=30]")
    process = pipeline.start()
    wait_until(lambda: any("sft-" in run for run in pipeline.saved_steps()), 180)
    (job,) = re.findall(r"sft: job (\d+)", pipeline.output_path.read_text())
    scontrol("requeue", job)
    wait_until(lambda: "JobState=PENDING" in scontrol("show", "job", job), 180)
    time.sleep(2)  # SLURM waits with a requeued job, but it can be told not to
    scontrol("update", f"JobId={job}", "StartTime=now")
    assert process.wait(timeout=400) == 0, pipeline.output_path.read_text()[-4000:]
    assert "Restarts=1" in scontrol("show", "job", job)
    (starts,) = [steps for run, steps in pipeline.resumed_steps().items() if run.startswith("sft-")]
    assert len(starts) == 2 and starts[1] > 0
    assert content_ids(pipeline) == content_ids(plain) and len(content_ids(plain)) == 3
    output = pipeline.output_path.read_text()
    assert len(set(re.findall(r"\w+: job (\d+), script", output))) == 3 and "ppo@v1" in output


def test_a_job_that_fails_tells_why_and_those_after_it_do_not_run(make_pipeline, tmp_path):
    pipeline = make_pipeline(tmp_path / "bad", "--slurm", "--set", "sft.learning_rate=1e30", "--set", "sft.max_grad_norm=1e30")
    process = pipeline.start()
    assert process.wait(timeout=120) == 1
    output = pipeline.output_path.read_text()
    assert "error: sft: " in output and "failed" in output
    wait_until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout, limit_s=90)
    assert Store(pipeline.store_root).list() == []


def test_a_job_near_its_time_limit_saves_and_is_queued_again(make_pipeline, tmp_path):
    pipeline = make_pipeline(tmp_path / "late", "--slurm", "--until", "sft", "--set", "sft.epochs=16")
    process = pipeline.start()
    wait_until(pipeline.saved_steps, 180)
    (job,) = re.findall(r"sft: job (\d+)", pipeline.output_path.read_text())
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)  # what SLURM does two minutes before the end
    wait_until(lambda: "Restarts=1" in scontrol("show", "job", job), 180)
    wait_until(lambda: "JobState=PENDING" in scontrol("show", "job", job), 180)
    time.sleep(2)
    scontrol("update", f"JobId={job}", "StartTime=now")
    assert process.wait(timeout=300) == 0, pipeline.output_path.read_text()[-4000:]
    (starts,) = pipeline.resumed_steps().values()
    assert len(starts) == 2 and starts[1] > 0
