"""What an evaluation will not be able to say is said before anything trains."""

import shutil
import subprocess
import sys

import pytest

from data.system.limits import count_cores
from pipeline import foreseen
from pipeline.errors import ConfigError
from pipeline.foreseen import foresee, foresee_evaluation, require_server, warn_of_threads, warn_of_warmup
from pipeline.recipe.load import find_recipe, load_recipe


def test_few_prompts_are_told_with_what_they_show():
    (none,) = foresee_evaluation(6, has_judge=True)
    few = "held-out prompts may be too few to show a win rate of PPO over SFT: at worst"
    assert none.startswith(f"6 {few} none at all, where 100 prompts show one of 64%; give more in data.prompts.eval")
    (coarse,) = foresee_evaluation(20, has_judge=True)
    assert coarse.startswith(f"20 {few} only one of 81% or more, where 100 prompts show one of 64%; ")


def test_a_missing_judge_is_told_with_what_it_costs():
    (told,) = foresee_evaluation(128, has_judge=False)
    assert "no judge is named" in told and told.endswith("give judge: module:function")
    assert foresee_evaluation(128, has_judge=True) == []


def test_long_answers_that_are_dropped_are_told_before_anything_trains_though_all_comparisons_stay(base_model_dir):
    recipe = load_recipe(find_recipe("demo"), [f"base_model={base_model_dir}", "rm.warmup_steps=0"])
    found = {"comparisons": 100, "comparisons_used": 100, "prompts_cut": 0, "responses_dropped": 30, "comparisons_without_pair": 0}
    splits = {"train": found | {"answers": 300}, "eval": found | {"answers": 300}}
    assert foresee(recipe, {"comparisons": splits})["comparisons"] == [
        "60 of 600 answers (10%) are longer than 96 tokens and dropped: what a long answer is worth is not learnt; raise "
        "tokens.max_response_tokens"
    ]
    assert foresee(recipe, {"comparisons": {"train": found}})["comparisons"] == []  # of an earlier version


def test_a_server_that_is_not_there_is_told_before_anything_trains():
    def recipe(*overrides):
        return load_recipe(find_recipe("demo"), ["ppo.rollout.engine=vllm", *overrides])

    with pytest.raises(ConfigError, match=r"--set: ppo.rollout.command: no-such-vllm is not a program on .*; vLLM in an environment"):
        require_server(recipe("ppo.rollout.command=[no-such-vllm]"), ["sft", "rm", "ppo", "evaluate"])
    for there in ("ppo.rollout.command=[env, no-such-vllm]", "ppo.rollout.server=http://h:1", "ppo.rollout.engine=torch"):
        require_server(recipe("ppo.rollout.command=[no-such-vllm]", there), ["sft", "rm", "ppo", "evaluate"])
    require_server(recipe("ppo.rollout.command=[no-such-vllm]"), ["sft", "rm"])


def test_a_margin_from_grades_needs_some_before_anything_trains(base_model_dir):
    recipe = load_recipe(find_recipe("demo"), [f"base_model={base_model_dir}", "rm.margin=grade", "rm.warmup_steps=0"])
    found = {"comparisons": 100, "comparisons_used": 100, "prompts_cut": 0, "responses_dropped": 0, "comparisons_without_pair": 0}
    with pytest.raises(ConfigError) as caught:
        foresee(recipe, {"comparisons": {"train": found}})
    found_none = "found grade, but no comparison to train on has grades"
    needed = "needed the column grades, 1 to 7 for each answer, in some; give them, or set none"
    assert str(caught.value) == f"--set: rm.margin: {found_none}; {needed}"
    assert foresee(recipe, {"comparisons": {"train": found | {"comparisons_graded": 3}}})["comparisons"] == []


def test_threads_of_all_processes_are_held_against_the_cores_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = count_cores()
    recipe = tmp_path / "mine.yaml"

    def tell(**hardware):
        lines = "".join(f"  {key}: {value}\n" for key, value in hardware.items())
        recipe.write_text(f"base_model: demo\ndata: demo\nhardware:\n  device: cpu\n{lines}")
        return list(warn_of_threads(load_recipe(recipe)))

    assert tell() == tell(threads=cores) == tell(processes=cores, threads=1) == tell(processes=cores) == []
    (alone,) = tell(threads=cores + 1)
    assert alone.startswith(f"{recipe}:5: hardware.threads: found {cores + 1}, needed this machine's {cores} core") and "lower it" in alone
    (together,) = tell(processes=4, threads=cores)
    assert f"{recipe}:6: hardware.threads: found {cores}, {4 * cores} in all 4 processes, needed" in together or cores == 1
    for many in ({"processes": 2 * cores}, {"processes": 2 * cores, "threads": 1}):  # torchrun starts them with one thread each
        (turns,) = tell(**many)
        assert turns.startswith(f"{recipe}:5: hardware.processes: found {2 * cores}, needed this machine's")
    assert tell(nodes=2, threads=cores + 1) == []  # other machines, with other cores

    monkeypatch.setenv("OMP_NUM_THREADS", f"{cores + 1},2")
    (told,) = tell()
    assert told.startswith(f"OMP_NUM_THREADS: found {cores + 1} in the environment, needed this machine's")
    assert tell(threads=cores) == []  # the recipe's own count
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS: found 4,096 in the environment, needed at most 1,024"):
        tell()


