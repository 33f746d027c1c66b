"""Whole stages on a pretend GPU (tests/pretend_gpu.py): in bfloat16, with adapters, from loading to the published model."""

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

from stages.blocks import LoRASettings
from stages.process.context import StageContext
from stages.process.runtime import start_process
from stages.spec import STAGES
from tests.pretend_gpu import pretend_gpu

SETTINGS = {
    "sft": {"epochs": 1, "eval_samples": 3},
    "rm": {"epochs": 1},
    "ppo": {"iterations": 2, "eval_samples": 3},
    "evaluate": {"prompts": 4, "samples": 2, "comparisons": 4, "probe_prompts": 0},
}


@pytest.fixture
def run(make_stage, plain_hardware, base_model_dir, fresh_reward_model, monkeypatch):
    """run("sft", device, **settings) -> the finished stage, in this process."""
    # Switches of the whole process: what they are set to, tests/stages/process/test_gpu.py tells.
    monkeypatch.setattr("stages.process.runtime.prepare_gpu", lambda hardware: None)

    def run_here(stage, device, precision, **settings):
        models = {"base": base_model_dir, "sft": base_model_dir, "ppo": base_model_dir, "rm": fresh_reward_model}
        hardware = plain_hardware.model_copy(update={"device": device, "precision": precision, "attention": "auto"})
        inputs = {role: models[role] for role in STAGES[stage].models}
        made = make_stage(stage, tag=f"{device}-{precision}", models=inputs, hardware=hardware, rows=16, **SETTINGS[stage] | settings)
        for directory in (made.spec.output_dir, made.spec.checkpoint_dir):
            directory.mkdir()
        context = StageContext(made.spec)
        start_process(context)
        module = f"stages.{stage}.stage" if stage in ("ppo", "evaluate") else f"stages.{stage}"
        result = importlib.import_module(module).main(context)
        return made, result

    return run_here


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_a_stage_with_an_adapter_leaves_on_a_gpu_in_float32_the_weights_of_the_cpu(run, stage):
    lora = LoRASettings(rank=4, merge=True)
    expected, expected_result = run(stage, "cpu", "float32", lora=lora)
    with pretend_gpu():
        found, result = run(stage, "auto", "float32", lora=lora)
    assert result.device == "a pretend GPU"
    for name in ("model", "merged"):
        for path in sorted((expected.spec.output_dir / name).glob("*.safetensors")):
            ours, theirs = load_file(found.spec.output_dir / name / path.name), load_file(path)
            for key, weight in theirs.items():
                torch.testing.assert_close(ours[key], weight, atol=1e-4, rtol=1e-4, msg=f"{path.name} {key}")
    facts, expected_facts = (each.facts.model_copy(update={"score_bias": None}) for each in (result, expected_result))
    assert facts == expected_facts


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rm", "ppo", "evaluate"])
def test_a_stage_runs_in_bfloat16_on_a_gpu(run, stage):
    with pretend_gpu() as gpu:
        _, result = run(stage, "auto", "bfloat16")
        if stage != "evaluate":
            assert gpu.loaded_straight
    assert result.precision == "bfloat16" and json.loads(result.model_dump_json())["metrics"]
