"""Recipe -> resolved config: precedence, paths, and every error at once with its place."""

import dataclasses
import importlib
import importlib.util
import json
import re
import sys
import time

import pytest

from pipeline.errors import ConfigError
from pipeline.recipe.explain import declared_keys
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import recipe_schema
from pipeline.recipe.trainer_fields import config_class, trainer_fields
from stages.blocks import HardwareSettings
from stages.deepspeed_config import make_deepspeed_config
from stages.trainer_args import find_refused_arguments, owned_arguments
from stages.trainer_values import CHOICES, DEBUG, OPTIMIZERS

MINIMAL = "name: x\nbase_model: demo\ndata: demo\n"


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """A function: recipe text (and overrides) -> the problems that loading tells."""
    monkeypatch.chdir(tmp_path)

    def problems(text, *overrides, stages=("sft", "rm", "ppo")):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_recipe(tmp_path.joinpath("recipe.yaml").relative_to(tmp_path), overrides, stages)
        return caught.value.problems

    return problems


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load


def test_an_unknown_key_is_told_with_line_and_nearest_key(problems):
    text = MINIMAL + "ppo:\n  clip_range: 0.1\n  kl_coeff: 0.1\n"
    assert problems(text) == ["recipe.yaml:6: ppo.kl_coeff: unknown key; did you mean ppo.kl_coef?"]


def test_a_key_in_the_wrong_block_is_told_where_it_belongs(problems):
    assert problems(MINIMAL + "kl_coef: 0.1\n") == ["recipe.yaml:4: kl_coef: unknown key; did you mean ppo.kl_coef?"]


def test_all_errors_are_told_at_once_in_the_order_of_the_file(problems):
    text = MINIMAL + "seed: x\nrm:\n  batch_size: 3.5\n  batch_size: 4\nppo:\n  clip_range: -1\n  lr_schedule: cosin\n  nope: 1\n"
    assert problems(text, "sft.epohcs=3") == [
        "recipe.yaml:7: rm.batch_size: duplicate key, first at recipe.yaml:6; keep one",
        "--set: sft.epohcs: unknown key; did you mean sft.epochs?",
        'recipe.yaml:4: seed: found "x", needed a whole number; the default is 11',
        "recipe.yaml:6: rm.batch_size: found 3.5, needed a whole number; the default is 32",
        "recipe.yaml:9: ppo.clip_range: found -1, needed more than 0.0; the default is 0.2",
        "recipe.yaml:10: ppo.lr_schedule: found \"cosin\", needed one of 'constant', 'linear' or 'cosine'; did you mean cosine?",
        "recipe.yaml:11: ppo.nope: unknown key; known here: " + ", ".join(sorted(recipe_schema()["$defs"]["PPOSettings"]["properties"])),
    ]


def test_what_is_wrong_elsewhere_is_told_with_values_of_a_wrong_kind(problems, tmp_path):
    text = (
        "base_model: nowhere/at/all\ndata:\n  demonstrations: {train: gone.jsonl, nope: 1}\n"
        "  comparisons: {train: [also.jsonl, {weight: x}]}\n  promts: demo\n"
        "sft: {epochs: many, trainer_args: {learning_rate: 1}}\njudge: rule\nppo: {minibatch_size: 48}\n"
    )
    found = [line.partition("; ")[0] for line in problems(text)]
    assert [line for line in found if "found no" in line or "module:function" in line or "trainer_args" in line] == [
        f'recipe.yaml:1: base_model: found no directory "{tmp_path}/nowhere/at/all"',
        f'recipe.yaml:3: data.demonstrations.train: found no file "{tmp_path}/gone.jsonl"',
        "recipe.yaml:6: sft.trainer_args.learning_rate: found 1, but the recipe says that elsewhere",
        'recipe.yaml:7: judge: found "rule", needed module:function, such as data.demo.rule:judge',
    ]
    assert not any("missing" in line for line in found)  # data.prompts is not, but mistyped
    assert len(found) == len(set(found)) == 9


def test_a_missing_key_is_told_with_its_meaning(problems):
    found = problems("name: x\ndata: demo\n")
    assert found[0].startswith("recipe.yaml:1: base_model: missing; add it: Pretrained model:")


def test_related_fields_are_checked_and_both_are_named(problems):
    found = problems(MINIMAL + "ppo:\n  minibatch_size: 48\n")
    assert found == ["recipe.yaml:4: ppo: rollout_batch_size = 64 is not a multiple of minibatch_size = 48; choose sizes that divide"]


def test_a_second_adapter_needs_a_merged_base(problems, load):
    text = MINIMAL + "sft:\n  lora: {}\nrm:\n  lora: {rank: 4}\n"
    (found,) = problems(text)
    assert found.startswith("recipe.yaml:7: rm.lora: found rm.lora (rank 4) on top of sft.lora.merge = false, needed a merged base")
    assert load(text, "sft.lora.merge=true").rm.lora.rank == 4


