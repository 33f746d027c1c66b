"""Policy and critic: which position belongs to which token, padding parity, the critic's start."""

import copy
from dataclasses import replace

import pytest
import torch

from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import count_filling
from stages.ppo.actor_critic import Actor, init_critic
from stages.responses.figures import evaluate_tokens
from stages.responses.rollout import pack_rollout
from stages.responses.scores import Scorer, score_rollout


def score_after(reward_model, ids):
    """The plain way: transformers' own classification head on one unpadded sequence."""
    with torch.no_grad():
        logit = reward_model(input_ids=torch.tensor([ids])).logits[0, 0].item()
    return (logit - reward_model.calibration.bias) / reward_model.calibration.scale


def test_a_three_token_answer_reads_logprobs_and_values_before_each_token(tiny):
    """Prompt p0 p1, answer a b EOS: token a is chosen in the state after p1, b after a, EOS after b."""
    policy, reward_model = tiny.policy(), tiny.reward_model()
    prompt, answer = [5, 6], [7, 8, tiny.eos]
    rollout = pack_rollout([prompt, [3, 4, 5, 6]], [answer, [9] * 5], [True, False], tiny.pad, torch.device("cpu"))
    actor, critic = Actor(policy), init_critic(copy.deepcopy(reward_model))
    row, predictors = rollout.pack()
    with torch.no_grad():
        logprobs, values = rollout.unpack(actor(row, predictors, 1.0)[0]), rollout.unpack(critic(row, predictors))
    for t in range(3):
        state = prompt + answer[:t]  # what was there when token t was chosen
        with torch.no_grad():
            expected = policy(input_ids=torch.tensor([state])).logits[0, -1].log_softmax(-1)[answer[t]]
        assert logprobs[0, t].item() == pytest.approx(expected.item(), abs=1e-5)
        assert values[0, t].item() == pytest.approx(score_after(reward_model, state), abs=1e-5)


def test_the_critic_starts_as_the_reward_model_bias_and_scale_included(tiny):
    reward_model = tiny.reward_model(score_bias=0.4, score_scale=2.5)
    rollout = tiny.rollout()
    scores = score_rollout(Scorer(reward_model), rollout, rollout.split(1000))
    critic = init_critic(copy.deepcopy(reward_model))
    row, _ = rollout.pack()
    with torch.no_grad():
        values = critic(row, row.lasts_D)
    torch.testing.assert_close(values, scores, atol=1e-5, rtol=1e-5)
    assert critic.head.bias.requires_grad


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 20, 1000])
def test_logprobs_values_and_scores_do_not_depend_on_padding_or_batch_mates(tiny, max_tokens, packed):
    rollout = tiny.rollout()
    both, ref_policy, reward_model = tiny.both(), tiny.policy(seed=5), tiny.reward_model(seed=6)
    if not packed:
        for model in (both.policy, ref_policy, reward_model):
            model.set_attn_implementation("sdpa")
    micro_batches = rollout.split(max_tokens)
    figures = evaluate_tokens(both.actor, both.critic, Actor(ref_policy), rollout, 0.8, micro_batches)
    logprobs, ref_logprobs, values, entropies = vars(figures).values()
    scores = score_rollout(Scorer(reward_model), rollout, micro_batches)
    for row in range(len(rollout.finished_B)):
        prompt = rollout.prompt_ids_BP[row][rollout.prompt_mask_BP[row]].tolist()
        response = rollout.response_ids_BR[row][rollout.response_mask_BR[row]].tolist()
        for t, token in enumerate(response):
            state = torch.tensor([prompt + response[:t]])
            with torch.no_grad():
                for model, found in ((both.policy, logprobs), (ref_policy, ref_logprobs)):
                    expected = (model(input_ids=state).logits[0, -1] / 0.8).log_softmax(-1)[token].item()
                    assert found[row, t].item() == pytest.approx(expected, abs=1e-5)
                hidden = both.critic.backbone(input_ids=state).last_hidden_state[0, -1]
                assert values[row, t].item() == pytest.approx(both.critic.head(hidden).item(), abs=1e-5)
        with torch.no_grad():
            hidden = reward_model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
        expected_score = (reward_model.score(hidden).item() - reward_model.calibration.bias) / reward_model.calibration.scale
        assert scores[row].item() == pytest.approx(expected_score, abs=1e-5)
        assert (
            not logprobs[row, len(response) :].any()
            and not values[row, len(response) :].any()
            and not entropies[row, len(response) :].any()
        )


