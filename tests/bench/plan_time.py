"""What `rlhf plan --cost` says of time against what stages take on this CPU: a Llama of 135 M parameters (SmolLM2's sizes), random weights.

    python -P -m tests.bench.plan_time DIRECTORY        plan, run, and again with another seed: the second plan knows the first run

LoRA in float32 on one thread, on some records of the demo; about twelve minutes on a quiet machine. `--quick`: two layers, to see it work.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.demo.materialize import write_demo

SIZE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
RECORDS = {"demonstrations": 80, "comparisons": 64, "prompts": 64}
HELD_OUT = 16
RECIPE = """
name: plan-time
base_model: base
data:
  demonstrations: {train: demonstrations.train.jsonl, eval: demonstrations.eval.jsonl}
  comparisons: {train: comparisons.train.jsonl, eval: comparisons.eval.jsonl}
  prompts: {train: prompts.train.jsonl, eval: prompts.eval.jsonl}
tokens: {max_prompt_tokens: 96, max_response_tokens: 48}
hardware: {device: cpu, precision: float32, processes: 1, threads: 1}
sft: {epochs: 1, batch_size: 8, micro_batch_size: 8, learning_rate: 1e-4, lora: {rank: 8, merge: true}, eval_samples: 4}
rm: {epochs: 1, batch_size: 8, micro_batch_size: 8, learning_rate: 1e-4, lora: {rank: 8}}
ppo:
  iterations: 3
  rollout_batch_size: 16
  minibatch_size: 8
  rollout_micro_batch_size: 16
  max_tokens_per_microbatch: 1024
  ppo_epochs: 1
  lora: {rank: 8}
  eval_samples: 4
  max_response_tokens: 32
evaluate: {prompts: 8, samples: 2, policy_samples: 2, max_response_tokens: 32}
"""


def prepare(directory: Path, layers: int) -> Path:
    """Write the base model, the records and the recipe; returns the recipe's path."""
    write_demo(directory / "demo", seed=7)
    tokenizer = AutoTokenizer.from_pretrained(directory / "demo" / "base")
    tokenizer.save_pretrained(directory / "base")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(**SIZE, num_hidden_layers=layers, tie_word_embeddings=True, max_position_embeddings=2048, **special)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory / "base")
    for kind, count in RECORDS.items():
        for split, number in (("train", count), ("eval", HELD_OUT)):
            lines = (directory / "demo" / f"{kind}.{split}.jsonl").read_text().splitlines()[:number]
            (directory / f"{kind}.{split}.jsonl").write_text("\n".join(lines) + "\n")
    recipe = directory / "recipe.yaml"
    recipe.write_text(RECIPE)
    return recipe


def main() -> None:
    """Prepare; plan and run twice, and show what each stage took beside what was said."""
    parser = argparse.ArgumentParser(prog="python -P -m tests.bench.plan_time")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    recipe = prepare(given.directory, 2 if given.quick else 30)

    def rlhf(*words: str) -> None:
        command = [sys.executable, "-P", "-m", "pipeline.cli", *words, "--store", str(given.directory / "store")]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    for version, changes in enumerate(([], ["--set", "seed=2", "--set", "sft.learning_rate=2e-4"]), start=1):
        rlhf("plan", str(recipe), "--cost", *changes)
        rlhf("run", str(recipe), *changes)
        for kind in ("sft", "rm", "ppo", "evaluation"):
            rlhf("show", f"{kind}@v{version}")


if __name__ == "__main__":
    main()
