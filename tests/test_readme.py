"""What the README tells people to type exists, and what it shows loads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language in ("", "sh") for line in text.splitlines()]
RLHF = sorted({line for line in COMMANDS if line.startswith(".venv/bin/rlhf ")})
MAKE = sorted({line.split()[1] for line in COMMANDS if line.startswith("make ")})


def test_the_readme_names_the_two_commands():
    assert {"pipeline", "test"} <= set(MAKE)


@pytest.mark.parametrize("target", MAKE)
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", RLHF)
def test_an_rlhf_command_and_its_options_exist(command):
    verb, *words = command.removeprefix(".venv/bin/rlhf ").split()
    shown = subprocess.run([sys.executable, "-m", "pipeline.cli", verb, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.stdout


def test_the_recipe_in_the_readme_loads(tmp_path):
    recipe = next(text for language, text in BLOCKS if language == "yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(recipe, encoding="utf-8")
    (tmp_path / "data").mkdir()
    for name in ("demos", "ranked", "prompts"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("{}\n", encoding="utf-8")
    recipe_with_hub_model = load_recipe(path, ["base_model=Qwen/Qwen2.5-0.5B-Instruct"])
    assert recipe_with_hub_model.ppo.lora is not None


def test_every_path_in_the_tree_exists():
    tree = next(text for _, text in BLOCKS if text.startswith("data/"))
    folders: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"( *)(\S+)", line)
        assert match
        depth = len(match[1]) // 2
        folders = [*folders[:depth], match[2]]
        path = ROOT.joinpath(*folders)
        assert path.exists(), f"the README's tree names {path.relative_to(ROOT)}, which is not there"
