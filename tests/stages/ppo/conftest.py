"""The trainer and the stage around tiny models."""

import copy

import pytest
import torch

from stages.ppo import stage as ppo_stage
from stages.ppo.actor_critic import Actor, ActorCritic, init_critic
from stages.ppo.trainer import PPOTrainer
from stages.process.context import StageContext
from stages.process.engine import Engine
from stages.settings import PPOSettings
from tests.stages.tiny_models import PROMPTS


@pytest.fixture
def make_trainer(tiny, ranks, plain_hardware):
    def make(
        policy=None,
        reward_model=None,
        ref_policy=None,
        sampling=None,
        bfloat16=False,
        prompts=PROMPTS,
        demonstrations=(),
        note=print,
        seed=3,
        ranks=ranks,
        **settings,
    ):
        values = {
            "iterations": 10,
            "rollout_batch_size": 8,
            "minibatch_size": 4,
            "max_tokens_per_microbatch": 32,
            "rollout_micro_batch_size": 3,
            "ppo_epochs": 2,
            "learning_rate": 1e-3,
        }
        policy = policy or tiny.policy()
        reward_model = reward_model or tiny.reward_model()
        if bfloat16:
            tiny.compute_in_bfloat16(policy, reward_model)
        return PPOTrainer(
            ranks,
            ActorCritic(Actor(policy), init_critic(copy.deepcopy(reward_model))),
            ref_policy or copy.deepcopy(policy),
            reward_model,
            prompts,
            sampling or tiny.sampling(),
            PPOSettings(**values | settings),
            seed=seed,
            engine=Engine("none", plain_hardware, 1.0),
            demonstrations=demonstrations,
            note=note,
        )

    return make


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(make_stage, base_model_dir, reward_model_dir):
    """Run the stage in this process: run(tag=..., models=..., **settings) -> (spec, result, trainer)."""

    def run_here(tag="run", models=None, **settings):
        inputs = {"sft": base_model_dir, "rm": reward_model_dir} | (models or {})
        values = {"iterations": 2, "eval_every": 1, "save_every": 1} | settings
        spec = make_stage("ppo", tag=tag, models=inputs, **values).spec
        spec.output_dir.mkdir()
        spec.checkpoint_dir.mkdir()
        trainers = []
        plain_build = ppo_stage._build_trainer

        def remember(*arguments):
            trainers.append(plain_build(*arguments))
            return trainers[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ppo_stage, "_build_trainer", remember)
            result = ppo_stage.main(StageContext(spec))
        return spec, result, trainers[0]

    return run_here
