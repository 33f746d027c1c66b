"""What an adapter stands on is found where its store was moved to, and never taken for another artifact of the same number."""

import json

import pytest

from stages.adapter_base import locate_base, read_base


@pytest.fixture
def make_store(tmp_path):
    """A function: name, content id of sft@v1, of which parent ppo@v1 says it is -> the store's root, its adapter named by whole path."""

    def make(name, content_id="a1", parent="a1"):
        root = tmp_path / name
        base, policy = root / "artifacts" / "sft" / "v0001", root / "artifacts" / "ppo" / "v0001"
        (base / "merged").mkdir(parents=True)
        (policy / "model").mkdir(parents=True)
        (base / "manifest.json").write_text(json.dumps({"content_id": content_id, "parents": []}))
        (policy / "manifest.json").write_text(json.dumps({"content_id": "b2", "parents": [{"ref": "sft@v1", "content_id": parent}]}))
        config = {"base_model_name_or_path": str(base / "merged"), "revision": None}
        (policy / "model" / "adapter_config.json").write_text(json.dumps(config))
        return root

    return make


def test_a_store_that_was_moved_opens_its_adapters(make_store, tmp_path):
    root = make_store("before")
    adapter = "artifacts/ppo/v0001/model"
    assert read_base(root / adapter) == (str(root / "artifacts/sft/v0001/merged"), None)
    moved = root.rename(tmp_path / "after")
    assert read_base(moved / adapter) == (str(moved / "artifacts/sft/v0001/merged"), None)


def test_an_artifact_of_the_same_number_and_another_content_is_not_taken(make_store, tmp_path):
    named = str(make_store("before", content_id="c3") / "artifacts/sft/v0001/merged")
    moved = (tmp_path / "before").rename(tmp_path / "after")
    assert read_base(moved / "artifacts/ppo/v0001/model") == (named, None)


@pytest.mark.parametrize("named", ["org/model", "/models/llama", "relative/artifacts/sft/v0001/merged"])
def test_what_is_no_artifact_of_a_store_stays_as_it_is_named(make_store, named):
    assert locate_base(named, make_store("store") / "artifacts/ppo/v0001/model") == named


def test_a_damaged_manifest_leaves_the_path_as_it_is_named(make_store, tmp_path):
    named = str(make_store("before") / "artifacts/sft/v0001/merged")
    moved = (tmp_path / "before").rename(tmp_path / "after")
    (moved / "artifacts/ppo/v0001/manifest.json").write_text("[]")
    assert read_base(moved / "artifacts/ppo/v0001/model") == (named, None)


def test_a_directory_without_an_adapter_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_base(tmp_path)
