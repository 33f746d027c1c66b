"""Rollouts: prompts as they were, which responses are finished, seeds."""

import torch
from transformers import AutoTokenizer

from stages.responses.engine import TorchEngine, roll_out
from stages.responses.stop import StopText

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def sample(tiny, policy, prompts=PROMPTS, seed=0, batch_size=64, greedy=False, **changes):
    engine, actor = TorchEngine(batch_size), tiny.actor_learner(policy)
    return roll_out(engine, actor, prompts, tiny.sampling(**changes), seed=seed, greedy=greedy)


def responses(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.response_ids_BR, rollout.response_mask_BR, strict=True)]


def biased_policy(tiny, token, bias, **changes):
    """A policy that likes one token more: the output layer gets a bias."""
    policy = tiny.policy(**changes)
    head = torch.nn.Linear(policy.config.hidden_size, tiny.vocabulary)
    head.weight = policy.lm_head.weight
    head.bias.data.zero_()
    head.bias.data[token] = bias
    policy.lm_head = head
    return policy


def test_prompts_come_back_as_they_were_padded_on_the_left(tiny):
    rollout = sample(tiny, tiny.policy())
    assert [row[mask].tolist() for row, mask in zip(rollout.prompt_ids_BP, rollout.prompt_mask_BP, strict=True)] == PROMPTS
    assert rollout.prompt_mask_BP[:, -1].all()


def test_an_end_token_is_never_forced_onto_an_unfinished_response(tiny):
    rollout = sample(tiny, biased_policy(tiny, tiny.eos, -1e9), max_new_tokens=6)
    assert not rollout.finished_B.any()
    assert rollout.response_mask_BR.all() and rollout.response_ids_BR.shape[1] == 6
    assert not (rollout.response_ids_BR == tiny.eos).any()


def test_a_response_ends_with_the_stop_token_or_the_end_token(tiny):
    rollout = sample(tiny, biased_policy(tiny, tiny.stop, 1.0), PROMPTS * 20, stop_token_id=tiny.stop)
    ends = set()
    for ids in responses(rollout):
        assert not {tiny.stop, tiny.eos} & set(ids[:-1])
        assert ids[-1] in (tiny.stop, tiny.eos) or len(ids) == 8
        ends.add(ids[-1])
    assert {tiny.stop, tiny.eos} < ends


def test_finished_is_told_by_the_configured_stop_token_and_not_by_the_end_token(tiny):
    loves_stop = sample(tiny, biased_policy(tiny, tiny.stop, 50.0), stop_token_id=tiny.stop)
    assert loves_stop.finished_B.all() and responses(loves_stop) == [[tiny.stop]] * 3
    loves_end = sample(tiny, biased_policy(tiny, tiny.eos, 50.0), stop_token_id=tiny.stop)
    assert not loves_end.finished_B.any() and responses(loves_end) == [[tiny.eos]] * 3


def test_the_seed_decides_the_responses_and_the_global_generator_is_left_alone(tiny):
    policy = tiny.policy()
    before = torch.get_rng_state()
    first, again, other = (responses(sample(tiny, policy, PROMPTS * 4, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_greedy_takes_the_likeliest_token(tiny):
    policy = tiny.policy()
    rollout = sample(tiny, policy, [[5, 6, 7]], greedy=True, max_new_tokens=3)
    ids = [5, 6, 7]
    for token in responses(rollout)[0]:
        with torch.no_grad():
            assert token == policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        ids.append(token)


def test_a_text_of_several_tokens_ends_a_response_in_whatever_tokens_it_is_said(tiny, base_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(base_model_dir)
    policy = tiny.policy(vocab_size=len(tokenizer))
    free = responses(sample(tiny, policy, PROMPTS * 30, max_new_tokens=40, eos_token_id=-1, stop_token_id=-1))
    texts = [tokenizer.decode(ids) for ids in free]
    wanted = texts[0][5:8]  # an untrained policy says anything; these three letters, over the borders of tokens
    stopped = sample(
        tiny, policy, PROMPTS * 30, max_new_tokens=40, eos_token_id=-1, stop_token_id=-1, stop_text=StopText(wanted, tokenizer)
    )
    ends = []
    for ids, cut, finished in zip(free, responses(stopped), stopped.finished_B.tolist(), strict=True):
        lengths = [length for length in range(1, 41) if wanted in tokenizer.decode(ids[:length])]
        assert cut == ids[: lengths[0] if lengths else 40] and finished == bool(lengths)
        ends.append(bool(lengths))
    assert ends[0] and not all(ends)


def test_the_end_token_leaves_a_response_unfinished_that_waits_for_a_text(tiny, base_model_dir):
    stop = StopText("\n\nUser:", AutoTokenizer.from_pretrained(base_model_dir))
    loves_end = sample(tiny, biased_policy(tiny, tiny.eos, 50.0), stop_text=stop)
    assert responses(loves_end) == [[tiny.eos]] * 3 and not loves_end.finished_B.any()
