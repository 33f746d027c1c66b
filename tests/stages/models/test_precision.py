"""The precision policy: what stays float32, what may be bfloat16 without changing a bit, and what is said of a slow CPU."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models import precision
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.process.context import StageContext
from stages.settings import HardwareSettings

HARDWARE = HardwareSettings(device="cpu", precision="float32")
BFLOAT16 = HardwareSettings(device="cpu", precision="bfloat16")


def test_frozen_linear_weights_in_bfloat16_change_no_bit_under_autocast(base_model_dir):
    ids = torch.tensor([[1, 5, 9, 30]])
    outputs = {}
    for hardware in (HARDWARE, BFLOAT16):
        for load in (lambda path: load_policy(path, HARDWARE), lambda path: init_reward_model(path, HARDWARE, seed=1)):
            model = precision.freeze(load(str(base_model_dir)), hardware)
            with torch.no_grad(), precision.autocast(BFLOAT16, torch.device("cpu")):
                outputs[hardware.precision, type(model).__name__] = model(ids).logits
            dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
            assert dtypes["model.layers.0.mlp.up_proj.weight"] == getattr(torch, hardware.precision)
            assert dtypes["model.embed_tokens.weight"] == dtypes["model.norm.weight"] == torch.float32
            assert dtypes.get("score.weight", torch.float32) == torch.float32
            assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in ("LlamaForCausalLM", "LlamaForSequenceClassification"):
        assert torch.equal(outputs["float32", name], outputs["bfloat16", name])


def test_tied_embeddings_stay_float32():
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config.tie_word_embeddings = True
    model = precision.freeze(LlamaForCausalLM(config), BFLOAT16)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float32


def test_float32_head_gives_float32_scores_under_bfloat16_autocast(base_model_dir):
    model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    with torch.no_grad(), precision.autocast(BFLOAT16, torch.device("cpu")):
        assert model(torch.tensor([[1, 5, 9]])).logits.dtype == torch.float32


@pytest.mark.parametrize(("slowdowns", "said"), [((3.0, 2.0), True), ((0.4, 0.6), False), ((1.2, 1.1), False), ((0.5, 2.0), False)])
def test_a_cpu_that_is_slower_in_bfloat16_is_told(make_stage, monkeypatch, slowdowns, said):
    context = StageContext(make_stage("sft", hardware=BFLOAT16).spec)
    found = dict(zip((1024, 32), slowdowns, strict=True))
    monkeypatch.setattr(precision, "measure_slowdown", found.__getitem__)
    precision.note_slow_bfloat16(context)
    events = context.spec.events_path.read_text() if context.spec.events_path.exists() else ""
    assert ("hardware.precision: float32 is faster here" in events) == said
    assert ("3.0 times as long in training and 2.0 times as long in decoding" in events) == said


def test_the_slowdown_is_a_ratio_of_the_best_times(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 25, 30, 33, 40, 44, 100, 109, 110, 116, 120, 128, 130, 137, 140, 149])  # best: 2, then 6
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert precision.measure_slowdown(64) == 3.0