def test_defaults_give_way_to_the_recipe_and_that_to_set(load):
    recipe = load(MINIMAL + "ppo:\n  kl_coef: 0.2\n  gamma: 0.9\n", "ppo.kl_coef=1e-1", "seed=3", "rm.lora.rank=8")
    assert (recipe.ppo.kl_coef, recipe.ppo.gamma, recipe.ppo.clip_range) == (0.1, 0.9, 0.2)
    assert (recipe.seed, recipe.rm.lora.rank) == (3, 8)


@pytest.mark.parametrize(
    "override", ["sft.adam_beta1=1", "rm.adam_beta2=1.0", "ppo.adam_beta1=1", "sft.lora.dropout=1", "ppo.lora={dropout: 1}"]
)
def test_a_value_with_which_nothing_is_learnt_is_told(problems, override):
    (found,) = problems(MINIMAL, override)
    assert "needed less than 1.0; the default is" in found


@pytest.mark.parametrize("override", ["ppo.kl_coef", "=3", "a..b=1", "ppo.kl-coef=1", "__class__.x-=1"])
def test_a_malformed_set_is_told(problems, override):
    (found,) = problems(MINIMAL, override)
    assert found.startswith("--set: found")


def test_relative_paths_are_relative_to_the_recipe_and_those_of_set_to_the_working_directory(recipe_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").write_text('{"prompt": "x"}\n')
    recipe = load_recipe(recipe_path, ["data.prompts=here.jsonl"])
    assert recipe.base_model == str(recipe_path.parent / "base")
    assert recipe.data.comparisons.train.path == str(recipe_path.parent / "comparisons.jsonl")
    assert recipe.data.prompts.train.path == str(tmp_path / "here.jsonl")
    assert recipe.store == "store"


def test_guidelines_are_text_or_a_file_beside_the_recipe(load, problems, tmp_path):
    text = MINIMAL + "ranking:\n  flags: [rude]\n  guidelines: guide.md\n"
    assert problems(text) == [
        f'recipe.yaml:6: ranking.guidelines: found no file "{tmp_path}/guide.md", needed Markdown, or a .md or .txt file; check the path'
    ]
    (tmp_path / "guide.md").write_text("# Be kind")
    ranking = load(text).ranking
    assert (ranking.flags, ranking.guidelines, ranking.grade) == (["rude"], str(tmp_path / "guide.md"), True)
    assert load(MINIMAL + "ranking: {guidelines: 'Prefer **short** answers.'}\n").ranking.guidelines == "Prefer **short** answers."
    assert problems(MINIMAL + "ranking: {flags: [rude, rude], overlap: 2}\n") == [
        "recipe.yaml:4: ranking.flags: found the flag 'rude', needed each once, on one line, without commas; rename it",
        "recipe.yaml:4: ranking.overlap: found 2, needed at most 1.0; the default is 0.1",
    ]


def test_hub_ids_stay_hub_ids(load):
    text = "name: x\nbase_model: org/model\nrevision: abc\ndata:\n" + "".join(
        f"  {kind}: {{train: {{path: org/{kind}, split: train}}}}\n" for kind in ("demonstrations", "comparisons", "prompts")
    )
    recipe = load(text)
    assert (recipe.base_model, recipe.data.prompts.train.path, recipe.data.prompts.train.split) == ("org/model", "org/prompts", "train")


def test_demo_stands_for_all_three_kinds(load):
    recipe = load("name: x\nbase_model: demo@3\ndata: demo@3\n")
    assert recipe.data.comparisons.train.path == "demo@3:comparisons.train"
    assert recipe.data.comparisons.eval.path == "demo@3:comparisons.eval"


def test_missing_files_are_told_before_anything_runs(problems):
    text = "name: x\nbase_model: ./base\ndata:\n  demonstrations: a.jsonl\n  comparisons: demo\n  prompts: demo\n"
    found = problems(text)
    assert [line.split(": found")[0] for line in found] == ["recipe.yaml:2: base_model", "recipe.yaml:4: data.demonstrations.train"]


def test_only_the_data_of_the_chosen_stages_has_to_be_there(problems, tmp_path):
    text = "name: x\nbase_model: demo\ndata:\n  demonstrations: demo\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml", stages=("sft",)).data.prompts is None
    assert problems(text) == [
        "recipe.yaml:3: data.comparisons: missing; rm read it; give a file, a dataset id or demo",
        "recipe.yaml:3: data.prompts: missing; ppo read it; give a file, a dataset id or demo",
    ]


def test_pickled_weights_are_refused(recipe_path):
    base = recipe_path.parent / "base"
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "tokenizer.json").unlink()
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path)
    assert "found no tokenizer.json" in caught.value.problems[0]
    assert "found only pickled weights (pytorch_model.bin), which can run code" in caught.value.problems[1]


def test_an_adapter_alone_is_told_as_that(recipe_path):
    base = recipe_path.parent / "base"
    (base / "config.json").rename(base / "adapter_config.json")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path)
    (told,) = caught.value.problems
    assert "base_model: found an adapter alone in" in told and "needed a whole model; merge it into its base" in told


