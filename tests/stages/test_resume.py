"""A killed stage, started again, ends with the very weights of a stage that was never killed: in all stages."""

import hashlib
import json
import signal
import time

import pytest

pytestmark = pytest.mark.slow  # real stage processes


def weights_hash(stage):
    output = stage.spec.output_dir
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.rglob("*.safetensors"))}


def kill_after_checkpoint(stage, number, signal_number):
    """Start the stage and signal it once `number` checkpoints are complete; return its exit code."""
    process = stage.start()
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if sum(event["event"] == "checkpoint" for event in stage.events()) >= number:
            process.send_signal(signal_number)
            break
        time.sleep(0.02)
    process.communicate(timeout=100)
    return process.returncode


def inputs_of(name, base_model_dir, reward_model_dir):
    return {
        "pretrain": {"base": base_model_dir},
        "sft": {"base": base_model_dir},
        "rm": {"sft": base_model_dir},
        "ppo": {"sft": base_model_dir, "rm": reward_model_dir},
    }[name]


@pytest.mark.parametrize("name", ["pretrain", "sft", "rm", "ppo"])
def test_kill_9_and_sigterm_then_resume_equal_a_straight_run(make_stage, plain_hardware, base_model_dir, reward_model_dir, name):
    models = inputs_of(name, base_model_dir, reward_model_dir)
    # Texts are packed into rows where our attention computes them.
    hardware = plain_hardware.model_copy(update={"attention": "auto" if name == "pretrain" else "eager"})
    kept = {"keep_every": 1} if name == "ppo" else {}
    straight = make_stage(name, tag="straight", models=models, hardware=hardware, **kept)
    straight.run()

    killed = make_stage(name, tag="killed", models=models, hardware=hardware, **kept)
    assert kill_after_checkpoint(killed, 1, signal.SIGKILL) == -signal.SIGKILL
    assert not killed.model_dir.exists(), "killed too late: nothing was left to resume"
    assert kill_after_checkpoint(killed, 2, signal.SIGTERM) == 143
    killed.run()

    starts = [event["resumed_step"] for event in killed.events() if event["event"] == "start"]
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] <= starts[2]
    assert weights_hash(killed) == weights_hash(straight)
    assert len(weights_hash(killed)) == (6 if kept else 1)  # of five iterations, and what is published
    rows = [[json.loads(line) for line in (s.spec.output_dir / "metrics.jsonl").read_text().splitlines()] for s in (straight, killed)]
    assert {row["step"] for row in rows[0]} <= {row["step"] for row in rows[1]}, "a metric row was lost"
    figures = [{k: v for k, v in s.result.metrics.items() if not k.startswith(("time/", "peak_"))} for s in (straight, killed)]
    assert figures[0] == figures[1]


def test_ppo_on_one_backbone_resumes_exactly(make_stage, base_model_dir, reward_adapter_dir):
    stages = [
        make_stage("ppo", tag=tag, models={"sft": base_model_dir, "rm": reward_adapter_dir}, lora={"rank": 4}, ema_decay=0.9, keep_every=2)
        for tag in ("straight", "killed")
    ]
    stages[0].run()
    assert kill_after_checkpoint(stages[1], 1, signal.SIGKILL) == -signal.SIGKILL
    assert not stages[1].model_dir.exists(), "killed too late: nothing was left to resume"
    stages[1].run()
    assert stages[1].events()[-1]["event"] == stages[0].events()[-1]["event"]
    assert any(event["event"] == "start" and event["resumed_step"] > 0 for event in stages[1].events())
    assert weights_hash(stages[1]) == weights_hash(stages[0])
    assert {name.rpartition("/")[0] for name in weights_hash(stages[1])} == {"model", "kept/2", "kept/4"}


def test_the_best_of_ppo_is_the_same_after_a_kill_and_a_checkpoint_that_is_damaged(make_stage, base_model_dir, reward_model_dir):
    """What was held after the checkpoint that is gone on from is made anew, and what that checkpoint names is still there."""
    # At this step size the policy first gains and then breaks.
    settings = {"publish": "best", "eval_every": 1, "save_every": 1, "learning_rate": 3e-2}
    models = {"sft": base_model_dir, "rm": reward_model_dir}
    straight, killed = (make_stage("ppo", tag=tag, models=models, **settings) for tag in ("straight", "killed"))
    straight.run()
    assert straight.result.metrics["published/iteration"] < 6, "the last is best: this says nothing"
    assert kill_after_checkpoint(killed, 3, signal.SIGKILL) == -signal.SIGKILL
    assert not killed.model_dir.exists(), "killed too late: nothing was left to resume"
    newest = max(killed.spec.checkpoint_dir.glob("checkpoint-*/COMPLETE.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    (newest.parent / "state.pt").write_bytes(b"")
    held = killed.spec.checkpoint_dir / "best"
    (held / ".draft").mkdir()  # of a process that was killed there
    (held / "6").mkdir()  # of later than any checkpoint
    assert killed.run().count("passed over") == 1
    assert not (held / ".draft").exists() and not (held / "6").exists()
    starts = [event["resumed_step"] for event in killed.events() if event["event"] == "start"]
    assert len(starts) == 2 and starts[1] > 0
    assert weights_hash(killed) == weights_hash(straight)
    samples = [(stage.spec.output_dir / "samples.jsonl").read_bytes() for stage in (straight, killed)]
    assert samples[0] == samples[1]
    figures = [{k: v for k, v in s.result.metrics.items() if not k.startswith(("time/", "peak_"))} for s in (straight, killed)]
    assert figures[0] == figures[1]


def test_a_damaged_newest_checkpoint_costs_one_save_interval_and_no_more(make_stage):
    straight = make_stage("sft", tag="straight")
    straight.run()
    damaged = make_stage("sft", tag="damaged")
    assert kill_after_checkpoint(damaged, 2, signal.SIGKILL) == -signal.SIGKILL
    newest = max(damaged.spec.checkpoint_dir.glob("checkpoint-*/COMPLETE.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    state = newest.parent / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-1])
    output = damaged.run()
    assert output.count("passed over") == 1 and "Traceback" not in output
    assert weights_hash(damaged) == weights_hash(straight)
