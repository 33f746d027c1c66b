"""Rows of 32,768 tokens and a vocabulary of 128,256: no tensor holds logits of all of them, 15.7 GB in float32, whatever a stage does."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from pytest import mark
from transformers import LlamaConfig

from stages.blocks import HardwareSettings, TokenSettings
from stages.internals import fakes
from stages.models.kernels import as_on_a_gpu
from stages.spec import STAGES
from stages.tracing.job import Job, try_family
from stages.tracing.live import Live, get_leaves
from stages.tracing.report import TraceSpec
from stages.tracing.work import trace

PROMPT, RESPONSE, VOCABULARY = 31_744, 1_024, 128_256
CASES = {  # what each takes is the longest row, once
    "sft": {"batch_size": 2, "micro_batch_size": 1, "eval_samples": 1},
    "rm": {"batch_size": 1, "micro_batch_size": 1},
    "ppo": {"rollout_batch_size": 2, "minibatch_size": 2, "max_tokens_per_microbatch": PROMPT + RESPONSE, "rollout_micro_batch_size": 2},
    "evaluate": {"batch_size": 2, "prompts": 2, "policy_samples": 2},
}


class Largest(Live):
    """Also keeps the largest tensor that an operation made: (bytes, shape, operation)."""

    def __init__(self):
        super().__init__()
        self.largest = (0, (), "")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = super().__torch_dispatch__(function, types, args, kwargs)
        for tensor in get_leaves(made):
            if tensor.device.type != "meta":
                self.largest = max(self.largest, (tensor.untyped_storage().nbytes(), tuple(tensor.shape), str(function)))
        return made


@mark.slow
@mark.parametrize(("stage", "on_gpu"), [("sft", False), ("rm", False), ("ppo", True), ("evaluate", True)])
def test_no_tensor_holds_the_logits_of_a_long_row(stage, on_gpu):
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=VOCABULARY,
        max_position_embeddings=PROMPT + RESPONSE,
    )
    recomputes = {} if stage == "evaluate" else {"gradient_checkpointing": True}
    spec = TraceSpec(
        base_model="none",
        tokens=TokenSettings(max_prompt_tokens=PROMPT, max_response_tokens=RESPONSE),
        hardware=HardwareSettings(precision="bfloat16"),
        stages={stage: STAGES[stage].settings(**CASES[stage], **recomputes).model_dump(mode="json")},
        report_path="none",
        on_gpu=on_gpu,
    )
    tried, live = try_family(config), Largest()
    with fakes(), live, as_on_a_gpu() if on_gpu else nullcontext():
        trace(Job(spec, stage, config, tried, 2, live, Accelerator(cpu=True)))
    most, shape, operation = live.largest
    whole = (PROMPT + RESPONSE) * VOCABULARY * torch.float32.itemsize
    assert 2**20 < most <= whole / 12, f"{most / 2**30:.2f} GB by {operation}: {shape}"