def test_a_tokenizer_that_only_sentencepiece_reads_is_told_where_that_is_not_installed(recipe_path, monkeypatch):
    base = recipe_path.parent / "base"
    (base / "tokenizer.json").rename(base / "tokenizer.model")
    real = importlib.util.find_spec
    for there in (True, False):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest, there=there: there or None if name == "sentencepiece" else real(name, *rest)
        )
        if there:
            load_recipe(recipe_path)
            continue
        with pytest.raises(
            ConfigError, match=r"base_model: found tokenizer.model without a tokenizer.json in .*; install it \(pip install"
        ):
            load_recipe(recipe_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda whole: whole[:-5], "84 bytes, needed 89"),
        (lambda whole: whole[:20], "20 bytes that are no safetensors file"),
        (lambda whole: b"", "0 bytes that are no safetensors file"),
        (lambda whole: whole + b"x", "90 bytes, needed 89"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "55 bytes that are no safetensors file"),
    ],
)
def test_weights_that_were_cut_are_told_before_anything_runs(recipe_path, content, found):
    path = recipe_path.parent / "base" / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path)
    (line,) = caught.value.problems
    assert line == f'{recipe_path}:2: base_model: "{path}": found {found}; it was cut or changed: get it once more'


@pytest.mark.parametrize(
    "line",
    [
        "sft:\n  trainer_args: {hub_token: canary-4711}\n",
        "sft:\n  trainer_args: {hub_model_id: 'https://me:canary-4711@host/'}\n",
        "sft:\n  trainer_args: {hub_model_id: hf_canary4711canary4711}\n",
        "revision: https://host/x?token=canary-4711\n",
        "tokens: https://host/x?token=canary-4711\n",
    ],
)
def test_a_secret_is_refused_and_never_repeated(problems, line):
    (found,) = problems(MINIMAL + line)
    assert "found a secret" in found
    assert "canary" not in found


@pytest.mark.parametrize(
    "override", ["sft.trainer_args.hub_token=canary", "a-b=canary", "hf_canary4711canary4711", "https://me:canary@host/"]
)
def test_a_secret_on_the_command_line_is_not_repeated(problems, override):
    (found,) = problems(MINIMAL, override)
    assert "canary" not in found


@pytest.mark.parametrize(
    "value",
    [
        "ghp_canary4711canary47",
        "AKIACANARY4711CANARY",
        "glpat-canary4711canary",
        "xoxb-canary-4711",
        "eyJjYW5hcnk0NzEx.eyJjYW5hcnk0NzEx.canary",
        "https://h/x?api_key=canary",
        "/data/https-canary-0123456789/x.jsonl",
    ],
)
def test_a_recipe_with_a_secret_of_any_shape_or_of_the_environment_is_refused(problems, monkeypatch, value):
    monkeypatch.setenv("MY_SERVICE_KEY", "https-canary-0123456789")
    (found,) = problems(MINIMAL.replace("data: demo", f"data:\n  prompts: {value}"))
    assert found.startswith("recipe.yaml:4: data.prompts.train.path: found a secret") and "canary" not in found


def test_keys_that_only_sound_secret_are_fine(load):
    assert load(MINIMAL + "sft:\n  trainer_args: {include_num_input_tokens_seen: all}\n").sft.trainer_args
    assert load(MINIMAL + "ppo:\n  stop_token: '<end>'\n").ppo.stop_token == "<end>"


@pytest.mark.parametrize("judge", ["no-colon", "os:system; rm", "a:b:c", "../x:y"])
def test_a_judge_is_a_module_and_a_function(problems, judge):
    (found,) = problems(MINIMAL + f"judge: '{judge}'\n")
    assert "needed module:function" in found


def test_what_ppo_publishes_is_chosen_by_something_that_is_there(problems):
    (found,) = problems(MINIMAL + "ppo:\n  publish: best\n  publish_by: judge\n")
    assert found.startswith("recipe.yaml:6: ppo.publish_by: found judge, needed a judge")
    (found,) = problems(MINIMAL + "ppo: {publish: best, iterations: 20}\n")
    assert "publish = best has only the last iteration to choose from, with eval_every = 50 and iterations = 20" in found


@pytest.mark.parametrize("name", ["../x", "a/b", "-x", "x" * 65, "a\\nb"])
def test_a_name_is_safe_as_a_file_name(problems, name):
    (found,) = problems(f'name: "{name}"\nbase_model: demo\ndata: demo\n')
    assert "needed letters, digits" in found


def test_a_recipe_without_a_name_is_called_as_its_file(tmp_path):
    path = tmp_path / "my recipe, second.yaml"
    path.write_text("base_model: demo\ndata: demo\n")
    assert load_recipe(path).name == "my-recipe-second"


