"""Sampling: the plain distribution, cut after the first stop token, nothing overwritten, seeds."""

import torch

from stages.ppo.rollout import cut_response, roll_out

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def sample(tiny, policy, prompts=PROMPTS, seed=0, batch_size=64, greedy=False, **changes):
    return roll_out(policy, prompts, tiny.sampling(**changes), seed=seed, batch_size=batch_size, autocast=torch.no_grad(), greedy=greedy)


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


def test_generation_samples_from_the_models_own_distribution(tiny):
    """Not greedy, no top-k, no top-p: each first token comes up as often as its probability says."""
    policy, count = tiny.policy(), 4000
    rollout = sample(tiny, policy, [[5, 6, 7]] * count, max_new_tokens=1, temperature=1.3, batch_size=count)
    with torch.no_grad():
        probabilities = (policy(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1] / 1.3).softmax(-1)
    frequencies = rollout.response_ids_BR[:, 0].bincount(minlength=tiny.vocabulary) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() < 4.5 * error + 1e-3).all()


def test_a_base_models_generation_config_never_leaks_in(tiny):
    plain, loaded = tiny.policy(), tiny.policy()
    own = loaded.generation_config
    own.repetition_penalty, own.top_k, own.min_p, own.suppress_tokens, own.no_repeat_ngram_size = 5.0, 1, 0.9, [3, 4, 5, 6], 1
    own.min_new_tokens, own.max_new_tokens, own.forced_eos_token_id = 7, 2, tiny.eos
    assert responses(sample(tiny, loaded)) == responses(sample(tiny, plain))
    assert loaded.generation_config is own and own.repetition_penalty == 5.0


def test_a_response_is_cut_after_its_first_stop_token(tiny):
    sampling = tiny.sampling()
    assert cut_response([5, 6, tiny.eos, 7, tiny.eos], sampling) == [5, 6, tiny.eos]
    assert cut_response([tiny.eos, 4], sampling) == [tiny.eos]
    assert cut_response([5, tiny.pad, 6], sampling) == [5, tiny.pad, 6]  # a sampled pad token is a token like any other


def test_an_end_token_is_never_forced_onto_an_unfinished_response(tiny):
    rollout = sample(tiny, biased_policy(tiny, tiny.eos, -1e9), max_new_tokens=6)
    assert not rollout.finished_B.any()
    assert rollout.response_mask_BR.all() and rollout.response_ids_BR.shape[1] == 6
    assert not (rollout.response_ids_BR == tiny.eos).any()


def test_sampled_tokens_are_never_overwritten(tiny, monkeypatch):
    policy = tiny.policy()
    drawn = []
    plain_generate = type(policy).generate

    def record(self, *arguments, **options):
        output = plain_generate(self, *arguments, **options)
        drawn.extend(output[:, options["input_ids"].shape[1] :].tolist())
        return output

    monkeypatch.setattr(type(policy), "generate", record)
    rollout = sample(tiny, policy, max_new_tokens=5)
    for raw, kept in zip(drawn, responses(rollout), strict=True):
        assert raw[: len(kept)] == kept
        assert kept[-1] == tiny.eos or len(kept) == 5


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
