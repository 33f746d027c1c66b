"""Losses, gradients and log-probabilities of every stage on the GPU, beside those of the CPU in float32."""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from stages.blocks import HardwareSettings, TokenSettings
from stages.ppo.experience import Experience
from stages.ppo.trainer import PPOTrainer
from stages.process.engine import Engine
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.responses.figures import TokenFigures
from stages.responses.rollout import pack_rollout
from stages.settings import PPOSettings, RMSettings, SFTSettings
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from tests.bench.our_models import open_policy, open_reward_model
from tests.bench.ppo_worker import open_models
from tests.bench.rm_worker import make_comparisons
from tests.bench.sft_worker import make_demonstrations
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, PPOWork, draw_ids, make_tokenizer
from tests.gpu.place import Figure, Place, at_most, attempt, begin_anew, make_hardware

# Relative, of losses and of gradients as one vector; log-probabilities in nats.
_LIMITS = {"float32": {"loss": 1e-5, "gradient": 1e-4, "logprobs": 1e-4}, "bfloat16": {"loss": 2e-2, "gradient": 5e-2, "logprobs": 0.2}}
_TOKENS = TokenSettings(max_prompt_tokens=128, max_response_tokens=192)
_QUIET = {"epochs": 1, "save_every": 10**9, "log_every": 10**9}


def measure(place: Place) -> Iterator[Figure]:
    """Compare SFT, RM (K = 4) and PPO."""
    size = place.choose("small", "tiny")
    for stage, compute in (("sft", compute_sft), ("rm", compute_rm), ("ppo", compute_ppo)):
        expected = compute(size, make_hardware("float32", device="cpu"))
        for precision in ("float32", "bfloat16"):
            yield from attempt(f"{stage} {precision}", compare_stage(stage, compute, size, precision, expected))


def compare_stage(
    stage: str, compute: Callable[..., dict[str, torch.Tensor]], size: str, precision: str, expected: dict[str, torch.Tensor]
) -> Iterator[Figure]:
    """Compare one stage in one precision."""
    found = compute(size, make_hardware(precision))
    for name, limit in _LIMITS[precision].items():
        if name in expected:
            yield at_most(f"{stage} {precision}", name, compare(name, found[name], expected[name]), limit)


def compare(name: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Say how far two results are apart: relative to the expected one's norm, log-probabilities by the largest difference."""
    difference = found.double() - expected.double()
    return float(difference.abs().max() if name == "logprobs" else difference.norm() / expected.double().norm())


def compute_sft(size: str, hardware: HardwareSettings) -> dict[str, torch.Tensor]:
    """Compute one batch of 16 demonstrations of unequal lengths."""
    begin_anew()
    with tempfile.TemporaryDirectory() as directory:
        settings = SFTSettings(batch_size=16, micro_batch_size=16, **_QUIET)
        context = make_context("sft", settings, _TOKENS, hardware.precision, Path(directory), hardware=hardware)
        policy = open_policy(size, 0.025, hardware)
        trainer = make_sft_trainer(context, settings, policy, make_tokenizer(size), make_demonstrations(size, 16), [])
        return _compute_trainer(trainer)


def compute_rm(size: str, hardware: HardwareSettings) -> dict[str, torch.Tensor]:
    """Compute one batch of 4 comparisons of 4 answers."""
    begin_anew()
    with tempfile.TemporaryDirectory() as directory:
        settings = RMSettings(batch_size=4, micro_batch_size=4, **_QUIET)
        context = make_context("rm", settings, _TOKENS, hardware.precision, Path(directory), hardware=hardware)
        model = open_reward_model(size, 1, hardware)
        trainer = make_ranking_trainer(context, settings, model, make_tokenizer(size), make_comparisons(size, 4, 96, 64)[:4], [])
        return _compute_trainer(trainer)


def _compute_trainer(trainer: Any) -> dict[str, torch.Tensor]:
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.accelerator.prepare_model(trainer.model), batch)  # which enters the precision
    loss.backward()
    return {"loss": loss.detach().cpu(), "gradient": _flatten_gradients([trainer.model])}


def compute_ppo(size: str, hardware: HardwareSettings) -> dict[str, torch.Tensor]:
    """Compute figures of 16 responses, and the gradients of an update on them."""
    trainer, experience, figures = prepare_ppo(size, hardware)
    sums, _ = trainer.updater.accumulate_gradients(experience, 1024)
    modules = [trainer.actor.module, trainer.critic.module]
    mask_BR = experience.response_mask_BR
    logprobs = torch.cat([figures.logprobs_BR[mask_BR], figures.ref_logprobs_BR[mask_BR]])
    return {"loss": sums[2].cpu(), "gradient": _flatten_gradients(modules), "logprobs": logprobs.cpu()}


def prepare_ppo(size: str, hardware: HardwareSettings) -> tuple[PPOTrainer, Experience, TokenFigures]:
    """Make a trainer and an experience of 16 responses of unequal lengths, with advantages and returns of noise."""
    begin_anew()
    draw = random.Random(1)
    prompts = [draw_ids(draw, draw.randint(8, 64), size) for _ in range(16)]
    responses = [[*draw_ids(draw, draw.randint(4, 96), size), EOS] for _ in prompts]
    work = PPOWork(size, 0.025, 16, 8, 64, 64, ppo_epochs=1)
    settings = PPOSettings(iterations=10, rollout_batch_size=16, minibatch_size=16, max_tokens_per_microbatch=1024)
    models = open_models(work, hardware)
    sampling = Sampling(max_new_tokens=64, temperature=1.0, pad_token_id=PAD, eos_token_id=EOS, stop_token_id=EOS)
    ranks = Ranks(Accelerator(cpu=hardware.device == "cpu"))
    given = (models.actor_critic, models.ref_policy, models.reward_model, prompts, sampling, settings)
    trainer = PPOTrainer(ranks, *given, seed=0, engine=Engine("none", hardware, 1.0))
    rollout = pack_rollout(prompts, responses, [True] * 16, PAD, ranks.device)
    figures = trainer.evaluate_tokens(rollout)
    scores_B = trainer.ask_reward_model(rollout)
    mask_BR = rollout.response_mask_BR
    noise_BR = torch.randn(mask_BR.shape, generator=torch.Generator().manual_seed(0)).to(ranks.device)
    experience = Experience(
        **vars(rollout),
        old_logprobs_BR=figures.logprobs_BR,
        old_values_BR=figures.values_BR,
        advantages_BR=torch.where(mask_BR, noise_BR, 0.0),
        returns_BR=torch.where(mask_BR, noise_BR + scores_B[:, None], 0.0),
    )
    return trainer, experience, figures


def _flatten_gradients(modules: list[Any]) -> torch.Tensor:
    return torch.cat(
        [weight.grad.float().cpu().flatten() for module in modules for weight in module.parameters() if weight.grad is not None]
    )