def test_batches_are_shared_by_all_processes(problems):
    found = problems(
        MINIMAL + "hardware: {processes: 3}\n",
        "rm.batch_size=36",
        "ppo.minibatch_size=32",
    )
    assert found == [
        "--set: ppo.minibatch_size: found 32, needed a multiple of the number of processes on all nodes = 3; choose sizes that divide",
        "recipe.yaml:1: sft.batch_size: found 32, needed a multiple of the number of processes on all nodes = 3; choose sizes that divide",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "sft.adam_epsilon=1e-300",
            "sft.adam_epsilon: found 1e-300, needed 0, or one from 1.2e-38 to 3.4e+38, as float32 holds them; raise",
        ),
        ("ppo.kl_coef=1e39", "ppo.kl_coef: found 1e+39, needed 0, or one from 1.2e-38 to 3.4e+38, as float32 holds them; lower it"),
        ("rm.trainer_args.neftune_noise_alpha=1e-50", "rm.trainer_args.neftune_noise_alpha: found 1e-50, needed 0, or one from"),
        ("ppo.weight_decay=1e9", "ppo: weight_decay = 1e+09 takes weights times -2999 in each step, needed less than 1 / learning_rate"),
        (
            "sft.weight_decay=5e4",
            "sft: weight_decay = 50000 takes weights times 0 in each step, needed less than 1 / learning_rate = 50000",
        ),
    ],
)
def test_numbers_that_float32_loses_or_that_end_all_weights_are_told(problems, load, override, told):
    (found,) = problems(MINIMAL, override)
    assert found.startswith(f"--set: {told}")
    assert load(MINIMAL, "sft.weight_decay=0.1", "sft.adam_epsilon=1e-15").sft.adam_epsilon == 1e-15


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("learning_rate: 1e\u20135", 'found "1e\\u20135", needed a number; write 1e-5'),
        ("min_lr_ratio: \uff10.1", 'found "\\uff10.1", needed a number; write 0.1'),
        ("lora: false", "found false, needed a block of keys; write null"),
    ],
)
def test_what_only_looks_like_a_number_or_switches_a_block_off_is_told_as_what_was_meant(problems, line, told):
    """A dash or a digit of another alphabet, as text processors and web pages write them."""
    (found,) = problems(MINIMAL + f"sft:\n  {line}\n")
    assert found == f"recipe.yaml:5: sft.{line.partition(':')[0]}: {told}"


def test_trainer_args_are_fields_of_trls_configs(problems, load):
    text = MINIMAL + "sft:\n  trainer_args:\n    neftune_noise_alpha: 5\n    label_smothing_factor: 0.1\n"
    assert problems(text) == [
        "recipe.yaml:7: sft.trainer_args.label_smothing_factor: unknown key of TRL's SFTConfig; did you mean label_smoothing_factor?"
    ]
    assert load(MINIMAL, "rm.trainer_args.max_steps=4").rm.trainer_args == {"max_steps": 4}


@pytest.mark.parametrize(
    ("stage", "argument", "told"),
    [
        ("sft", "learning_rate=1e-3", "found 0.001, but the recipe says that elsewhere; set sft.learning_rate"),
        ("rm", "num_train_epochs=2", "found 2, but the recipe says that elsewhere; set rm.epochs"),
        ("sft", "fp16=true", "found True, but the recipe says that elsewhere; set hardware.precision"),
        ("rm", "tf32=true", "found True, but the recipe says that elsewhere; set hardware.tf32"),
        ("sft", "output_dir=elsewhere", "found 'elsewhere', but the store decides where a stage writes; set store, or give --store"),
        ("rm", "load_best_model_at_end=true", "its last weights are published; leave it out"),
        ("sft", "report_to=wandb", "figures go into metrics.jsonl of its artifact"),
        ("rm", "center_rewards_coefficient=0.1", "found 0.1, but the reward model's loss and batches are our own; leave it out"),
        ("sft", "use_liger_kernel=true", "found True, needed liger-kernel, which is not installed"),
        ("sft", "max_steps='3'", "found the text '3', needed a whole number, as TRL's SFTConfig says; write it without quotes"),
        ("sft", "optim=nonsense", "needed an optimizer of transformers, such as adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, "),
        ("rm", "optim=adamw", "adagrad, rmsprop; did you mean adamw_torch?"),
        ("rm", "optim=sdg", "; did you mean sgd?"),
        ("sft", "optim=stable_adamw", "needed the Python package that has optimi, which is not installed; install it, or choose another"),
        ("sft", "optim=null", "found None, needed text, as TRL's SFTConfig says"),
        ("sft", "optim_args=momentum", "found 'momentum', needed key=value, such as 'momentum=0.9, nesterov=true'"),
        ("sft", "max_steps=0", "found 0, needed at least 1, or -1 for what epochs say"),
        ("rm", "max_steps=true", "found True, needed a whole number, as TRL's RewardConfig says"),
        ("sft", "label_smoothing_factor=1.5", "found 1.5, needed at most 1; lower it"),
        ("rm", "dataloader_num_workers=-1", "found -1, needed at least 0"),
        ("sft", "dataloader_prefetch_factor=2", "found 2, which needs dataloader_num_workers"),
        ("rm", "eval_delay=.inf", "found the text '.inf', needed a number, as TRL's RewardConfig says; change it"),
        ("rm", "log_level=warn", "needed one of detail, debug, info, warning, error, critical, passive; did you mean warning?"),
        ("sft", "debug=underflow", "needed underflow_overflow or tpu_metrics_debug; did you mean underflow_overflow?"),
        ("rm", "activation_checkpointing_kwargs=3", "found 3, needed a block or text or null, as TRL's RewardConfig says"),
    ],
)
def test_trainer_args_that_are_not_a_users_to_give_are_refused_with_what_to_set_instead(problems, monkeypatch, stage, argument, told):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    (found,) = problems(MINIMAL, f"{stage}.trainer_args.{argument}")
    assert found.startswith(f"--set: {stage}.trainer_args.{argument.partition('=')[0]}: found ")
    assert told in found


