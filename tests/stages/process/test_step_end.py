"""What all processes decide at a step's end: a stop signal that reaches one of them first stops them all, and checkpoints come by time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.process.checkpoint import latest_complete, share_out
from stages.process.context import StageContext
from stages.process.step_end import StepEnd

DRIVER = Path(__file__).with_name("stop_driver.py")
ROOT = DRIVER.parents[3]


@pytest.mark.slow
def test_a_stop_signal_that_reaches_one_rank_a_step_before_the_other_ends_both_at_one_whole_checkpoint(
    make_stage, plain_hardware, warm_start
):
    hardware = plain_hardware.model_copy(update={"processes": 2, "engine": "ddp"})
    stage = make_stage("sft", hardware=hardware, epochs=1, save_every=100, eval_samples=0, rows=48)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(DRIVER)]
    process = subprocess.run(
        [*torchrun, str(stage.spec_path), "3", "2"], cwd=ROOT, env=warm_start(), capture_output=True, text=True, timeout=300
    )
    ranks = [json.loads(stage.spec_path.with_name(f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["code"] for rank in ranks] == [143, 143], process.stderr[-3000:]
    assert [event["step"] for event in stage.events() if event["event"] == "checkpoint"] == [2]
    warnings = []
    path, step = latest_complete(stage.spec.checkpoint_dir, warn=warnings.append)
    assert step == 2 and not warnings
    # Each hashed a share of the files, and no file was hashed twice.
    (first, *_), (second, *_) = (rank["hashed"] for rank in ranks)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != "COMPLETE.json"}
    assert first and second and len(first) + len(second) == len(files) and {*first, *second} == files


def test_a_process_alone_stops_when_it_is_asked_to_and_saves_by_time(make_stage):
    context = StageContext(make_stage("sft").spec)
    assert StepEnd(context, None).decide() == (False, False)
    assert StepEnd(context, 1e-9).decide() == (False, True)
    later = StepEnd(context, 60.0)
    assert later.decide() == (False, False)
    context.hear_of_signal(15)
    assert later.decide() == (True, True) and context.interrupted_exit_code == 143


def test_files_are_shared_out_by_their_bytes():
    sizes = {"a": 5, "b": 100, "c": 60, "d": 50, "e": 0}
    parts = share_out(sizes, 2)
    assert [sum(sizes[name] for name in part) for part in parts] == [105, 110]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    assert share_out({}, 3) == [[], [], []]
