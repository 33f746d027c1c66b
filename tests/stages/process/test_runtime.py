"""A stage process starts, speaks, stops and fails as the contract says: every case is a real process."""

import json
import math
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from stages.blocks import HardwareSettings, TokenSettings
from stages.process.context import StageContext
from stages.process.runtime import leave_result
from stages.result import StageResult
from stages.settings import SFTSettings
from stages.spec import RESULT_FILE, StageSpec

pytestmark = pytest.mark.slow  # each case starts a process that imports torch

PROGRAM = """
import errno, os, time
from data.schema import DataError, Problem
from stages.process.errors import Interrupted, StageError
from stages.process.runtime import run_stage
from stages.result import StageResult

def main(context):
    context.write_metrics(1, {"train/loss": 0.5})
    %s
    return StageResult(metrics={"eval/loss": 1.0}, counts={}, world_size=1, device="cpu", precision="float32")

run_stage("sft", main)
"""
LOOP = """
    with context.stops_at_step_end():
        for step in range(600):
            context.progress("train", step, 600, {})
            time.sleep(0.05)
            if context.stop_requested:
                print("saving", flush=True)
                time.sleep(%s)
                break
"""


@pytest.fixture
def spec(tmp_path):
    return StageSpec(
        stage="sft",
        settings=SFTSettings(),
        tokens=TokenSettings(),
        hardware=HardwareSettings(device="cpu"),
        models={"base": "nowhere"},
        data={},
        seed=1,
        output_dir=tmp_path / "out",
        checkpoint_dir=tmp_path / "checkpoints",
        events_path=tmp_path / "events.jsonl",
    )


@pytest.fixture
def start(spec, tmp_path, warm_start):
    """start(body): a process whose stage does that."""
    program, path = tmp_path / "stage_driver.py", tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())

    def start(body):
        program.write_text(PROGRAM % textwrap.dedent(body).strip("\n").replace("\n", "\n    "))
        command = [sys.executable, str(program), str(path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=warm_start())

    return start


def events(spec):
    return [json.loads(line) for line in spec.events_path.read_text().splitlines()] if spec.events_path.exists() else []


def wait_for_progress(spec):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(event["event"] == "progress" for event in events(spec)):
            return
        time.sleep(0.05)
    raise AssertionError("no progress event")


def test_a_finished_stage_leaves_result_and_metrics_and_exits_0(spec, start):
    process = start("pass")
    assert process.wait(60) == 0
    metrics = json.loads((spec.output_dir / RESULT_FILE).read_text())["metrics"]
    assert metrics.pop("peak_memory_bytes") > 1e7
    assert metrics == {"eval/loss": 1.0}
    assert json.loads((spec.output_dir / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 0.5}
    assert events(spec)[-1]["event"] == "end"


def test_a_result_with_a_figure_that_is_no_number_is_read_again(spec):
    """F13: it must not lose a finished training."""
    metrics = {"eval/a": math.nan, "eval/b": math.inf, "eval/c": 0.5}
    result = StageResult(metrics=metrics, counts={}, world_size=1, device="cpu", precision="float32")
    spec.output_dir.mkdir()
    spec.checkpoint_dir.mkdir()
    context = StageContext(spec)
    context.write_metrics(1, metrics)
    leave_result(context, result)
    read = StageResult.model_validate_json((spec.output_dir / RESULT_FILE).read_text()).metrics
    assert math.isnan(read["eval/a"]) and read["eval/b"] == math.inf and read["eval/c"] == 0.5
    for path in (spec.output_dir / RESULT_FILE, spec.output_dir / "metrics.jsonl", spec.events_path):
        assert '"eval/b"' in path.read_text()
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_metric_rows_that_are_none_are_told_and_the_others_kept(spec):
    spec.checkpoint_dir.mkdir()
    path = spec.checkpoint_dir / "metrics.jsonl"
    good = [b'{"step": 1, "a": 0.5}', b'{"step": 2, "a": 0.5}']
    path.write_bytes(b"\n".join([good[0], b'{"step": "\xff"}', b"[]", b"null", b'{"a": 1}', b"[" * 100_000, good[1], b'{"step": 3']))
    StageContext(spec).rewind_metrics(5)
    assert path.read_bytes().splitlines() == good
    assert "damaged" in events(spec)[-1]["message"]


@pytest.mark.parametrize(
    ("body", "exit_code", "message"),
    [
        ("raise StageError('found a, b needed, do c', 3)", 3, "found a, b needed, do c"),
        ("raise DataError([Problem('f.jsonl:3', 'prompt', 'missing; give one')])", 2, "f.jsonl:3: prompt: missing; give one"),
        ("raise OSError(errno.ENOSPC, 'No space left on device', '/some/where')", 5, "/some/where"),
        ("raise MemoryError('too big')", 5, "lower sft.micro_batch_size"),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")', 5, "lower sft.micro_batch_size"),
        ("raise ValueError('odd')", 1, "ValueError: odd"),
    ],
)
def test_a_failing_stage_says_why_with_its_exit_code_and_leaves_no_result(spec, start, body, exit_code, message):
    process = start(body)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert message in stderr
    last = events(spec)[-1]
    assert last["event"] == "error" and message in last["message"] and last["exit_code"] == exit_code
    assert not (spec.output_dir / RESULT_FILE).exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_ends_the_loop_at_a_steps_end(spec, start, number, exit_code):
    process = start(LOOP % 0.1)
    wait_for_progress(spec)
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == exit_code and "saving" in stdout
    assert not (spec.output_dir / RESULT_FILE).exists()


def test_a_second_signal_ends_the_process_at_once(spec, start):
    process = start(LOOP % 60)
    wait_for_progress(spec)
    for _ in range(3):  # of a launcher, of SLURM and of a person's kill: one wish
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143  # the program itself would go on for a minute


def test_a_signal_outside_the_loop_ends_the_stage_at_once(spec, start):
    process = start("context.progress('load', 0, 1, {}); time.sleep(60)")
    wait_for_progress(spec)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


def test_a_resume_drops_metric_rows_after_its_step_and_a_torn_line(spec):
    spec.checkpoint_dir.mkdir()
    context = StageContext(spec)
    for step in (1, 2, 3):
        context.write_metrics(step, {"x": float(step)})
    with (spec.checkpoint_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "x"')
    context.rewind_metrics(2)
    rows = [json.loads(line) for line in (spec.checkpoint_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"null", b"{}", b'{"step": "x"}', b'{"step": null}', b"[" * 100_000, b"{"])
def test_f4_damaged_metric_rows_are_left_out_with_a_note(spec, line, capsys):
    spec.checkpoint_dir.mkdir()
    context = StageContext(spec)
    context.write_metrics(1, {"x": 1.0})
    with (spec.checkpoint_dir / "metrics.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    context.write_metrics(2, {"x": 2.0})
    context.rewind_metrics(2)
    rows = [json.loads(row) for row in (spec.checkpoint_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert "metrics.jsonl: 1 damaged lines are left out" in capsys.readouterr().err


def test_a_file_that_is_no_spec_is_refused_with_exit_2(tmp_path, warm_start):
    path = tmp_path / "spec.json"
    path.write_text('{"stage": "sft"}')
    command = [sys.executable, "-P", "-m", "stages.sft", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=warm_start(), check=False)
    assert done.returncode == 2 and "not a stage spec" in done.stderr