def test_the_values_that_may_be_chosen_are_those_of_the_libraries():
    assert set(OPTIMIZERS) == {each.value for each in importlib.import_module("transformers.training_args").OptimizerNames}
    assert set(DEBUG) == {each.value for each in importlib.import_module("transformers.debug_utils").DebugOption}
    fields = dataclasses.fields(importlib.import_module("trl.trainer.sft_config").SFTConfig)
    chosen = {each.name: each.metadata["choices"] for each in fields if each.metadata.get("choices")}
    assert {name: set(CHOICES[name]) for name in chosen if name in CHOICES} == {
        name: set(chosen[name]) for name in chosen if name in CHOICES
    }
    assert set(CHOICES) - set(chosen) == {"include_num_input_tokens_seen"}  # which only its text says


@pytest.mark.parametrize(("stage", "module"), [("sft", "sft_config"), ("rm", "reward_config")])
def test_no_default_of_trls_is_refused(stage, module):
    """Who writes down what holds anyway changes nothing; by the types of the source and by those of the class."""
    dataclass = getattr(importlib.import_module(f"trl.trainer.{module}"), config_class(stage))
    owned = owned_arguments(stage)
    given = {each.name: each.default for each in dataclasses.fields(dataclass) if each.name not in owned}
    given = {name: value for name, value in given.items() if value is not dataclasses.MISSING and not name.startswith("_")}
    given["optim"] = "adamw_torch"  # transformers' own is a choice by the version of torch
    assert len(given) > 30
    of_class = {each.name: getattr(each.type, "__name__", str(each.type)) for each in dataclasses.fields(dataclass)}
    for known in (trainer_fields(stage), of_class):
        assert not list(find_refused_arguments(stage, given, known, config_class(stage)))


def test_what_trainer_args_point_to_is_a_key_of_the_recipe():
    for stage in ("pretrain", "sft", "rm"):
        for told in owned_arguments(stage).values():
            for key in re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", told.partition("; set ")[2]):
                assert tuple(key.split(".")) in declared_keys() or (stage == "rm" and key == "sft.packing")


@pytest.mark.parametrize(("stage", "module"), [("pretrain", "sft_config"), ("sft", "sft_config"), ("rm", "reward_config")])
def test_the_fields_read_from_trls_source_are_those_of_its_classes(stage, module):
    dataclass = getattr(importlib.import_module(f"trl.trainer.{module}"), config_class(stage))
    assert trainer_fields(stage).keys() == {field.name for field in dataclasses.fields(dataclass) if not field.name.startswith("_")}
    assert trainer_fields(stage)["bf16"] == "bool | None"  # TRL's own, not that of transformers


def test_4_bits_without_bitsandbytes_are_told_of_every_stage_that_runs(problems, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    text = MINIMAL + "".join(f"{stage}:\n  lora: {{quantize: nf4, merge: true}}\n" for stage in ("sft", "rm", "ppo"))
    found = problems(text, stages=("sft", "rm"))
    assert [line.split(": found nf4, needed bitsandbytes")[0] for line in found] == [
        "recipe.yaml:5: sft.lora.quantize",
        "recipe.yaml:7: rm.lora.quantize",
    ]
    assert all("`make setup`" in line for line in found)


def test_4_bits_are_refused_with_zero_stage_3_and_with_vllm(problems):
    found = problems(MINIMAL + "ppo:\n  lora: {quantize: nf4}\n  rollout: {engine: vllm}\n")
    assert len(found) == 1 and "vLLM would sample from a base that is not quantized" in found[0]
    found = problems(MINIMAL + "ppo:\n  lora: {quantize: nf4}\nhardware:\n  engine: deepspeed\n  zero_stage: 3\n")
    assert len(found) == 1 and found[0].startswith("recipe.yaml:5: ppo.lora.quantize: found nf4 with hardware.zero_stage = 3, needed")
    assert found[0].endswith("; set hardware.zero_stage: 2")


def test_a_deepspeed_file_is_read(problems):
    (found,) = problems(MINIMAL + "hardware:\n  deepspeed_config: zero.json\n")
    assert found.startswith("recipe.yaml:5: hardware.deepspeed_config: found")
    assert "give a DeepSpeed JSON file" in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train_batch_size": 8}, "train_batch_size: the recipe decides on that"),
        ({"bf16": {"enabled": True}}, "bf16: the recipe decides on that"),
        ({"zero_optimization": {"stage": 3}}, "say hardware.zero_stage: 3 in the recipe"),
        ([1], "not a JSON object"),
    ],
)
def test_what_the_recipe_decides_on_is_refused_in_a_deepspeed_file(problems, tmp_path, content, said):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(content))
    (found,) = problems(MINIMAL + f"hardware:\n  deepspeed_config: {path}\n")
    assert said in found


