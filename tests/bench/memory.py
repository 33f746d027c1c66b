"""What `rlhf plan --cost` says of memory against what stages take: three stages, sizes, LoRA or full, precisions, processes, ZeRO.

    nice python -P -m tests.bench.memory [CASE...]     prints the table of pipeline/cost/README.md; rows into results/memory.jsonl

Every record is as long as the limits allow, so that what is measured is what is predicted: the most that a stage can take. About half
an hour on two cores; whole models in bfloat16 take longest on a CPU without instructions for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.chat import encode_prompts
from data.demo.materialize import write_demo
from data.schema import Message
from data.tokens import encode_response
from pipeline.cost.memory import BUCKET_ELEMENTS
from pipeline.launch.environment import allocator_settings
from stages.blocks import HardwareSettings, TokenSettings
from stages.settings import PPOSettings, RMSettings, SFTSettings
from stages.spec import DataSource, DataSplits, StageSpec, data_inputs

PROMPT, RESPONSE, ANSWERS = 160, 24, 4
STAGES = ("sft", "rm", "ppo")
SIZES = {
    "6M": {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2},
    "25M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 4},
    "57M": {"hidden_size": 768, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 6},
}
LORA = {"rank": 16, "alpha": 32}
ZERO3 = {"precision": "float32", "processes": 2, "engine": "deepspeed", "zero_stage": 3}
# Name -> size, hardware, adapter, more of every stage that has such a setting.
CASES = {
    "6M full float32": ("6M", {"precision": "float32"}, None, {}),
    "57M full float32": ("57M", {"precision": "float32"}, None, {}),
    "57M lora float32": ("57M", {"precision": "float32"}, LORA, {}),
    "57M lora bfloat16": ("57M", {"precision": "bfloat16"}, LORA, {}),
    "57M full bfloat16 recomputed": ("57M", {"precision": "bfloat16"}, None, {"gradient_checkpointing": True}),
    "25M full float32 ddp": ("25M", {"precision": "float32", "processes": 2}, None, {}),
    "25M full float32 zero 2": ("25M", {"precision": "float32", "processes": 2, "engine": "deepspeed", "zero_stage": 2}, None, {}),
    # Two epochs of PPO: DeepSpeed gathers ahead only from the third forward and backward on.
    "25M full float32 zero 3": ("25M", ZERO3, None, {"ppo_epochs": 2}),
    "25M lora float32 zero 3": ("25M", ZERO3, LORA, {"ppo_epochs": 2}),
}
SETTINGS = {
    "sft": (SFTSettings, {"batch_size": 4, "micro_batch_size": 2, "eval_samples": 2, "learning_rate": 1e-5}),
    "rm": (RMSettings, {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-5}),
    "ppo": (
        PPOSettings,
        {
            "iterations": 1,
            "rollout_batch_size": 8,
            "rollout_micro_batch_size": 8,
            "minibatch_size": 4,
            "ppo_epochs": 1,
            "max_tokens_per_microbatch": 2 * (PROMPT + RESPONSE),
            "eval_samples": 0,
            "learning_rate": 1e-6,
            "missing_eos_score": None,
        },
    ),
}


def main() -> None:
    """Measure the cases that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--until", choices=STAGES, default="ppo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.jsonl")
    arguments = parser.parse_args()
    print("| | stage | tensors: said | measured | | resident: said | measured | |\n|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for case in arguments.cases:
            place = Path(directory) / case.replace(" ", "-")
            said = predict(case, place)
            for row in measure(case, place, arguments.until):
                row |= {"said": said[row["stage"]]}
                print(lay_out(row), flush=True)
                with arguments.out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")


def predict(case: str, directory: Path) -> dict[str, dict[str, float]]:
    """Plan a case as a recipe: stage -> bytes of tensors (`logical`) and of the process (`resident`)."""
    size, hardware, lora, more = CASES[case]
    directory.mkdir(parents=True, exist_ok=True)
    base = write_base(directory / "base", SIZES[size])
    recipe = {
        "base_model": str(base),
        "tokens": {"max_prompt_tokens": PROMPT, "max_response_tokens": RESPONSE},
        "hardware": {"device": "cpu", "threads": 1} | hardware,
        "data": {kind: splits.model_dump(mode="json", exclude_defaults=True) for kind, splits in write_records(directory, base).items()},
    }
    for stage in STAGES:
        recipe[stage] = _set(stage, more, lora)
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    done = subprocess.run([sys.executable, "-P", "-m", "tests.bench.plan_worker", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each.pop("stage"): each for each in found}


def lay_out(row: dict) -> str:
    """Lay a row out as the page has it, without the 2.0 GB that each of DeepSpeed's engines reserves and does not write."""
    hardware = CASES[row["case"]][1]
    engines = 2 if row["stage"] == "ppo" and hardware.get("zero_stage") == 3 else 1
    reserved = 4 * BUCKET_ELEMENTS * engines if hardware.get("engine") == "deepspeed" else 0
    said, measured = row["said"], {"logical": row["logical"] - reserved, "resident": row["resident"]}
    cells = [row["case"] + (", two processes" if hardware.get("processes") == 2 else ""), row["stage"]]
    for name, digits in (("logical", 1), ("resident", 0)):
        off = (said[name] / measured[name] - 1) * 100
        cells += [f"{value / 1e6:,.{digits}f} MB" for value in (said[name], measured[name])]
        percent = f"{off:+.{digits}f}".replace("-", "−")
        cells.append(f"{percent.lstrip('+−') if not float(percent.lstrip('+−')) else percent} %")
    return f"| {' | '.join(cells)} |"


def _set(stage: str, more: dict, lora: dict | None) -> dict:
    block, settings = SETTINGS[stage]
    adapter = {} if lora is None else {"lora": lora | ({"merge": True} if stage == "sft" else {})}
    return settings | {name: value for name, value in more.items() if name in block.model_fields} | adapter


def make_specs(case: str, directory: Path) -> dict[str, StageSpec]:
    """Write a base model and records, and say how each stage is run on them."""
    size, hardware, lora, more = CASES[case]
    base = write_base(directory / "base", SIZES[size])
    data = write_records(directory, base)
    specs = {}
    for stage in STAGES:
        settings = SETTINGS[stage][0].model_validate(_set(stage, more, lora))
        merged = "merged" if lora is not None else "model"
        place = {name: directory / name / "output" for name in STAGES}
        specs[stage] = StageSpec(
            stage=stage,
            settings=settings,
            tokens=TokenSettings(max_prompt_tokens=PROMPT, max_response_tokens=RESPONSE),
            hardware=HardwareSettings.model_validate({"device": "cpu", "threads": 1} | hardware),
            models={
                "sft": {"base": str(base)},
                "rm": {"sft": str(place["sft"] / merged)},
                "ppo": {"sft": str(place["sft"] / merged), "rm": str(place["rm"] / "model")},
            }[stage],
            data={kind: data[kind] for kind in data_inputs(stage, settings)},
            seed=0,
            output_dir=place[stage],
            checkpoint_dir=directory / stage / "checkpoints",
            events_path=directory / stage / "events.jsonl",
        )
    return specs


def measure(case: str, directory: Path, until: str):
    """Run the stages of a case one after the other; yields what each took."""
    specs = make_specs(case, directory)
    for stage in STAGES[: STAGES.index(until) + 1]:
        spec = specs[stage]
        (directory / stage).mkdir(parents=True, exist_ok=True)
        path = directory / stage / "spec.json"
        path.write_text(spec.model_dump_json())
        program = ["-m", "tests.bench.memory_worker", stage, str(path)]
        processes = spec.hardware.processes
        many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
        environment = {**os.environ, **allocator_settings(), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-P", *many, *program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        found = [json.loads(each.read_text()) for each in sorted((directory / stage).glob("memory-*.json"))]
        yield {"case": case, "stage": stage} | {name: max(each[name] for each in found) for name in found[0]}


def write_base(directory: Path, size: dict) -> Path:
    """Write an untrained Llama of this size with the demo's tokenizer."""
    demo = directory.parent / "demo"
    write_demo(demo, seed=7)
    tokenizer = AutoTokenizer.from_pretrained(demo / "base")
    config = LlamaConfig(**size, vocab_size=len(tokenizer), tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_records(directory: Path, base: Path) -> dict[str, DataSplits]:
    """Write records whose prompts and answers are exactly as long as they may be."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def lengthen(start: str, count, limit: int) -> str:
        text = start
        while count(text + " a") <= limit:
            text += " a"
        return text

    def count_prompt(text: str) -> int:
        return len(encode_prompts(tokenizer, [[Message(role="user", content=text)]])[0])

    prompts = [lengthen(f"{number} order", count_prompt, PROMPT) for number in range(12)]
    answers = [lengthen(f"{number} answer", lambda text: len(encode_response(tokenizer, text)), RESPONSE) for number in range(12 * ANSWERS)]
    rows = {
        "demonstrations": [{"prompt": prompt, "completion": answers[place]} for place, prompt in enumerate(prompts)],
        "comparisons": [
            {"prompt": prompt, "completions": answers[ANSWERS * place :][:ANSWERS], "ranks": list(range(1, ANSWERS + 1))}
            for place, prompt in enumerate(prompts)
        ],
        "prompts": [{"prompt": prompt} for prompt in prompts],
    }
    splits = {}
    for kind, records in rows.items():
        for split, part in (("train", records[:8]), ("eval", records[8:])):
            (directory / f"{kind}.{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
        splits[kind] = DataSplits(
            train=DataSource(path=str(directory / f"{kind}.train.jsonl")), eval=DataSource(path=str(directory / f"{kind}.eval.jsonl"))
        )
    return splits


if __name__ == "__main__":
    main()
