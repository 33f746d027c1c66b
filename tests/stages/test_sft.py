"""What SFT reports of its model."""

import json
import shutil

import pytest
import torch

from data.tokens import EncodedPair
from stages import language
from stages.models import logprobs
from stages.models.policy import load_policy
from stages.process.context import StageContext


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
        sums, counts = language.heldout_losses(model, pairs)
        assert sum(sums) / sum(counts) == pytest.approx(-sum(found_logprobs) / len(found_logprobs), rel=1e-5)


def test_weights_that_the_models_config_leaves_out_are_warned_of(make_stage, base_model_dir, tmp_path):
    # A config.json of another model: half of the layers, or all biases, would be left away without a word.
    base = shutil.copytree(base_model_dir, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    spec = make_stage("sft", models={"base": base}).spec
    model = language.load_learner(StageContext(spec), spec.settings)
    assert len(model.model.layers) == 1
    told = [event["message"] for line in spec.events_path.read_text().splitlines() if (event := json.loads(line))["event"] == "warning"]
    assert (
        len(told) == 1
        and told[0].startswith(f"{base}: found ")
        and "tensors that LlamaForCausalLM does not read (model.layers.1." in told[0]
    )
