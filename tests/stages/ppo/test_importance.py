"""Responses that another engine sampled: weights of their tokens, the gap to the trainer's figures, the guard."""

import math

import pytest
import torch

from stages.ppo.guards import require_same_numbers, require_same_policy
from stages.ppo.losses import compute_importance_weights, compute_policy_losses
from stages.ppo.metrics import describe_engine
from stages.process.errors import StageError
from stages.responses.engine import TorchEngine
from stages.responses.figures import TokenFigures
from stages.responses.rollout import Rollout
from stages.settings import RolloutSettings
from stages.spec import EXIT_VERIFICATION

MASK = torch.tensor([[True, True, True], [True, False, False]])
TRAINER = torch.tensor([[math.log(0.5), math.log(0.1), math.log(0.9)], [math.log(0.2), 0.0, 0.0]])
ENGINE = torch.tensor([[math.log(0.25), math.log(0.2), math.log(0.1)], [math.log(0.2), -7.0, 0.0]])


def test_weights_are_ratios_up_to_the_cap_by_hand():
    weights = compute_importance_weights(TRAINER, ENGINE, MASK, 3.0)
    assert torch.allclose(weights, torch.tensor([[2.0, 0.5, 3.0], [1.0, 1.0, 1.0]]))


def test_weighted_advantages_weigh_the_loss():
    torch.manual_seed(0)
    logprobs, old, advantages, weights = -torch.rand(4, 6), -torch.rand(4, 6), torch.randn(4, 6), 2 * torch.rand(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    weighed = compute_policy_losses(logprobs, old, advantages * weights, mask, 0.2)
    assert torch.allclose(weighed, weights * compute_policy_losses(logprobs, old, advantages, mask, 0.2))


def test_the_gap_and_the_share_of_capped_tokens_by_hand():
    figures = TokenFigures(TRAINER, TRAINER, TRAINER, TRAINER)
    ids = MASK.long()
    rollout = Rollout(ids, MASK, ids, MASK, torch.tensor([True, True]), engine_logprobs_BR=ENGINE)
    metrics = describe_engine(rollout, figures, 3.0, lambda tensor: tensor)
    assert metrics["rollout/logprob_gap"] == pytest.approx((math.log(2) + math.log(2) + math.log(9) + 0) / 4)
    assert metrics["rollout/importance_capped"] == pytest.approx(1 / 4)
    assert "rollout/importance_capped" not in describe_engine(rollout, figures, None, lambda tensor: tensor)


def test_an_engine_that_samples_from_another_model_is_refused():
    require_same_policy(0.02, 1)
    with pytest.raises(StageError, match=r"iteration 3: .* 1\.5 nats a token .* at most 0\.3 is needed"):
        require_same_policy(1.5, 3)


class Stale(TorchEngine):
    """Samples from a policy that it was given once."""

    def __init__(self, actor):
        super().__init__(64)
        self.actor = actor

    def answer(self, actor, *arguments, **options):
        return super().answer(self.actor, *arguments, **options)


def test_a_trainer_notices_weights_that_did_not_arrive(tiny, make_trainer):
    trainer = make_trainer(rollout=RolloutSettings(engine="vllm"))
    trainer.rollout_engine = Stale(tiny.actor_learner(tiny.policy(seed=9)))
    with pytest.raises(StageError, match="samples from another model"):
        trainer.step()


def test_the_torch_engine_says_what_the_trainer_says(make_trainer):
    metrics = make_trainer().step()
    assert metrics["rollout/logprob_gap"] < 1e-5
    assert "rollout/importance_capped" not in metrics


def test_a_first_rollout_of_our_own_engine_that_the_update_would_not_say_stops(tiny, make_trainer):
    trainer = make_trainer()
    trainer.rollout_engine = Stale(tiny.actor_learner(tiny.policy(seed=9)))
    with pytest.raises(StageError, match=r"^iteration 1: found sampled tokens .* needed: at most 0\.001, ") as caught:
        trainer.step()
    assert caught.value.exit_code == EXIT_VERIFICATION


def test_rounding_of_bfloat16_is_allowed_where_that_is_computed_in():
    require_same_numbers(0.02, computes_in_bfloat16=True)
    require_same_numbers(0.0005, computes_in_bfloat16=False)
    for gap, bfloat16 in ((0.2, True), (0.02, False), (math.nan, False)):
        with pytest.raises(StageError, match="nats a token away"):
            require_same_numbers(gap, computes_in_bfloat16=bfloat16)
