"""A base model's identity: all that loading it reads counts; what it names outside of itself is refused before anything (S4)."""

import json
import shutil
import struct

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.base_model import identify_model
from pipeline.recipe.base_files import list_weights, pin_revision
from pipeline.recipe.load import load_recipe


def write_weights(path, values=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * values))


def write_index(directory, **shards):
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"metadata": {}, "weight_map": shards})
    (directory / "model.safetensors.index.json").write_text(text)


def change(path):
    """Change a byte of a file, whether it is text or weights."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def base(tmp_path):
    """A directory with weights further down, by an index, and with most of what else can be read."""
    directory = tmp_path / "base"
    write_index(directory, a="shards/one.safetensors", b="shards/two.safetensors")
    for name in ("one", "two"):
        write_weights(directory / "shards" / f"{name}.safetensors")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "added_tokens.json"):
        (directory / name).write_text("{ }")
    (directory / "additional_chat_templates").mkdir()
    for name in (
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "merges.txt",
        "tokenizer.model",
        "bpe.codes",
        "x.tiktoken",
    ):
        (directory / name).write_text("text")
    return directory


def test_every_file_that_loading_reads_counts_and_notes_beside_them_do_not(base):
    known = {identify_model(str(base), None)}
    for name in ("README.md", "original/consolidated.safetensors", "shards/unnamed.safetensors", "LICENSE"):
        write_weights(base / name)
    assert {identify_model(str(base), None)} == known
    read = sorted(
        path for path in base.rglob("*") if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model", ".codes", ".tiktoken")
    )
    read += list_weights(str(base))
    assert len(read) == 14
    for path in read:
        before = path.read_bytes()
        change(path) if path.suffix != ".json" else path.write_text(path.read_text() + "\n")
        known.add(identify_model(str(base), None))
        path.write_bytes(before)
    assert len(known) == 1 + len(read)


def test_the_identity_of_a_directory_without_others_is_what_it_was(tmp_path):
    """Artifacts of before are reused: the sha256 over `name sha256` of each file, by name."""
    import hashlib

    write_weights(tmp_path / "model-1.safetensors")
    (tmp_path / "config.json").write_text("{}")
    write_index(tmp_path, w="model-1.safetensors")
    names = ("config.json", "model-1.safetensors", "model.safetensors.index.json")
    lines = "".join(f"{name} {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n" for name in names)
    assert identify_model(str(tmp_path), None) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_a_snapshot_of_links_to_blobs_is_the_directory_that_it_stands_for(base, tmp_path):
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    shutil.copytree(base, blobs)
    for path in base.rglob("*"):
        link = snapshot / path.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            link.symlink_to(blobs / path.relative_to(base))
    assert identify_model(str(snapshot), None) == identify_model(str(base), None)
    change(blobs / "shards" / "two.safetensors")
    assert identify_model(str(snapshot), None) != identify_model(str(base), None)


def test_weights_that_config_json_names_count(base):
    (base / "model.safetensors.index.json").unlink()
    (base / "config.json").write_text(json.dumps({"transformers_weights": "shards/one.safetensors"}))
    before = identify_model(str(base), None)
    assert list_weights(str(base)) == [base / "shards" / "one.safetensors"]
    change(base / "shards" / "one.safetensors")
    assert identify_model(str(base), None) != before


def test_an_adapter_stands_on_its_whole_chain(base, tmp_path, monkeypatch):
    for name, below in (("first", str(base)), ("second", str(tmp_path / "first")), ("relative", "second")):
        write_weights(tmp_path / name / "adapter_model.safetensors", values=2)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": below}))
    monkeypatch.chdir(tmp_path)
    top = str(tmp_path / "relative")
    known = {identify_model(top, None)}
    assert len(list_weights(top)) == 3 + 2
    for path in (base / "shards" / "two.safetensors", base / "chat_template.jinja", tmp_path / "first" / "adapter_model.safetensors"):
        change(path)
        known.add(identify_model(top, None))
    assert len(known) == 4
    write_weights(tmp_path / "merged" / "model.safetensors")  # is read in place of what adapters beside it stand on
    known.add(identify_model(top, None))
    change(tmp_path / "merged" / "model.safetensors")
    known.add(identify_model(top, None))
    assert len(known) == 6


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/hostname", "shards/../../x.safetensors", "a\0b", "", 7, None])
@pytest.mark.parametrize("by", ["index", "config"])
def test_weights_outside_of_the_directory_are_refused_with_the_recipes_other_faults(recipe_path, shard, by):
    if by == "config" and shard is None:
        pytest.skip("null names none")
    base = recipe_path.parent / "base"
    if by == "index":
        (base / "model.safetensors").unlink()
        write_index(base, w=shard)
    else:
        (base / "config.json").write_text(json.dumps({"transformers_weights": shard}))
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path)
    (line,) = caught.value.problems
    assert "/recipe.yaml:2: base_model: /" in line and line.isprintable()
    assert "needed the name of a file inside the model's directory" in line


def test_what_a_base_model_names_and_is_not_there_is_told_in_one_line(recipe_path, tmp_path):
    base = recipe_path.parent / "base"
    write_index(base, w="gone.safetensors")
    assert load_recipe(recipe_path)  # an index beside a whole file is not read
    (base / "model.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"/recipe.yaml:2: base_model: .*gone\.safetensors: not there, needed as a part of the base model"
    ):
        load_recipe(recipe_path)
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(ConfigError, match=r"base_model_name_or_path: found no directory /nowhere/base, on which the adapter stands"):
        load_recipe(recipe_path)
    for text in ("{", "[]", '{"base_model_name_or_path": 3}', "[" * 100_000):
        (base / "adapter_config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"/recipe.yaml:2: base_model: .*adapter_config\.json.* needed "):
            load_recipe(recipe_path)


def test_adapters_that_stand_on_each_other_are_refused(tmp_path):
    for name, below in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / below)}))
    with pytest.raises(ConfigError, match=r"found .*/one, which stands on this one again"):
        identify_model(str(tmp_path / "one"), None)


def test_a_pipe_in_the_place_of_weights_is_told_and_not_waited_for(base):
    import os

    (base / "shards" / "two.safetensors").unlink()
    os.mkfifo(base / "shards" / "two.safetensors")
    with pytest.raises(StoreError, match=r"two\.safetensors: not a regular file; a file that can be read needed"):
        identify_model(str(base), None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function: make `main` of a model in a hub's cache a commit with these files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def commit(model, number, **files):
        directory = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
        commit = f"{number:040x}"
        (directory / "refs").mkdir(parents=True, exist_ok=True)
        (directory / "refs" / "main").write_text(commit)
        snapshot = directory / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (snapshot / f"{name}.json").write_text(text)
        return commit

    return commit


def test_a_hubs_model_is_the_commit_that_its_revision_names_now(hub):
    first = hub("org/model", 1, config="{}")
    assert pin_revision("org/model", None) == first
    assert identify_model("org/model", first) == f"hub:org/model@{first}"
    second = hub("org/model", 2, config="{}")
    assert [pin_revision("org/model", name) for name in (None, "main", first)] == [second, second, first]
    assert pin_revision("org/unknown", "main") == "main"  # opening it will tell


def test_an_adapter_from_a_hub_stands_on_its_base(hub, base):
    adapter = hub("org/adapter", 1, adapter_config=json.dumps({"base_model_name_or_path": str(base)}))
    before = identify_model("org/adapter", adapter)
    change(base / "shards" / "one.safetensors")
    assert identify_model("org/adapter", adapter) != before
