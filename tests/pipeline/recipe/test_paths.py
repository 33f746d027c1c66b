"""Paths in a recipe: odd names, links, home directories, and what is told of one that is not there."""

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.recipe.load import find_recipe, load_recipe


def problems_of(recipe_path, *overrides, **options):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path, overrides, **options)
    assert all(line.isprintable() for line in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("name", ["a b", "grün und 日本", "two\nlines", "tab\there", "$(touch x)", "-dash", "quo'te\"s", "x" * 200])
def test_a_recipe_in_a_directory_of_any_name_finds_its_files(recipe_path, name):
    odd = recipe_path.parent.with_name(name)
    recipe_path.parent.rename(odd)
    recipe = load_recipe(odd / "recipe.yaml")
    assert (recipe.base_model, recipe.data.prompts.train.path) == (str(odd / "base"), str(odd / "prompts.jsonl"))


def test_a_path_that_is_no_utf8_is_told_on_one_line_with_its_bytes(recipe_path):
    odd = os.fsdecode(os.fsencode(recipe_path.parent.parent) + b"/caf\xe9\nx")
    recipe_path.parent.rename(odd)
    found = problems_of(find_recipe(f"{odd}/recipe.yaml"))
    assert len(found) == 4 and all(r"/caf\xe9\nx/" in line and "needed a path in UTF-8" in line for line in found)
    assert found[0].split(": ")[1] == "base_model"


def test_a_link_keeps_its_name(recipe_path, tmp_path):
    """A hub's cache holds links to files that are called by their hash."""
    blob = tmp_path / "0123abcd"
    (recipe_path.parent / "prompts.jsonl").rename(blob)
    (recipe_path.parent / "prompts.jsonl").symlink_to(blob)
    (tmp_path / "elsewhere").symlink_to(recipe_path.parent)
    recipe = load_recipe(tmp_path / "elsewhere" / "recipe.yaml")
    assert recipe.data.prompts.train.path == str(recipe_path.parent / "prompts.jsonl")


def test_a_home_directory_is_filled_in_and_one_that_nobody_has_is_told(recipe_path, monkeypatch):
    monkeypatch.setenv("HOME", str(recipe_path.parent))
    assert load_recipe(recipe_path, ["data.prompts=~/prompts.jsonl"]).data.prompts.train.path == str(recipe_path.parent / "prompts.jsonl")
    assert find_recipe("~/recipe.yaml") == recipe_path
    (found,) = problems_of(recipe_path, "data.prompts=~nobody-of-that-name/prompts.jsonl")
    assert "found no file" in found and "~nobody-of-that-name/prompts.jsonl" in found


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("$DATA/prompts.jsonl", "variables such as $HOME are not filled in"),
        ("${DATA}/prompts.jsonl", "variables such as $HOME are not filled in"),
        (r"C:\Users\me\prompts.jsonl", "that reads as a path of Windows"),
        (r"data\prompts.jsonl", "that reads as a path of Windows"),
        ("C:/Users/me/prompts.jsonl", "that reads as a path of Windows"),
        ("https://some.org/prompts.jsonl", "reads as an address, which nothing is read from: fetch it"),
        ("s3://bucket/prompts.jsonl", "reads as an address, which nothing is read from: fetch it"),
        ("hf://datasets/me/prompts.jsonl", "reads as an address, which nothing is read from: name its id (owner/name)"),
        ("https://huggingface.co/me/prompts.jsonl", "name its id (owner/name)"),
        ("nowhere/prompts.jsonl", "give a path relative to the recipe, or absolute"),
    ],
)
@pytest.mark.parametrize("key", ["data.prompts", "base_model"])
def test_a_path_that_is_not_there_is_told_whole_and_with_what_it_looks_like(recipe_path, key, value, told):
    if key == "base_model":
        value, told = (
            f"./{value}",
            told.replace("give a path relative to the recipe, or absolute", "give a model directory, a hub id or demo"),
        )
    (found,) = problems_of(recipe_path, f"{key}={value}")
    assert found.startswith(f"--set: {key}") and told in found
    assert value.removeprefix("./").replace("://", ":/") in found


def test_what_reads_as_a_hub_id_and_is_nowhere_is_told_as_both_before_it_runs(recipe_path, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    text = recipe_path.read_text().replace("base_model: base", "base_model: models/mine").replace("prompts.jsonl", "data/prompts")
    recipe_path.write_text(text)
    assert load_recipe(recipe_path).base_model == "models/mine"  # a recipe can be looked at
    found = problems_of(recipe_path, to_run=True)
    assert [line.split(": ")[:2] for line in found] == [
        [f"{recipe_path}:2", "base_model"],
        [f"{recipe_path}:6", "data.prompts.train"],
    ]
    assert "found no file or directory models/mine, and no model of that id in the hub's cache" in found[0]
    assert "found no file or directory data/prompts, and no dataset of that id in the hub's cache" in found[1]
    (tmp_path / "datasets" / "data___prompts").mkdir(parents=True)
    snapshot = tmp_path / "hub" / "models--models--mine" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--models--mine" / "refs").mkdir()
    (tmp_path / "hub" / "models--models--mine" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_recipe(recipe_path, to_run=True).base_model == "models/mine"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert load_recipe(recipe_path, ["base_model=models/other"], to_run=True).base_model == "models/other"  # the hub will say


def test_a_recipe_that_is_named_nearly_right_is_suggested_and_records_are_told_as_records(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for typed in ("mine.yml", "min.yaml"):
        with pytest.raises(ConfigError, match=f"did you mean {tmp_path}/mine.yaml"):
            find_recipe(f"{tmp_path}/{typed}")
    (tmp_path / "demos.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"demos\.jsonl: found a file of records, needed a recipe that names it"):
        find_recipe(f"{tmp_path}/demos.jsonl")
