"""What recipes say that they need is what `plan --cost` says: their comments are made by it.

# Planned by `--gpu h100 --records demonstrations=207865`: sft 51.5 GB, ppo 52.2 GB; 60 hours.
"""

import json
import re

from pytest import approx, mark

from pipeline.estimates.estimate import make_estimate
from pipeline.estimates.machine import choose_machine
from pipeline.estimates.traces import parse_records
from pipeline.recipe.load import find_recipe, load_recipe

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8}
CONFIGS = {
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "Qwen/Qwen2.5-0.5B-Instruct": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896}
    | {
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
PLANNED = re.compile(r"^# Planned by `--gpu ([\w-]+)((?: --records \w+=\d+)*)`: (.+); (\d+) hours\.$", re.MULTILINE)
RECIPES = [path for path in sorted(find_recipe("demo").parent.glob("*.yaml")) if PLANNED.search(path.read_text())]


def test_each_recipe_for_gpus_tells_what_it_needs():
    assert {path.stem for path in find_recipe("demo").parent.glob("*.yaml")} - {path.stem for path in RECIPES} == {"demo"}


@mark.slow
@mark.usefixtures("warm")
@mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_says_that_it_needs_is_what_a_plan_says(path, tmp_path):
    found = PLANNED.search(path.read_text())
    gpu, records, needs, hours = found.groups()
    model = load_recipe(path, [], has_files=False).base_model
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[model]))
    recipe = load_recipe(path, [f"base_model={tmp_path}"], has_files=False)
    counts = parse_records(re.findall(r"\w+=\d+", records))
    said = {stage: float(size) for stage, size in re.findall(r"(\w+) ([\d.]+) GB", needs)}
    assert said.keys() == set(recipe.stages)
    estimate = make_estimate(recipe, recipe.stages, tmp_path, choose_machine(recipe.hardware, gpu), records=counts)
    assert {each.stage: each.verdict.need / 1e9 for each in estimate.stages} == approx(said, rel=0.02)
    assert all(each.verdict.word != "does not fit" for each in estimate.stages)
    assert estimate.seconds / 3600 == approx(float(hours), rel=0.03)
