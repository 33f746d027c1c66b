"""Published runs through `plan --cost` itself, by configurations alone: each within a factor of 1.5.

Whose numbers: Ouyang et al. 2022, appendix C and table 6; Yao et al. 2023 (arXiv 2308.01320), table 1, with the settings that its authors
give beside their scripts: 264,292 prompts of 256 tokens, answers of 256, batches of 1,024, one pass, an adapter of rank 128 on the actor,
activation checkpointing.
"""

import json

from pytest import approx, fixture, mark

from pipeline.estimate import make_estimate
from pipeline.machine import choose_machine
from pipeline.recipe.load import find_recipe, load_recipe

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 2048}
OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "max_position_embeddings": 2048}
WIDE = {"ffn_dim": 20480, "word_embed_proj_dim": 5120}
SMALL = {"ffn_dim": 4096, "word_embed_proj_dim": 512, "do_layer_norm_before": False}
MODELS = {
    "gpt-3": GPT2 | {"n_embd": 12288, "n_layer": 96, "n_head": 96},
    "opt-13b": OPT | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40} | WIDE,
    "opt-350m": OPT | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16} | SMALL,
}
STEP_3 = (
    "hardware={processes: 8, zero_stage: 3}",
    "tokens={max_prompt_tokens: 256, max_response_tokens: 256}",
    "ppo={iterations: 258, rollout_batch_size: 1024, minibatch_size: 1024, rollout_micro_batch_size: 128, ppo_epochs: 1, eval_samples: 0}",
    "ppo.gradient_checkpointing=true",
    "ppo.max_tokens_per_microbatch=8192",
)


@fixture
def plan(tmp_path):
    """A function: model, GPU, stage, changes -> the parts of the stage, by name."""

    def plan(model, gpu, stage, changes, **records):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text(json.dumps(MODELS[model]))
        path = tmp_path / f"{model}.yaml"
        data = "".join(f"  {kind}: someone/{kind}\n" for kind in ("demonstrations", "comparisons", "prompts"))
        path.write_text(f"base_model: {tmp_path / model}\ndata:\n{data}")
        recipe = load_recipe(find_recipe(str(path)), list(changes), has_files=False)
        made = make_estimate(recipe, [stage], tmp_path, choose_machine(recipe.hardware, gpu), records=records)
        return {part.name: part for part in made.stages[0].parts}

    return plan


@mark.slow
def test_instructgpts_sft_took_4_9_petaflop_days(plan):
    """16 epochs of 12,725 prompts, packed into windows of 2,048 tokens, of which the paper pays each."""
    windows = "tokens={max_prompt_tokens: 1024, max_response_tokens: 1024}"
    parts = plan("gpt-3", "v100-32", "sft", [windows, "sft={epochs: 16, packing: true, eval_samples: 0}"], demonstrations=12_725)
    days = parts["train"].operations / 1e15 / 86_400
    assert days == approx(5.05, rel=0.02)
    assert 4.9 / 1.5 < days < 4.9 * 1.5


@mark.slow
def test_deepspeed_chats_13b_took_9_hours_on_8_a100(plan):
    """Its critic and reward model have 350 M: of each plan what belongs to its model, as a plan's four models are of one size."""
    actor = plan("opt-13b", "a100", "ppo", [*STEP_3, "ppo.lora={rank: 128}"])
    critic = plan("opt-350m", "a100", "ppo", STEP_3)
    # `score` is the reward model's forward, then policy's, reference's and critic's; `update` is policy's and critic's.
    forwards = {"actor": 2 / 4 * actor["score"].seconds, "critic": 2 / 4 * critic["score"].seconds}
    updates = {"actor": actor["update"].seconds / 2, "critic": critic["update"].seconds / 2}
    hours = (actor["rollout"].seconds + sum(forwards.values()) + sum(updates.values())) / 3600
    assert 9 / 1.5 < hours < 9 * 1.5