def test_a_deepspeed_file_is_laid_over_what_the_recipe_makes(tmp_path):
    path = tmp_path / "zero.json"
    zero = {"overlap_comm": True, "stage": "auto", "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}
    path.write_text(json.dumps({"bf16": {"enabled": "auto"}, "train_batch_size": "auto", "zero_optimization": zero, "dump_state": True}))
    hardware = HardwareSettings(precision="bfloat16", zero_stage=3, offload_optimizer=True, deepspeed_config=str(path), device="cpu")
    config = make_deepspeed_config(hardware, max_grad_norm=0.5, micro_batch_size=3, accumulation_steps=4)
    assert config["zero_optimization"]["stage"] == 3 and config["zero_optimization"]["overlap_comm"]
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "nvme", "nvme_path": "/nvme", "pin_memory": False}
    assert config["dump_state"] and "bf16" not in config and config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [config[size] for size in sizes] == [3, 4, 0.5]


def test_the_resolved_recipe_is_a_recipe_again(load, tmp_path):
    recipe = load(MINIMAL + "sft:\n  lora: {}\n")
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude={"store"})))
    assert load_recipe(path) == recipe


def test_the_schema_describes_every_key_and_allows_the_shorthands():
    schema = recipe_schema()
    undescribed = [
        f"{block}.{key}"
        for block, definition in schema["$defs"].items()
        for key, field in definition.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]
    assert undescribed == []
    assert schema["$defs"]["DataSource"]["anyOf"][0]["type"] == "string"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sft.learning-rate=1", 'found the key "sft.learning-rate", needed key=value; did you mean sft.learning_rate?'),
        ("SFT.epochs=2", "SFT: unknown key; did you mean sft?"),
        ("ppo/kl_coef=1", "did you mean ppo.kl_coef?"),
        ("sft.epochs", "needed key=value; did you mean sft.epochs=?"),
        ("hardware.device=gpu", "found \"gpu\", needed one of 'auto', 'cpu' or 'cuda'; the default is \"auto\""),  # cpu is near, and wrong
        ("sft.num_train_epochs=2", "sft.num_train_epochs: unknown key; did you mean sft.epochs?"),
        ("rm.lr=2", "rm.lr: unknown key; did you mean rm.learning_rate?"),
        ("sft.lora.target_modules=q_proj,v_proj", "needed all-linear or a list of names; write [q_proj, v_proj]"),
        ("sft.lora.target_modules=all", "needed all-linear or a list of names; write all-linear"),
        ("sft.lora.target_modules=q_proj", "needed all-linear or a list of names; write [q_proj]"),
        ("hardware.sbatch=--partition=gpu,--time=30", "needed a list; write [--partition=gpu, --time=30]"),
        ('sft.learning_rate="1e-5"', 'sft.learning_rate: found "1e-5", needed a number; write 1e-5 without quotes'),
        ("sft.epochs=1,5", 'sft.epochs: found "1,5", needed a number; write 1.5'),
        ("evaluate.judge={reward_model: ./none}", 'evaluate.judge.reward_model: found no directory "'),
        ("seed=1,000", 'seed: found "1,000", needed a whole number; write 1000'),
        ("sft=null", "sft: found null, needed a block of keys; write {} for its defaults, or leave it away"),
        ("sft.epochs=many", 'sft.epochs: found "many", needed a number; the default is 1.0'),
        ("sft.learning_rate=1e999", 'sft.learning_rate: found "1e999", needed a number'),
        ("sft.lora=None", 'sft.lora: found "None", needed a block of keys; write null'),
        ("sft.packing=yes", 'sft.packing: found "yes", needed true or false; write true'),
        ("revision=123", "revision: found 123, needed text; write '123' in quotes"),
        ("sft.lora.rank.x=1", '--set: sft.lora.rank: found {"x": 1}, needed a whole number'),
    ],
)
def test_a_slip_on_the_command_line_is_told_with_what_was_meant(problems, override, told):
    (found,) = problems(MINIMAL, override)
    assert found.startswith("--set: ") and told in found


