"""A stage program that obeys the contract and trains nothing. FAKE_SFT, FAKE_RM, FAKE_PPO say how it behaves:

ok (default), steps (a second of work, a checkpoint per step), fail:<code>, slow-fail:<code> (once checkpoints/waiting is removed),
crash, die, no-result, no-model, wait, slow-stop (half a second of progress after a signal), stubborn, child, same,
print-secret
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

spec = json.loads(Path(sys.argv[1]).read_text())
stage, output, checkpoints = spec["stage"], Path(spec["output_dir"]), Path(spec["checkpoint_dir"])
behaviour, _, detail = os.environ.get(f"FAKE_{stage.upper()}", "ok").partition(":")
checkpoints.mkdir(parents=True, exist_ok=True)
progress = checkpoints / "step"
first_step = int(progress.read_text()) if progress.exists() else 0


def say(event, **fields):
    with Path(spec["events_path"]).open("a") as stream:
        stream.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


def stop(number, _frame):
    if behaviour == "slow-stop":
        for step in range(1, 6):
            say("progress", phase="train", step=step, total=9, metrics={})
            time.sleep(0.1)
    if behaviour != "stubborn":
        print("saved", flush=True)
        os._exit(128 + number)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print(f"\x1b[31mfake {stage}\x1b[0m from step {first_step}", flush=True)
say("start", stage=stage, unit="step", resumed_step=first_step)
say("note", message="a note\x1b[2J")

if behaviour == "slow-fail":
    (checkpoints / "waiting").touch()
    while (checkpoints / "waiting").exists():
        time.sleep(0.05)
if behaviour in ("fail", "slow-fail"):
    print("\n".join(f"line {i}" for i in range(40)))
    say("error", message="the loss is nan\x1b[2J", exit_code=int(detail))
    sys.exit(int(detail))
if behaviour == "crash":
    raise RuntimeError("a bug in the stage")
if behaviour == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "child":  # as torchrun does: a worker in a session of its own
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(f"worker {worker.pid}", flush=True)
if behaviour in ("wait", "slow-stop", "stubborn", "child"):
    say("progress", phase="train", step=1, total=9, metrics={})
    (checkpoints / "waiting").touch()
    time.sleep(600)

total = 20 if behaviour == "steps" else 2
for step in range(first_step + 1, total + 1):
    if behaviour == "steps":
        time.sleep(0.05)
    draft = progress.with_suffix(".tmp")
    draft.write_text(str(step))
    draft.replace(progress)
    say("progress", phase="train", step=step, total=total, metrics={"train/loss": 1 / step})
    with (checkpoints / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step, "train/loss": 1 / step}) + "\n")

if behaviour == "print-secret":
    print("token:", os.environ["MY_TOKEN"])
# What is learned depends on what is given, so that other settings make another content.
learned = {"settings": spec["settings"], "seed": spec["seed"]} | ({"weights": spec["weights"]} if spec["weights"] else {})
for role, path in spec["models"].items():
    files = sorted(Path(path).rglob("*.safetensors")) if Path(path).is_absolute() else []
    learned[role] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
if behaviour == "same":
    learned = "always the same"
if stage == "sample":
    names, text = [name for name in spec["models"] if name != "rm"], hashlib.sha256(json.dumps(learned).encode()).hexdigest()[:6]
    rows = [{"prompt": f"question {i}", "completions": [f"one {text}", f"two {text}"], "models": [names[0], names[-1]]} for i in range(8)]
    output.mkdir(parents=True, exist_ok=True)
    (output / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
else:
    (output / "model").mkdir(parents=True)
    (output / "model" / "model.safetensors").write_text(json.dumps(learned, sort_keys=True))
sample = {"prompt": "hi \x1b[2Jthere", "grün": "日本 \U0001f600 \u202e", "response": "[bold]hello[/bold] \x1b]0;title\x07you"}
(output / "samples.jsonl").write_text(json.dumps(sample) + "\n")
facts = {
    "base_model": "base", "tokenizer_hash": "t", "chat_template_hash": "c", "vocab_size": 3, "pad_token_id": 0, "eos_token_id": 1,
    "form": "full", "architecture": "Fake",
}  # fmt: skip
result = {"metrics": {"eval/loss": 0.5}, "facts": facts, "counts": {"records": 8}, "world_size": 1, "device": "cpu", "precision": "float32"}
if behaviour == "no-model":
    (output / "model").rename(output / "other")
if behaviour != "no-result":
    (output / "result.json").write_text(json.dumps(result))
say("end", metrics=result["metrics"])
