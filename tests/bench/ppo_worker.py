"""One PPO update of ours per "go": `python -m tests.bench.ppo_worker '{"ppo": {...}, "precision": "float32", "compile": false}'`."""

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from stages.blocks import HardwareSettings, TokenSettings
from stages.models.compiling import compile_layers
from stages.models.precision import freeze
from stages.ppo import trainer as trainer_module
from stages.ppo.actor_critic import Actor, ActorCritic, init_critic
from stages.ppo.models import PPOModels
from stages.ppo.trainer import PPOTrainer
from stages.ppo.update import Updater
from stages.process.engine import Engine, choose_engine
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.settings import PPOSettings
from tests.bench.our_models import make_hardware, open_policy, open_reward_model
from tests.bench.protocol import Bench, Figures, Instant
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, PPOWork, make_prompts


def make_settings(work: PPOWork) -> PPOSettings:
    """Say what the work fixes; the rest stays at the project's defaults."""
    return PPOSettings(
        iterations=10_000,
        rollout_batch_size=work.num_prompts,
        minibatch_size=work.num_prompts,
        ppo_epochs=work.ppo_epochs,
        max_response_tokens=work.max_new_tokens,
    )


def open_models(work: PPOWork, hardware: HardwareSettings) -> PPOModels:
    """Open the four models."""
    actor = Actor(open_policy(work.size, work.hazard, hardware))
    critic = init_critic(open_reward_model(work.size, 1, hardware))
    ref_policy, reward_model = open_policy(work.size, work.hazard, hardware), open_reward_model(work.size, 2, hardware)
    return PPOModels(ActorCritic(actor, critic), freeze(ref_policy, hardware), freeze(reward_model, hardware))


def build_trainer(work: PPOWork, models: PPOModels, engine: Engine) -> PPOTrainer:
    """Build our trainer as the stage does."""
    return PPOTrainer(
        Ranks(Accelerator(cpu=True)),
        models.actor_critic,
        models.ref_policy,
        models.reward_model,
        make_prompts(work),
        Sampling(max_new_tokens=work.max_new_tokens, temperature=1.0, pad_token_id=PAD, eos_token_id=EOS, stop_token_id=EOS),
        make_settings(work),
        seed=0,
        engine=engine,
    )


def measure_step(trainer: PPOTrainer, marks: dict[str, Instant], prompt_tokens: int) -> Figures:
    """Run one update; its phases meet where the rollout has returned and where the update is called."""
    start = Instant.now()
    metrics = trainer.step()
    end = Instant.now()
    return {
        "phases": {
            "rollout": start.until(marks["roll_out"]),
            "score": marks["roll_out"].until(marks["update"]),
            "update": marks["update"].until(end),
            "total": start.until(end),
        },
        "tokens": {"prompt": prompt_tokens, "response": int(metrics["tokens"])},
        "optimizer_steps": int(metrics["optimizer_steps"]),
    }


def mark_phases() -> dict[str, Instant]:
    """Have the trainer's two calls leave their instants in the returned dictionary."""
    marks: dict[str, Instant] = {}
    roll_out, update = trainer_module.roll_out, Updater.update

    @functools.wraps(roll_out)
    def marked_roll_out(*arguments: Any, **options: Any) -> Any:
        rollout = roll_out(*arguments, **options)
        marks["roll_out"] = Instant.now()
        return rollout

    @functools.wraps(update)
    def marked_update(*arguments: Any, **options: Any) -> Any:
        marks["update"] = Instant.now()
        return update(*arguments, **options)

    trainer_module.roll_out, Updater.update = marked_roll_out, marked_update
    return marks


def main() -> None:
    """Serve until the bench closes the line."""
    bench = Bench()
    given = json.loads(sys.argv[1])
    work = PPOWork(**given["ppo"])
    hardware = make_hardware(given["precision"], compile=given["compile"])
    models = open_models(work, hardware)
    with tempfile.TemporaryDirectory() as directory:
        context = make_context("ppo", make_settings(work), TokenSettings(), given["precision"], Path(directory), hardware=hardware)
        compile_layers(context, models.actor_critic.actor.policy, models.actor_critic.critic, models.ref_policy, models.reward_model)
        trainer, marks = build_trainer(work, models, choose_engine(context)), mark_phases()
        prompt_tokens = sum(map(len, make_prompts(work)))
        bench.serve(lambda: measure_step(trainer, marks, prompt_tokens))


if __name__ == "__main__":
    main()
