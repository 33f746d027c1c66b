"""Scores: where they are read."""

import pytest
import torch

from stages.responses.rollout import pack_rollout
from stages.responses.scores import Scorer, score_rollout


def test_the_score_is_read_at_the_last_response_token_though_pad_ids_stand_before_it(tiny):
    """A prompt that holds the pad id and a response that sampled it: looking for the first pad would read elsewhere."""
    reward_model = tiny.reward_model()
    prompt, response = [5, tiny.pad, 6], [7, tiny.pad, 8, tiny.eos]
    mates = pack_rollout([prompt, [3] * 6], [response, [4] * 7], [True, False], tiny.pad, torch.device("cpu"))
    with torch.no_grad():
        hidden = reward_model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
        expected = (reward_model.score(hidden).item() - reward_model.calibration.bias) / reward_model.calibration.scale
    assert score_rollout(Scorer(reward_model), mates, mates.split(2))[0].item() == pytest.approx(expected, abs=1e-5)


def test_the_reward_model_sees_nothing_after_the_stop_token(tiny):
    reward_model = tiny.reward_model()
    seen, expected = [], [5, 6, 7, tiny.eos, 9, 10, 11, 8, 8, 8]
    reward_model.model.register_forward_pre_hook(
        lambda _module, _arguments, options: seen.append(options["input_ids"][0, : len(expected)].tolist()), with_kwargs=True
    )
    rollout = pack_rollout([[5, 6], [9, 10, 11]], [[7, tiny.eos], [8, 8, 8]], [True, False], tiny.pad, torch.device("cpu"))
    score_rollout(Scorer(reward_model), rollout, rollout.split(1000))
    assert seen == [expected]
