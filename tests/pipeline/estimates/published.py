"""What DeepSpeed-Chat and InstructGPT published, as recipes to be planned by configurations alone; for tests and `tests.bench.published`.

Whose numbers: Ouyang et al. 2022, appendix C and table 6; Yao et al. 2023 (arXiv 2308.01320), table 1, and the README of DeepSpeed-Chat at
its release (commit e468799f of DeepSpeedExamples), with the settings of its scripts and of its page on benchmarks: 264,292 prompts of 256
tokens, answers of 256, batches of 1,024, one pass, an adapter of rank 128 on the actor, activation checkpointing. Its example on one GPU
reads one data set, rm-static of 76,256 records, of which steps have 60 %, 20 % and 20 % (`data_split` was 6,2,2 then): step 1 with an
adapter of rank 128 and rows of 512 tokens, 16 in each of 8 micro-batches; step 2 with pairs of rows of 512 tokens; step 3 in batches of 16.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.estimates.estimate import Estimate, StageEstimate, make_estimate
from pipeline.estimates.machine import choose_machine
from pipeline.estimates.scale import scale_up
from pipeline.recipe.load import find_recipe, load_recipe
from pipeline.recipe.schema import Recipe

RM_STATIC = 76_256
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 2048}
OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "max_position_embeddings": 2048}


def describe_opt(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """Describe an OPT as its `config.json` does."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return OPT | sizes | {"ffn_dim": 4 * hidden, "word_embed_proj_dim": hidden} | more


MODELS = {
    "gpt-3": GPT2 | {"n_embd": 12288, "n_layer": 96, "n_head": 96},
    "opt-350m": describe_opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": describe_opt(2048, 24, 32),
    "opt-6.7b": describe_opt(4096, 32, 32),
    "opt-13b": describe_opt(5120, 40, 40),
    "opt-30b": describe_opt(7168, 48, 56),
    "opt-66b": describe_opt(9216, 64, 72),
}
ADAPTER = "ppo.lora={rank: 128}"
STEP_3 = (
    "tokens={max_prompt_tokens: 256, max_response_tokens: 256}",
    "ppo={ppo_epochs: 1, eval_samples: 0, gradient_checkpointing: true, max_tokens_per_microbatch: 8192, rollout_micro_batch_size: 128}",
)
# Weights that ZeRO shares out are decoded by launching each kernel, not by CUDA graphs.
ON_EIGHT = (
    *STEP_3,
    "hardware={processes: 8, zero_stage: 3}",
    "ppo.rollout_batch_size=1024",
    "ppo.minibatch_size=1024",
    "ppo.iterations=258",
)
# The same on one GPU, whose fused kernels decode without a launch for each product, as a vLLM server does.
BATCH = 16
ON_ONE = (
    *STEP_3,
    f"ppo.iterations={round(0.2 * RM_STATIC / BATCH)}",
    f"ppo.rollout_batch_size={BATCH}",
    f"ppo.minibatch_size={BATCH}",
)
STEP_1 = (
    "tokens={max_prompt_tokens: 256, max_response_tokens: 256}",
    "sft={batch_size: 128, micro_batch_size: 16, epochs: 1, eval_samples: 0, lora: {rank: 128}}",
)
# Each answer of a pair is a row of its own there, prompt and all: here prompts are next to nothing and answers as long as those rows.
STEP_2 = ("tokens={max_prompt_tokens: 8, max_response_tokens: 504}", "rm={batch_size: 16, micro_batch_size: 16, epochs: 1}")


def make_plan(directory: Path, model: str, gpu: str, stage: Any, changes: Any, **records: int) -> tuple[Recipe, Estimate]:
    """Plan a stage of a model, of which a configuration is written into a directory; returns the recipe and what it is said to need."""
    (directory / model).mkdir(exist_ok=True)
    (directory / model / "config.json").write_text(json.dumps(MODELS[model]))
    path = directory / f"{model}.yaml"
    data = "".join(f"  {kind}: someone/{kind}\n" for kind in ("demonstrations", "comparisons", "prompts"))
    path.write_text(f"base_model: {directory / model}\ndata:\n{data}")
    recipe = load_recipe(find_recipe(str(path)), list(changes), has_files=False)
    return recipe, make_estimate(recipe, [stage], directory, choose_machine(recipe.hardware, gpu), records=records)


def sum_hours(actor: StageEstimate, critic: StageEstimate) -> float:
    """Hours of step 3, of plans of both sizes: of each what belongs to its model, as a plan's four models are of one size.

    `score` is the reward model's forward, then policy's, reference's and critic's; `update` is policy's and critic's.
    """
    own, other = ({part.name: part.seconds for part in each.parts} for each in (actor, critic))
    return (own["rollout"] + sum((each["score"] + each["update"]) / 2 for each in (own, other))) / 3600


def plan_on_one(directory: Path) -> float:
    """Hours of step 3 of OPT-1.3B with a critic of 350 M on one A6000."""
    changes = {"opt-1.3b": [ADAPTER, "ppo.rollout.engine=vllm"], "opt-350m": []}
    actor, critic = (make_plan(directory, model, "a6000", "ppo", [*ON_ONE, *more])[1].stages[0] for model, more in changes.items())
    return sum_hours(actor, critic)


def plan_on_many(directory: Path, actor: str, gpus: tuple[int, ...]) -> list[float]:
    """Hours of step 3 of an actor with a critic of 350 M on so many A100-80, eight to a machine."""
    plans = [make_plan(directory, model, "a100", "ppo", [*ON_EIGHT, *more]) for model, more in ((actor, [ADAPTER]), ("opt-350m", []))]
    scaled = [{each.gpus: each.stages[0] for each in scale_up(*made)} for made in plans]
    return [sum_hours(*(each[count] for each in scaled)) for count in gpus]