def test_a_slip_in_the_file_is_told_with_its_line_and_what_was_meant(problems):
    text = MINIMAL + 'sft:\n  learning-rate: 1\n  epochs: "2"\n  lora:\n    target_modules: q_proj v_proj\n'
    found = problems(text)
    assert found == [
        "recipe.yaml:5: sft.learning-rate: unknown key; did you mean sft.learning_rate?",
        'recipe.yaml:6: sft.epochs: found "2", needed a number; write 2 without quotes',
        "recipe.yaml:8: sft.lora.target_modules: found the text 'q_proj v_proj', needed all-linear or a list of names; "
        "write [q_proj, v_proj]",
    ]


def test_numbers_lists_null_and_blocks_are_set_as_a_person_means_them(load):
    overrides = ["sft.learning_rate=1e-5", "ppo.learning_rate=1E-05", "ppo.kl_horizon=1e5", "seed=2e3", "ppo.missing_eos_score=null"]
    recipe = load(
        MINIMAL,
        *overrides,
        "rm.lora={rank: 4, alpha: 8}",
        "sft.lora={target_modules: [q_proj, v_proj], merge: true}",
        "ppo.rollout.options=[]",
    )
    assert (recipe.sft.learning_rate, recipe.ppo.learning_rate, recipe.ppo.kl_horizon, recipe.seed) == (1e-5, 1e-5, 100_000, 2000)
    assert (recipe.ppo.missing_eos_score, recipe.rm.lora.rank, recipe.sft.lora.target_modules) == (None, 4, ["q_proj", "v_proj"])
    assert recipe.ppo.rollout.options == []


def test_an_override_changes_a_part_of_a_shorthand(load, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "x"}\n')
    data = load(MINIMAL, f"data.prompts.train={tmp_path / 'mine.jsonl'}").data
    assert data.prompts.train.path == str(tmp_path / "mine.jsonl")
    assert (data.prompts.eval.path, data.comparisons.train.path) == ("demo:prompts.eval", "demo:comparisons.train")


def test_a_windows_path_in_double_quotes_is_told_as_such(problems):
    (found,) = problems(MINIMAL + 'store: "C:\\Users\\me"\n')
    assert found.startswith("recipe.yaml:4: ") and "a backslash in double quotes begins an escape" in found


def test_lists_can_be_set_on_the_command_line(load):
    assert load(MINIMAL, "hardware.sbatch=[--partition=gpu, --time=30]").hardware.sbatch == ["--partition=gpu", "--time=30"]


def test_a_chat_template_is_a_keyword_a_name_or_a_file_beside_the_recipe(load, tmp_path):
    def template(value):
        return load(MINIMAL + f"tokens: {{chat_template: {value}}}\n").tokens.chat_template

    (tmp_path / "plain").write_text("a file of this name is not meant")
    (tmp_path / "own").write_text("{{ messages }}")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    assert [template(value) for value in ("auto", "plain", "tool_use")] == ["auto", "plain", "tool_use"]
    assert template("chat.jinja") == str(tmp_path / "chat.jinja") and template("own") == str(tmp_path / "own")


def test_a_chat_template_that_is_not_there_and_a_variable_of_each_call_are_told_with_their_lines(problems):
    (problem,) = problems(MINIMAL + "tokens:\n  chat_template: ./chat.jinja\n")
    assert problem.startswith('recipe.yaml:5: tokens.chat_template: found no file "') and problem.endswith("check the path")
    (problem,) = problems(MINIMAL + "tokens:\n  template_args: {messages: []}\n")
    assert problem.startswith("recipe.yaml:5: tokens.template_args: found 'messages', needed a variable of the chat template")


def test_a_recipe_has_the_stages_of_its_blocks(load, tmp_path):
    (tmp_path / "texts.txt").write_text("a text")
    assert load(MINIMAL).stages == ("sft", "rm", "ppo", "evaluate")
    assert load(MINIMAL + "pretrain:\nevaluate:\n").stages == ("sft", "rm", "ppo")
    data = "data: {texts: texts.txt, demonstrations: demo, comparisons: demo, prompts: demo}\n"
    recipe = load("base_model: demo\npretrain: {}\n" + data)
    assert recipe.data.texts.train.path == str(tmp_path / "texts.txt")
    assert recipe.stages == ("pretrain", "sft", "rm", "ppo", "evaluate")
    assert (recipe.parents("sft"), recipe.parents("rm")) == (("pretrain",), ("sft",))


@pytest.mark.parametrize(
    ("blocks", "sampled", "evaluated"),
    [
        ("", 63, None),
        ("ppo: {max_response_tokens: 32}\n", 32, 32),
        ("ppo: {max_response_tokens: 64}\n", 63, 64),
        ("ppo: {max_response_tokens: 32}\nsample: {max_response_tokens: 64}\n", 64, 32),
    ],
)
def test_an_answer_to_rank_leaves_room_for_the_end_token_that_it_gets_as_a_record_unless_a_recipe_says_otherwise(
    load, blocks, sampled, evaluated
):
    recipe = load(MINIMAL + "tokens: {max_response_tokens: 64}\n" + blocks)
    assert recipe.settings("sample").max_response_tokens == sampled
    assert recipe.settings("evaluate").max_response_tokens == evaluated


