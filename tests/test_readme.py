"""What the README and the pages beside the code tell people to type exists, what they show loads, and where they point is something."""

import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe.explain import declared_keys
from pipeline.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "stages", "pipeline")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted(path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("README.md")),
    ]
}
README = PAGES["README.md"]


def blocks_of(text):
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(text):
    """All that a page tells people to type: in code blocks, where a backslash continues a line, and inside of sentences."""
    for language, block in blocks_of(text):
        if language in ("", "sh"):
            yield from (line.removeprefix("$ ").split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    yield from re.findall(r"`((?:rlhf|make) [^`]+)`", text)


COMMANDS = sorted({command.removeprefix(".venv/bin/") for text in PAGES.values() for command in commands_of(text)})
RLHF = [command for command in COMMANDS if command.startswith("rlhf ")]
MAKE = sorted({command.split()[1] for command in COMMANDS if command.startswith("make ")})
OVERRIDES = [words for command in COMMANDS for words in [*re.findall(r"--set (\S+)", command), *re.findall(r'SET="([^"]*)"', command)]]
KEYS = sorted(
    {key for words in OVERRIDES for key in re.findall(r"(?:^|[ '])([\w.]+)=", words)}
    | {key for text in PAGES.values() for key in re.findall(r"`((?:tokens|sft|rm|ppo|hardware)\.(?!py)[a-z_.]+)[`:=]", text)}
)
KNOWN_KEYS = declared_keys().keys()


@cache
def help_of(verb):
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_the_readme_names_the_two_commands():
    assert [line.split("#")[0].strip() for line in blocks_of(README)[1][1].splitlines()] == ["make pipeline", "make test"]


@pytest.mark.parametrize("target", MAKE)
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", RLHF)
def test_an_rlhf_command_and_its_options_exist(command):
    verb, *words = command.removeprefix("rlhf ").split()
    shown = help_of(verb)
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_the_help_of_each_command_has_an_example():
    commands = [command.callback for command in app.registered_commands]
    assert commands
    assert [function.__name__ for function in commands if not re.search(r"Examples?: `?rlhf ", function.__doc__)] == []


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_a_page_names_exists(key):
    assert tuple(key.split(".")) in KNOWN_KEYS


@pytest.mark.parametrize("command", [command for command in COMMANDS if "BENCH=" in command])
def test_a_benchmark_and_its_options_exist(command):
    source = (ROOT / "tests" / "bench" / "__main__.py").read_text(encoding="utf-8")
    for word in re.findall(r"(?<![\w-])(?:--)?[a-z]+", command.partition("BENCH=")[2]):
        assert f'"{word}"' in source


def test_the_recipe_in_the_readme_loads(tmp_path):
    recipe = next(text for language, text in blocks_of(README) if language == "yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(recipe, encoding="utf-8")
    (tmp_path / "data").mkdir()
    for name in ("demos", "ranked", "prompts"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("{}\n", encoding="utf-8")
    recipe_with_hub_model = load_recipe(path, ["base_model=Qwen/Qwen2.5-0.5B-Instruct"])
    assert recipe_with_hub_model.ppo.lora is not None


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_code_fits_the_width_that_github_shows(page):
    for _, block in blocks_of(PAGES[page]):
        limit = 110 if block.startswith("data/") else 100
        assert [line for line in block.splitlines() if len(line) > limit] == []


# The trees


def tree_of(page):
    """Paths of the packages in a page's tree: (folders, files)."""
    tree = next(text for _, text in blocks_of(PAGES[page]) if text.startswith("data/"))
    parents: list[str] = []
    paths = set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        parents = [*parents[: len(indent) // 2], name]
        path = "".join(parents)
        assert path not in paths, "twice in the tree"
        paths.add(path)
    paths = {path for path in paths if path.startswith(PACKAGES)}
    return {path for path in paths if path.endswith("/")}, {path for path in paths if not path.endswith("/")}


def real_tree():
    """The same of the disk, but for `__init__.py` and recipes."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    folders = {f"{folder.relative_to(ROOT)}/" for path in found for folder in path.parents if ROOT in folder.parents}
    files = {str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py" and path.suffix != ".yaml"}
    return folders, files


def test_the_tree_for_contributors_is_the_real_one():
    for shown, real in zip(tree_of("CONTRIBUTING.md"), real_tree(), strict=True):
        assert shown - real == set(), "not on the disk"
        assert real - shown == set(), "not in the tree"


def test_the_readmes_tree_has_all_folders_and_names_real_files():
    folders, files = tree_of("README.md")
    assert folders == real_tree()[0]
    assert files <= real_tree()[1]


# Links and figures


def anchors_of(text):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [(page, target) for page, text in PAGES.items() for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_somewhere(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.exists()
    if anchor:
        assert anchor in anchors_of(path.read_text(encoding="utf-8"))


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_each_fault_and_attack_and_what_a_gpu_must_keep_names_tests_that_are_there():
    rows = [row for row in rows_of(PAGES["tests/README.md"]) if re.fullmatch(r"[FSG]\d+", row[0])]
    named = [f"{letter}{number}" for letter, count in (("F", 15), ("S", 12), ("G", 24)) for number in range(1, count + 1)]
    assert [row[0] for row in rows] == named
    for name, _, _, shown, *_ in rows:
        named = [(path, test) for path, tests in re.findall(r"\]\((\S+)\): ([^<]+)", shown) for test in re.findall(r"`(\w+)`", tests)]
        assert named and len(named) == shown.count("`test_"), name
        for path, test in named:
            assert f"def {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), f"{name}: {path}::{test}"


def test_the_readmes_learning_table_is_an_excerpt():
    rows = [row for row in rows_of(README) if "`demo@" in row[0]]
    whole = [row for row in rows_of(PAGES["tests/learning/README.md"]) if "`demo@" in row[0]]
    assert len(rows) == 3
    for row in rows:
        assert any(row[0] == other[0] and set(row) <= set(other) for other in whole), row


def test_the_readmes_speed_table_is_an_excerpt():
    rows = [row for row in rows_of(README) if re.match(r"(RM|SFT|PPO), ", row[0])]
    whole = {cell for row in rows_of(PAGES["tests/bench/README.md"]) for cell in row}
    assert len(rows) == 3
    for row in rows:
        assert set(row[1:]) <= whole, row
