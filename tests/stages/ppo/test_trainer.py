"""Whole iterations on tiny real models: the invariants, what moves and what does not, resume, and learning."""

import math

import pytest
import torch

from stages.process.errors import StageError
from tests.stages.tiny_models import PROMPTS


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_ratio_starts_at_one_in_every_iteration_and_the_kl_at_zero(make_trainer, tiny, temperature):
    trainer = make_trainer(sampling=tiny.sampling(temperature=temperature), temperature=temperature)
    first = trainer.step()
    assert first["objective/kl"] == first["objective/kl_k3"] == 0.0
    assert first["objective/rlhf_reward"] == first["objective/scores"]
    later = [trainer.step() for _ in range(3)]
    assert all(metrics["val/ratio_start_deviation"] < 1e-5 for metrics in [first, *later])
    assert all(metrics["rollout/logprob_gap"] < 1e-5 for metrics in [first, *later])  # what sampled is what is learnt from
    assert later[-1]["objective/kl_k3"] > 0
    assert later[-1]["policy/approxkl_avg"] > 0  # the policy did move between the first step and the last


def test_the_invariants_hold_in_bfloat16_too(make_trainer):
    trainer = make_trainer(bfloat16=True)
    metrics = trainer.step()
    assert metrics["objective/kl"] == 0.0
    assert metrics["val/ratio_start_deviation"] < 0.05  # rounding of bfloat16 in differently padded micro-batches


def test_an_iteration_tells_what_it_does_and_how_much_of_it_is_done(make_trainer):
    trainer, told = make_trainer(ppo_epochs=2), []
    trainer.tell = lambda *words: told.append(words)
    metrics = trainer.step()
    settings = trainer.settings
    steps = 2 * settings.rollout_batch_size // settings.minibatch_size
    answered = [done for doing, done, total in told if doing == "responses" and total == settings.rollout_batch_size]
    assert answered == sorted(answered) and answered[-1] >= 1
    scored = told.index(("scores", 0, settings.rollout_batch_size))
    assert [words[0] for words in told[:scored]] == ["responses"] * scored
    assert told[scored + 1 :] == [("minibatches", number, steps) for number in range(steps)]
    assert metrics["objective/kl"] == 0.0


def test_after_one_iteration_every_trainable_parameter_has_moved_and_no_frozen_one(make_trainer, tiny):
    trainer = make_trainer()

    def snapshot(module):
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    trained, frozen = tiny.both_of(trainer), [trainer.reference.policy, trainer.scorer.reward_model]
    before, frozen_before = snapshot(trained), [snapshot(module) for module in frozen]
    trainer.step()
    assert [name for name, value in snapshot(trained).items() if torch.equal(value, before[name])] == []
    for module, values in zip(frozen, frozen_before, strict=True):
        for name, value in snapshot(module).items():
            assert torch.equal(value, values[name]), name
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())


def test_policy_and_critic_have_learning_rates_of_their_own_that_warm_up_and_decay(make_trainer):
    trainer = make_trainer(iterations=4, warmup_steps=2, learning_rate=1e-3, critic_learning_rate=4e-3)
    rows = [trainer.step() for _ in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    assert [row["critic_lr"] for row in rows] == pytest.approx([2e-3, 4e-3, 4e-3, 2e-3])


class Listener:
    """Takes the place of the updater: keeps the experience, and the iteration ends there."""

    def update(self, experience, seed, **options):
        self.experience = experience
        raise InterruptedError


def test_the_experience_equals_the_papers_formulas_written_as_loops(make_trainer):
    """From the first state to the whitened advantage, on a real rollout: score, penalty, GAE, whitening, returns before whitening."""
    trainer = make_trainer(kl_coef=0.3, gae_lambda=0.9, gamma=0.97, missing_eos_score=-3.0, ref_policy=None)
    trainer.step()  # so that policy and reference differ
    trainer.updater = Listener()
    with pytest.raises(InterruptedError):
        trainer.step()
    found = trainer.updater.experience
    calibration = trainer.scorer.reward_model.calibration
    rows, answers = [], []
    for row in range(8):
        prompt = found.prompt_ids_BP[row][found.prompt_mask_BP[row]].tolist()
        response = found.response_ids_BR[row][found.response_mask_BR[row]].tolist()
        kl, values = [], []
        with torch.no_grad():
            for t, token in enumerate(response):
                state = torch.tensor([prompt + response[:t]])
                logprob, ref_logprob = (
                    model(input_ids=state).logits[0, -1].log_softmax(-1)[token].item()
                    for model in (trainer.policy, trainer.reference.policy)
                )
                kl.append(logprob - ref_logprob)
                critic = trainer.critic.module
                values.append(critic.head(critic.backbone(input_ids=state).last_hidden_state[0, -1]).item())
            hidden = trainer.scorer.reward_model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
            score = (trainer.scorer.reward_model.score(hidden).item() - calibration.bias) / calibration.scale
        answers.append(([-0.3 * x for x in kl], values, score, response[-1] == trainer.sampling.stop_token_id))
    finished = [score for *_, score, ended in answers if ended]
    assert 0 < len(finished) < 8
    for rewards, values, score, ended in answers:
        rewards[-1] += score if ended else min(score, -3.0, sum(finished) / len(finished) - 3.0)
        advantages = [
            sum(
                (0.97 * 0.9) ** (s - t) * (rewards[s] + 0.97 * (values[s + 1] if s + 1 < len(values) else 0.0) - values[s])
                for s in range(t, len(values))
            )
            for t in range(len(values))
        ]
        rows.append((values, advantages))
    everything = [a for _, advantages in rows for a in advantages]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((a - mean) ** 2 for a in everything) / len(everything))
    for row, (values, advantages) in enumerate(rows):
        for t, (value, advantage) in enumerate(zip(values, advantages, strict=True)):
            assert found.advantages_BR[row, t].item() == pytest.approx((advantage - mean) / std, abs=2e-4)
            assert found.returns_BR[row, t].item() == pytest.approx(advantage + value, abs=1e-4)


