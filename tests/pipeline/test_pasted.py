"""Commands that messages name do, when pasted, what the message says: with the recipe, the changes and the store of who said so."""

import os
import shlex
import subprocess
import sys

import pytest

from pipeline.pasted import complete, keep_recipe, keep_store, pasted
from pipeline.text import clean


def test_without_anything_given_messages_stay_as_they_are():
    keep_store("store", "store")
    keep_recipe("demo", [])
    told = "sft@v1 is withdrawn; `rlhf run` makes another one, see `rlhf show sft@v1 --all`"
    assert complete(told) == told


def test_commands_name_the_store_and_those_that_take_a_recipe_the_recipe_and_its_changes():
    keep_store("my store", "store")
    keep_recipe("mine.yaml", ["ppo.kl_coef=0.1", "sample={answers: 3}"])
    changes = "--set ppo.kl_coef=0.1 --set 'sample={answers: 3}'"
    told = complete("`rlhf rm ppo@v3`, or `rlhf run --until ppo`")
    assert told == f"`rlhf rm ppo@v3 --store 'my store'`, or `rlhf run mine.yaml --until ppo {changes} --store 'my store'`"
    assert pasted("rlhf round") == f"rlhf round mine.yaml {changes} --store 'my store'"


def test_a_recipe_whose_name_begins_with_a_dash_is_no_option_when_pasted():
    keep_store("store", "store")
    keep_recipe("-mine.yaml", [])
    assert pasted("rlhf run") == "rlhf run ./-mine.yaml"


@pytest.mark.parametrize("name", [b"two\nlines", b"b\xff\xfe it's \\ $HOME", "\u202eafé\u0301".encode(), b"tab\t1"])
def test_names_that_a_line_cannot_show_are_the_same_bytes_when_pasted(name):
    keep_store(os.fsdecode(name), "store")
    told = clean(complete("see `rlhf ls`"))[len("see `") : -1]
    shell = ["bash", "-c", f'rlhf() {{ printf %s "$3"; }}; {told}']
    assert subprocess.run(shell, capture_output=True, check=True).stdout == name, told


@pytest.mark.parametrize(
    "command", ["rlhf config --schema", "rlhf ls s3://bucket/team", "rlhf show ppo --store elsewhere", "rlhf ls s3://bucket/team rm"]
)
def test_what_takes_no_store_of_this_machine_or_names_one_is_left_alone(command):
    keep_store("mine", "store")
    assert pasted(command) == command


def test_what_was_not_done_is_no_command_to_paste():
    keep_store("mine", "store")
    assert complete("ppo@v1 is gone without `rlhf rm`") == "ppo@v1 is gone without `rlhf rm`"


@pytest.mark.slow
def test_what_show_and_verify_suggest_of_a_store_elsewhere_works_when_pasted(finished_run, tmp_path):
    """By each door through which lines leave: tables, errors, single lines."""
    (tmp_path / "a store").symlink_to(finished_run.store)
    rlhf = [sys.executable, "-P", "-m", "pipeline.cli"]

    def run(*arguments):
        return subprocess.run([*rlhf, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    shown = run("show", "ppo", "--store", "a store").stdout
    for label, code in (("everything: ", 0), ("more answers: ", 0)):
        command = next(line.removeprefix(label) for line in shown.splitlines() if line.startswith(label))
        assert run(*shlex.split(command)[1:]).returncode == code, command
    wrong = run("show", "ppo@v77", "--store", "a store")
    assert wrong.returncode == 4 and wrong.stderr.endswith("see `rlhf ls --store 'a store'`\n")
    lacking = run("run", str(finished_run.recipe_path), "--only", "rm", "--set", "seed=2", "--store", "a store")
    assert lacking.stderr.endswith(f"run `rlhf run {finished_run.recipe_path} --until rm --set seed=2 --store 'a store'`\n"), lacking.stderr
