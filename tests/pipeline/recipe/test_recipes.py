"""Every packaged recipe loads, and its first line says what it is."""

from pathlib import Path

import pytest

import pipeline
from pipeline.recipe.load import load_recipe

RECIPES = sorted((Path(pipeline.__file__).parent / "recipes").glob("*.yaml"))


def test_the_recipes_are_packaged():
    assert {path.stem for path in RECIPES} >= {"demo", "qwen2.5-0.5b-lora", "llama-3.1-8b-qlora", "llama-3.1-8b-zero3"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_called_as_its_file(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_first_lines_say_what_on_what_and_how_long(path):
    head = " ".join(path.read_text().splitlines()[:2])
    assert head.startswith("# What: ")
    assert "On what: " in head
    assert "How long: " in head


def test_the_demo_needs_no_network():
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "demo"))
    sources = [
        source.path
        for splits in (recipe.data.demonstrations, recipe.data.comparisons, recipe.data.prompts)
        for source in (splits.train, splits.eval)
    ]
    assert all(source.startswith("demo") for source in [recipe.base_model, *sources])
