"""One PPO update of TRL 1.12.0 per "go"; runs in TRL's own environment (trl_environment.py) and imports nothing of the project's.

What the work does not fix stays at TRL's defaults. Sampling is its own too: temperature 1 and the whole distribution. The whole
minibatch is one forward: accumulation would be the wrong number of optimizer steps (tests/stages/ppo/test_known_bugs.py).
"""

import json
import sys
import tempfile
from typing import Any

import trl.experimental.ppo.ppo_trainer as ppo_trainer
from datasets import Dataset
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from tests.bench.protocol import Bench, Figures, Instant
from tests.bench.workload import EOS, PAD, PPOWork, make_policy, make_prompts, make_reward_model, make_tokenizer


class Meter(TrainerCallback):
    """Waits for each "go" between two updates, and holds the instants and tokens of the one that runs."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.marks: dict[str, Instant] = {}
        self.tokens: dict[str, int] = {}
        self.optimizer_steps = 0
        self.mixed_precision = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bench.say_ready()
        self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bench.reply(**self._collect())
        self._start()

    def _start(self) -> None:
        self.bench.wait_for_go()
        self.optimizer_steps = 0
        self.marks = {"start": Instant.now()}

    def _collect(self) -> Figures:
        marks, end = self.marks, Instant.now()
        return {
            "phases": {
                "rollout": marks["start"].until(marks["generated"]),
                "score": marks["generated"].until(marks["update"]),
                "update": marks["update"].until(end),
                "total": marks["start"].until(end),
            },
            "tokens": self.tokens,
            "optimizer_steps": self.optimizer_steps,
            "mixed_precision": self.mixed_precision,
        }


def mark_phases(meter: Meter) -> None:
    """Have TRL's generation and its first forward with a gradient leave their instants with the meter."""
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def marked_generate(model: Any, queries: Any, *rest: Any) -> Any:
        generated = generate(model, queries, *rest)
        meter.marks["generated"] = Instant.now()
        responses = generated[0][:, queries.shape[1] :]
        ended = (responses == EOS).cumsum(dim=1) - (responses == EOS).long()  # end tokens before each token
        meter.tokens = {"prompt": int((queries != PAD).sum()), "response": int((ended == 0).sum())}
        return generated

    def marked_forward(model: Any, *rest: Any) -> Any:
        if hasattr(model, "policy"):  # policy and value model together: only the update calls that
            meter.marks.setdefault("update", Instant.now())
        return forward(model, *rest)

    ppo_trainer.batch_generation, ppo_trainer.forward = marked_generate, marked_forward


def build_trainer(work: PPOWork, precision: str, meter: Meter, output_dir: str) -> PPOTrainer:
    """Build TRL's trainer on the same models and prompts as ours."""
    config = PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=work.num_prompts,
        local_rollout_forward_batch_size=work.num_prompts,
        num_mini_batches=1,
        num_ppo_epochs=work.ppo_epochs,
        total_episodes=work.num_prompts * 10_000,
        response_length=work.max_new_tokens,
        stop_token="eos",
        temperature=1.0,
        missing_eos_penalty=1.0,
        bf16=precision == "bfloat16",
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=make_tokenizer(work.size),
        model=make_policy(work.size, work.hazard),
        ref_model=make_policy(work.size, work.hazard),
        reward_model=make_reward_model(work.size, seed=2),
        value_model=make_reward_model(work.size, seed=1),
        train_dataset=Dataset.from_dict({"input_ids": make_prompts(work)}),
        callbacks=[meter],
    )
    optimizer = trainer.optimizer.optimizer

    def count_step(*_: Any) -> None:
        meter.optimizer_steps += 1

    optimizer.register_step_post_hook(count_step)
    meter.mixed_precision = trainer.accelerator.mixed_precision
    return trainer


def main() -> None:
    """Serve until the bench closes the line."""
    meter = Meter(Bench())
    given = json.loads(sys.argv[1])
    mark_phases(meter)
    with tempfile.TemporaryDirectory() as directory:
        build_trainer(PPOWork(**given["ppo"]), given["precision"], meter, directory).train()


if __name__ == "__main__":
    main()