def test_adaptive_kl_coef_moves_after_the_rollout_it_was_measured_on(make_trainer):
    trainer = make_trainer(kl_coef=0.1, kl_target=5.0, kl_horizon=80)
    first, second = trainer.step(), trainer.step()
    assert first["kl_coef"] == 0.1
    assert second["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 80))  # KL 0 at the start: the error is clipped at -20 %


def test_scores_that_are_not_finite_stop_the_stage_by_name(make_trainer, tiny):
    reward_model = tiny.reward_model()
    reward_model.score.weight.data[0, 0] = float("nan")
    with pytest.raises(StageError, match="scores of the reward model are not finite"):
        make_trainer(reward_model=reward_model).step()


def test_weights_that_are_not_finite_stop_the_stage_before_anything_samples_from_them(make_trainer):
    trainer = make_trainer(ppo_epochs=1, minibatch_size=8, learning_rate=1e-30, critic_learning_rate=1e38, adam_epsilon=1e-30)
    with pytest.raises(StageError, match=r"iteration 1: \d+ trained weights .* not finite; .* lower ppo.learning_rate"):
        trainer.step()


def test_a_loss_that_is_not_finite_stops_the_stage_by_name(make_trainer):
    trainer = make_trainer(learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(StageError, match=r"iteration \d+: \w+ is (nan|inf); needed: a finite number"):
        for _ in range(5):
            trainer.step()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_scores": True, "whiten_rewards": True, "kl_target": 3.0, "score_clip": 1.0},
        {"ema_decay": 0.9, "ptx_coef": 0.5, "ptx_batch_size": 3, "critic_warmup_iterations": 1},
    ],
)
@pytest.mark.slow
def test_a_resumed_run_equals_a_straight_one_to_the_last_bit(make_trainer, tiny, tmp_path, changes):
    changes = changes | {"demonstrations": tiny.demonstrations()}
    straight = make_trainer(**changes)
    rows = [straight.step() for _ in range(5)]
    interrupted = make_trainer(**changes)
    for _ in range(2):
        interrupted.step()
    interrupted.save(tmp_path, {"note": "kept"})
    torch.rand(7)  # other noise in between
    resumed = make_trainer(**changes)
    assert resumed.load(tmp_path)["note"] == "kept"
    resumed_rows = [resumed.step() for _ in range(3)]
    for row, resumed_row in zip(rows[2:], resumed_rows, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith("time/")} == {
            k: v for k, v in resumed_row.items() if not k.startswith("time/")
        }
    others = tiny.both_of(resumed).state_dict()
    for name, value in tiny.both_of(straight).state_dict().items():
        assert torch.equal(value, others[name]), name
    if straight.average:
        for name, value in straight.average.averages.items():
            assert torch.equal(value, resumed.average.averages[name]), name


def test_metrics_stand_under_their_usual_keys(make_trainer):
    metrics = make_trainer().step()
    needed = {"objective/scores", "objective/kl", "objective/rlhf_reward", "objective/entropy", "policy/approxkl_avg"}
    needed |= {"policy/clipfrac_avg", "val/clipfrac_avg", "val/explained_variance", "val/ratio", "val/ratio_var", "eos_rate"}
    needed |= {"response_length", "kl_coef", "lr", "episodes", "time/tokens_per_s", "val/ratio_start_deviation"}
    assert needed <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["episodes"] == 8


class ShareOfToken(torch.nn.Module):
    """Takes the place of the reward model: a response's score is its share of a token."""

    def __init__(self, token):
        super().__init__()
        self.token = token
        self.prompt_lengths = {prompt[0]: len(prompt) for prompt in PROMPTS}

    def forward(self, row):
        documents = [row.ids_N[start : start + length] for start, length in zip(row.starts_D, row.lengths_D, strict=True)]
        responses = [ids[self.prompt_lengths[int(ids[0])] :] for ids in documents]
        return torch.stack([(ids == self.token).float().mean() for ids in responses])


@pytest.mark.slow
def test_a_random_policy_learns_to_say_the_rewarded_token(make_trainer):
    """Learning, end to end: the score is the share of token 7 in a response; chance is about 1 in 16."""
    trainer = make_trainer(
        iterations=40,
        rollout_batch_size=32,
        rollout_micro_batch_size=32,
        minibatch_size=16,
        max_tokens_per_microbatch=1024,
        learning_rate=1e-2,
        missing_eos_score=None,
        kl_coef=0.0,
    )
    trainer.scorer = ShareOfToken(7)
    scores = [trainer.step()["objective/scores"] for _ in range(40)]
    assert sum(scores[:5]) / 5 < 0.25
    assert sum(scores[-5:]) / 5 > 0.8, scores


@pytest.mark.slow
def test_a_kl_penalty_keeps_the_policy_nearer_to_the_reference(make_trainer):
    def train(kl_coef):
        trainer = make_trainer(iterations=15, learning_rate=1e-2, kl_coef=kl_coef, max_tokens_per_microbatch=64, rollout_micro_batch_size=8)
        return sum([trainer.step()["objective/kl"] for _ in range(15)][-3:]) / 3

    assert train(5.0) < 0.5 * train(0.0)