def test_threads_beyond_the_time_that_a_container_has_are_told_with_both_numbers(monkeypatch):
    monkeypatch.setattr(foreseen, "count_cores", lambda: 2)
    monkeypatch.setattr(foreseen, "count_allowed", lambda: 64)
    recipe = load_recipe(find_recipe("demo"), ["hardware.threads=8", "hardware.processes=1", "hardware.device=cpu"], has_files=False)
    (told,) = warn_of_threads(recipe)
    needed = "needed 2 or fewer, the cores whose time a limit (of a container, a job) leaves it of this machine's 64"
    assert told.startswith(f"--set: hardware.threads: found 8, {needed}: they take turns")


def test_processes_that_cannot_meet_are_told_before_anything_trains():
    """By network namespaces: with the loopback network down, and up."""
    script = """
import sys
from pipeline.errors import ConfigError
from pipeline.foreseen import require_meeting
from pipeline.recipe.load import find_recipe, load_recipe
for change in ("hardware.processes=1", "hardware.processes=2", "hardware.nodes=2"):
    try:
        require_meeting(load_recipe(find_recipe("demo"), ["hardware.processes=1", change], has_files=False))
        print("met")
    except ConfigError as error:
        print(error)
"""

    def tell(prepare):
        command = ["unshare", "--map-root-user", "--net", "sh", "-c", f'{prepare} && exec "$0" -c "$1"', sys.executable, script]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if (done := tell("true")).returncode:
        pytest.skip(f"no network namespace can be made here: {done.stderr[:100]}")
    alone, several, nodes = done.stdout.splitlines()
    assert alone == nodes == "met"
    assert several.startswith(
        "--set: hardware.processes: found 2, needed localhost to be reached, where processes meet, which failed: [Errno "
    )
    assert "`ip link set lo up`" in several
    if shutil.which("ip"):
        assert tell("ip link set lo up").stdout == "met\n" * 3


def test_a_warmup_that_outlasts_its_stage_is_told_before_anything_trains(base_model_dir):
    def tell(kind, counts, *overrides):
        recipe = load_recipe(
            find_recipe("demo"),
            [
                f"base_model={base_model_dir}",
                "hardware.processes=1",
                "pretrain={sequence_length: 11}",
                f"data.texts={{train: {__file__}}}",
                *overrides,
            ],
        )
        return list(warn_of_warmup(recipe, kind, counts))

    demos, ranked, texts = {"demonstrations_used": 23}, {"comparisons_used": 23}, {"texts_used": 3, "text_tokens": 200}
    small = ["sft.batch_size=8", "sft.micro_batch_size=8", "rm.batch_size=8", "rm.micro_batch_size=8"]
    assert tell("demonstrations", demos, *small, "sft.epochs=1", "sft.warmup_steps=3") == [
        "--set: sft.warmup_steps: found 3, needed at most 2 in a stage of 3 optimizer steps: the learning rate gets no further than "
        "66.7% of sft.learning_rate; lower it"
    ]
    assert tell("demonstrations", demos, *small, "sft.epochs=1", "sft.warmup_steps=2") == []
    assert tell("demonstrations", demos, *small, "sft.epochs=1.1", "sft.warmup_steps=3") == []  # a fourth step
    assert tell("demonstrations", demos, *small, "sft.warmup_steps=9", "sft.trainer_args.max_steps=10") == []
    (one,) = tell("comparisons", ranked, *small, "rm.epochs=0.01", "rm.warmup_steps=1")
    assert "needed at most 0 in a stage of 1 optimizer step: the learning rate gets no further than 0.0% of rm.learning_rate" in one
    twice = "data.comparisons.train=[{path: demo, weight: 2}]"
    assert tell("comparisons", ranked, *small, "rm.epochs=1", "rm.warmup_steps=5", twice) == []
    assert len(tell("comparisons", ranked, *small, "rm.epochs=1", "rm.warmup_steps=6", twice)) == 1
    rows = ["pretrain.batch_size=1", "pretrain.micro_batch_size=1"]
    assert len(tell("texts", texts, *rows, "pretrain.warmup_steps=23")) == 1  # 20 tokens to learn a row, and an end of each text
    assert tell("texts", texts, *rows, "pretrain.warmup_steps=22") == []
    assert tell("prompts", {"prompts": 8}, "ppo.iterations=4", "ppo.warmup_steps=4") == []
    (told,) = tell("prompts", {"prompts": 8}, "ppo.iterations=4", "ppo.warmup_steps=5")
    assert "found 5, needed at most 4 in a stage of 4 iterations: the learning rate gets no further than 80.0%" in told
