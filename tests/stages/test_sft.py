"""What SFT reports of its model."""

import pytest
import torch

from data.tokens import EncodedPair
from stages import language
from stages.models import logprobs
from stages.models.policy import load_policy


def test_the_held_out_loss_is_one_of_tokens_however_many_logits_are_held(base_model_dir, plain_hardware, monkeypatch):
    model = load_policy(str(base_model_dir), plain_hardware)
    generator = torch.Generator().manual_seed(0)
    lengths = [(3, 5), (9, 1), (4, 12), (1, 2), (6, 6)]
    pairs = [EncodedPair(*(torch.randint(4, 800, (length,), generator=generator).tolist() for length in both)) for both in lengths]
    found_logprobs = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids + pair.response_ids])
        with torch.no_grad():
            found = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        found_logprobs += found[len(pair.prompt_ids) - 1 :].tolist()
    for num_tokens, num_logits in ((4096, 2**24), (20, 3 * 822), (1, 1)):  # all at once, a few, one
        monkeypatch.setattr(language, "_EVAL_TOKENS", num_tokens)
        monkeypatch.setattr(logprobs, "_MAX_LOGITS", num_logits)
        assert language.heldout_loss(model, pairs) == pytest.approx(-sum(found_logprobs) / len(found_logprobs), rel=1e-5)
