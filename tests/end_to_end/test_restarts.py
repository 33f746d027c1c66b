"""F15: with `hardware.restarts` a stage that lost a rank goes on by itself, from its last complete checkpoint."""

import os
import signal
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.waiting import wait_until


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_from_the_last_checkpoint_without_anybody(make_pipeline, tmp_path):
    options = ("hardware.processes=2", "hardware.restarts=1", "sft.epochs=3", "sft.eval_samples=0")
    pipeline = make_pipeline(tmp_path / "run", "--until", "sft", *(word for option in options for word in ("--set", option)), warm=True)
    process = pipeline.start()
    try:
        wait_until(lambda: pipeline.saved_steps() or process.poll() is not None, 120, pipeline.output_path.read_text)
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pipeline.processes()}
        ranks = [pid for pid, said in words.items() if b"stages.sft" in said and b"torch.distributed.run" not in said]
        assert len(ranks) == 2, pipeline.output_path.read_text()
        os.kill(ranks[-1], signal.SIGKILL)
        assert process.wait(timeout=180) == 0, pipeline.output_path.read_text()[-4000:]
    finally:
        pipeline.kill_all()
    (resumed,) = pipeline.resumed_steps().values()
    assert len(resumed) == 2 and resumed[0] == 0 < resumed[1]
    assert Store(pipeline.store_root).verify("sft@v1") == []