def test_logits_are_computed_for_response_tokens_only_and_in_chunks(tiny, monkeypatch):
    policy, rollout = tiny.policy(), tiny.rollout()
    row, predictors = rollout.pack()
    seen = []
    policy.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    whole, _ = compute_token_logprobs(policy, row, predictors, 0.7)
    whole.sum().backward()
    gradients = [parameter.grad.clone() for parameter in policy.parameters()]
    num_tokens = int(rollout.response_lengths_B.sum())
    assert seen == [num_tokens + count_filling(num_tokens)]

    seen.clear()
    policy.zero_grad()
    monkeypatch.setattr("stages.models.logprobs._MAX_LOGITS", 10 * tiny.vocabulary)
    chunked, _ = compute_token_logprobs(policy, row, predictors, 0.7)
    chunked.sum().backward()
    assert max(seen) == 10 and sum(seen) == 2 * (
        num_tokens + count_filling(num_tokens)
    )  # again in the backward pass: no more than a chunk is ever held
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-5)


def test_under_bfloat16_autocast_values_and_logprobs_are_float32(tiny):
    rollout = tiny.rollout()
    both, given = tiny.both(), (rollout, 1.0, rollout.split(1000))
    exact = evaluate_tokens(both.actor, both.critic, both.actor, *given)
    tiny.compute_in_bfloat16(both.policy, both.critic.backbone)
    found = evaluate_tokens(both.actor, both.critic, both.actor, *given)
    assert {figure.dtype for figure in vars(found).values()} == {torch.float32}
    # bfloat16 really ran, and nothing worse than its rounding happened
    assert 0 < (found.logprobs_BR - exact.logprobs_BR).abs().max() < 0.2
    assert 0 < (found.values_BR - exact.values_BR).abs().max() < 0.2


@pytest.mark.parametrize("max_tokens", [1, 17, 30, 1000])
def test_micro_batches_hold_every_response_once_and_keep_to_their_tokens(tiny, max_tokens):
    rollout = tiny.rollout()
    lengths = rollout.prompt_mask_BP.sum(dim=1) + rollout.response_mask_BR.sum(dim=1)
    parts = rollout.split(max_tokens)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or lengths[part].sum() <= max_tokens for part in parts)
    for rows in parts:
        part = rollout.select(rows)
        row, predictors = part.pack()
        expected = [token for index in rows for token in rollout.response_ids_BR[index][rollout.response_mask_BR[index]].tolist()]
        assert row.ids_N[predictors + 1].tolist() == expected
        assert row.lengths_D.sum() == lengths[rows].sum()  # no padding


def test_the_tensors_of_a_wrong_shape_or_type_are_refused(tiny):
    rollout = tiny.rollout()
    with pytest.raises(ValueError, match="do not fit"):
        type(rollout)(
            rollout.prompt_ids_BP,
            rollout.prompt_mask_BP,
            rollout.response_ids_BR,
            rollout.response_mask_BR[:, 1:],
            rollout.finished_B,
            rollout.engine_logprobs_BR,
        )
    with pytest.raises(ValueError, match="engine_logprobs_BR"):
        replace(rollout, engine_logprobs_BR=rollout.engine_logprobs_BR[:, 1:])
    with pytest.raises(ValueError, match="no token"):
        type(rollout)(
            rollout.prompt_ids_BP,
            rollout.prompt_mask_BP,
            rollout.response_ids_BR,
            torch.zeros_like(rollout.response_mask_BR),
            rollout.finished_B,
            rollout.engine_logprobs_BR,
        )


def test_logprobs_are_those_of_the_sampling_temperature(tiny):
    policy, rollout, critic = tiny.policy(), tiny.rollout(), tiny.both().critic
    mask = torch.cat([rollout.prompt_mask_BP, rollout.response_mask_BR], dim=1)
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = policy(input_ids=rollout.input_ids_BT, attention_mask=mask.long(), position_ids=positions).logits
    num_prompt_tokens = rollout.prompt_ids_BP.shape[1]
    distribution = torch.distributions.Categorical(logits=logits[:, num_prompt_tokens - 1 : -1] / 0.5)
    found = evaluate_tokens(Actor(policy), critic, Actor(policy), rollout, 0.5, rollout.split(1000))
    expected = torch.where(rollout.response_mask_BR, distribution.log_prob(rollout.response_ids_BR), 0.0)
    for logprobs in (found.logprobs_BR, found.ref_logprobs_BR):
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