def test_pretraining_is_checked_as_the_other_stages_are(problems):
    stages = ("pretrain", "sft", "rm", "ppo")
    assert problems(MINIMAL + "pretrain: {}\n", stages=stages) == [
        "recipe.yaml:3: data.texts: missing; pretrain read it; give a file, a dataset id or demo"
    ]
    text = "base_model: demo\ndata:\n  texts: demo\n  demonstrations: demo\n"
    text += "pretrain:\n  lora: {}\n  batch_size: 3\n  micro_batch_size: 1\n  trainer_args: {learn: 1}\nsft:\n  lora: {}\n"
    text += "hardware:\n  processes: 2\n"
    found = problems(text, stages=("pretrain", "sft"))
    assert [line.partition(", ")[0] for line in found] == [
        'recipe.yaml:3: data.texts: found "demo"',
        "recipe.yaml:7: pretrain.batch_size: found 3",
        "recipe.yaml:9: pretrain.trainer_args.learn: unknown key of TRL's SFTConfig; see its documentation",
        "recipe.yaml:11: sft.lora: found sft.lora (rank 16) on top of pretrain.lora.merge = false",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 99999999999999999999", "seed: found 99999999999999999999, needed a whole number below 2,147,483,648; lower it"),
        ("sft: {batch_size: -99999999999999999999}", "sft.batch_size: found -99999999999999999999, needed a whole number below"),
        ("ppo: {iterations: 100000000000000000000}", "ppo.iterations: found 100000000000000000000, needed a whole number below"),
        ("sft: {trainer_args: {dataloader_num_workers: 99999999999999999999}}", "sft.trainer_args.dataloader_num_workers: found 99999"),
        ("sft: {lora: {rank: 100000000000000000000000}}", "sft.lora.rank: found 100000000000000000000000, needed a whole number below"),
        ("sft: {lora: {rank: 1000000}}", "sft.lora.rank: found 1000000, needed at most 65536"),
        ("hardware: {threads: 4096}", "hardware.threads: found 4096, needed at most 1024"),  # with which a stage dies by SIGSEGV
        ("hardware: {threads: 1000000}", "hardware.threads: found 1000000, needed at most 1024"),
        ("hardware: {processes: 1000000}", "hardware.processes: found 1000000, needed at most 1024"),
        ("sft: {learning_rate: 1e400}", 'sft.learning_rate: found "1e400", needed a number'),
        (f"sft: {{learning_rate: {'9' * 5000}}}", 'sft.learning_rate: found "99999'),
        ('hardware: {sbatch: ["--time=1\\n"]}', "hardware.sbatch: found '--time=1\\n', needed options of sbatch on one line each"),
        (f"base_model: {'x' * 300}", "base_model: "),
        ('judge_directory: "a\\0b"', "judge_directory: found 'a\\x00b', which the system refuses"),
        (f"store: /tmp/{'x' * 300}", "store: found '/tmp/xxxxx"),
    ],
)
def test_a_value_beyond_all_sense_is_one_line_before_anything_starts(problems, line, message):
    """S7."""
    text = MINIMAL.replace("base_model: demo\n", "") if line.startswith("base_model") else MINIMAL
    (found,) = problems(text + line + "\n")
    assert re.sub(r"^recipe.yaml:\d: ", "", found).startswith(message) and len(found) < 600 and found.isprintable()


@pytest.mark.parametrize("block", ["", "sft:\n", "sft:\n  trainer_args:\n", "tokens:\n  template_args:\n"])
def test_twenty_thousand_unknown_keys_are_told_quickly_and_not_all(tmp_path, block):
    depth = "  " * block.count("\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL + block + "".join(f"{depth}{'k-' if 'template' in block else 'k'}{i}: 1\n" for i in range(20_000)))
    begin = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert time.process_time() - begin < 3  # 0.4 s where it was written, over 7 s before
    lines = str(caught.value).splitlines()
    assert len(lines) in (1, 41) and (len(lines) == 1 or lines[-1] == "and 19960 more")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"wandb": {"enabled": true}}', "wandb.enabled: it needs wandb, which is not installed; install it, or take wandb out"),
        ('{"tensorboard": {"enabled": true}}', "tensorboard.enabled: it needs tensorboard, which is not installed"),
        ('{"comet": {"enabled": true}}', "comet.enabled: it needs comet_ml, which is not installed"),
        ('{"zero_optimization": 3}', "zero_optimization = 3: needed a JSON object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(problems, tmp_path, monkeypatch, content, message):
    """F14: those that a recipe can ask for by DeepSpeed's configuration."""
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # what is so is not found
    (tmp_path / "zero.json").write_text(content)
    (found,) = problems(MINIMAL + "hardware:\n  deepspeed_config: zero.json\n")
    assert found.startswith("recipe.yaml:5: hardware.deepspeed_config: found") and message in found
