"""Directories from elsewhere become artifacts that say so; artifacts become plain directories."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.errors import StoreError
from pipeline.export import export
from pipeline.store.importing import import_directory
from pipeline.store.removal import plan_collection
from pipeline.store.store import Store

WEIGHTS = save({"w": np.arange(4, dtype=np.float32)})


@pytest.fixture
def model(tmp_path):
    """A plain model directory."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_plain_model_becomes_an_artifact_that_says_where_it_came_from(store, model):
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("x")
    imported = import_directory(store, model, None)
    manifest = store.get("sft").manifest
    taken = "taken for sft, as its config names LlamaForCausalLM; for ppo or pretrain give --kind"
    assert imported.notes == [taken, "left out: .git"]
    assert store.verify("sft") == []
    assert {entry.path for entry in manifest.files} == {f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert (manifest.imported.path, manifest.imported.ref, manifest.cache_key, manifest.parents) == (str(model), None, None, [])


@pytest.mark.parametrize(
    ("given", "architecture", "kind"), [(None, "LlamaForSequenceClassification", "rm"), ("ppo", "LlamaForCausalLM", "ppo")]
)
def test_the_kind_is_what_is_asked_for_or_what_the_model_is(store, model, given, architecture, kind):
    (model / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert import_directory(store, model, given).artifact.ref == f"{kind}@v1"


def test_a_model_whose_kind_cannot_be_told_is_asked_for(store, model, adapter):
    def refuse(config, told, tensors=("w",)):
        (model / "config.json").write_text(json.dumps(config))
        (model / "model.safetensors").write_bytes(save({name: np.zeros(2, np.float32) for name in tensors}))
        with pytest.raises(StoreError, match=told) as caught:
            import_directory(store, model, None)
        assert caught.value.exit_code == 2 and store.refs() == []

    refuse({}, r"found neither architectures nor a task_type in its config, needed a sequence classifier \(rm\) or .*; give --kind")
    refuse({"architectures": ["BertModel"]}, "found BertModel, needed")
    language_model = {"architectures": ["LlamaForCausalLM"]}
    refuse(language_model, r"found LlamaForCausalLM, the tensor v_head\.summary\.weight, needed", ["w", "v_head.summary.weight"])
    refuse(language_model, r"the tensor score\.weight", ["score.weight"])
    assert import_directory(store, model, "rm").artifact.ref == "rm@v1"
    classifier = adapter(str(model)) / "adapter_config.json"
    classifier.write_text(json.dumps({"task_type": "SEQ_CLS", "base_model_name_or_path": str(model)}))
    imported = import_directory(store, classifier.parent, None)
    assert imported.artifact.ref == "rm@v2" and imported.notes == ["taken for rm, as its config names SEQ_CLS; for a policy give --kind"]


def test_s1_what_is_no_whole_model_in_safetensors_is_refused_before_anything_is_written(store, model, tmp_path):
    def refuse(name, content, told):
        path = model / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        with pytest.raises(StoreError, match=told) as caught:
            import_directory(store, model, None)
        assert caught.value.exit_code == 3
        assert store.refs() == []
        path.unlink() if before is None else path.write_bytes(before)

    refuse("training_args.bin", pickle.dumps({}), r"'training_args\.bin': a pickle can run code")
    refuse("model.safetensors", WEIGHTS[:-1], r"model\.safetensors: .*; weights in safetensors are needed")
    refuse("model.safetensors", pickle.dumps({}), r"model\.safetensors: .*; weights in safetensors are needed")
    refuse("config.json", b"[1]", r"config\.json: no JSON object")
    refuse("model.safetensors.index.json", b'{"weight_map": {"w": "../x", "v": 3}}', r"index\.json: names \.\./x, which is not there")
    refuse("model.safetensors.index.json", b'{"weight_map": [[]]}' + b"[" * 100_000, r"index\.json: .*; a JSON object is needed")
    refuse("manifest.json", b"{}", r"manifest\.json: .*an intact manifest is needed")
    (model / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"found no weights in \*\.safetensors"):
        import_directory(store, model, None)
    (model / "config.json").unlink()
    with pytest.raises(StoreError, match=r"found no config\.json"):
        import_directory(store, model, None)
    with pytest.raises(StoreError, match="not there") as caught:
        import_directory(store, tmp_path / "nothing", None)
    assert caught.value.exit_code == 4
    assert not list(store.root.glob(".staging/*"))


@pytest.fixture
def adapter(tmp_path, model):
    """A LoRA directory, as peft writes it, on the plain model."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(WEIGHTS)

    def name(base):
        (directory / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base})
        )
        return directory

    name(str(model))
    return name


def test_an_adapter_whose_base_is_not_there_is_refused_in_a_line_that_names_it(store, tmp_path, model, adapter, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gone = tmp_path / "gone"

    def refuse(base, told):
        with pytest.raises(StoreError, match=told) as caught:
            import_directory(store, adapter(base), None)
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
        assert store.refs() == []

    refuse(
        str(gone), rf"adapter_config\.json: base_model_name_or_path: found no directory {gone}; needed the model that the adapter stands on"
    )
    refuse("../models/base", r"found no directory \.\./models/base; needed")
    refuse("nobody/nothing", r"found no directory, nor model in the hub's cache \(offline\), nobody/nothing; needed")
    refuse("/x" * 3000, "found no directory /x")
    refuse(None, "found None; needed the model that the adapter stands on; write its directory or hub id there")
    refuse(str(tmp_path / "adapter"), "which stands on this one again")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(gone)}))
    refuse(str(model), rf"model/adapter_config\.json: .*found no directory {gone}")  # further down
    (model / "adapter_config.json").unlink()
    assert import_directory(store, adapter(str(model)), None).artifact.ref == "sft@v1"
    config = adapter(str(model)) / "adapter_config.json"
    config.rename(config.with_name("real.json"))
    config.symlink_to("real.json")  # a hub's cache has links
    assert import_directory(store, tmp_path / "adapter", None).artifact.ref == "sft@v2"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert import_directory(store, adapter("nobody/nothing"), None).artifact.ref == "sft@v3"  # the hub may have it


def test_an_artifact_that_is_an_adapter_on_what_is_not_here_is_imported_with_a_note(store, tmp_path, publish):
    elsewhere, base = Store(tmp_path / "elsewhere"), tmp_path / "base"
    files = {"model/adapter_model.safetensors": WEIGHTS, "model/adapter_config.json": json.dumps({"base_model_name_or_path": str(base)})}
    files = {name: content if isinstance(content, bytes) else content.encode() for name, content in files.items()}
    child = publish(elsewhere, "sft", files=files)
    (note,) = import_directory(store, child.path, None).notes
    assert note.startswith("it does not open here: ") and f"found no directory {base}; needed" in note
    base.mkdir()
    (note,) = import_directory(store, child.path, None).notes
    assert f"found no config.json in {base}; needed" in note
    (base / "config.json").write_text("{}")
    assert import_directory(store, child.path, None).notes == []
    (base / "config.json").unlink()
    whole = publish(elsewhere, "sft", files=files | {"merged/model.safetensors": WEIGHTS})
    assert import_directory(store, whole.path, None).notes == []  # its merged model opens by itself


def test_s4_links_are_followed_as_a_hubs_cache_makes_them_and_no_others(store, tmp_path, model):
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        path.rename(blobs / f"{path.name}-hash")
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}-hash")
    artifact = import_directory(store, snapshot, None).artifact
    assert (artifact.model_path / "model.safetensors").read_bytes() == WEIGHTS
    assert not (artifact.model_path / "model.safetensors").is_symlink()
    (tmp_path / "secret").write_text("x")
    (snapshot / "note.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"'note\.txt': a link to .*secret, outside of the model"):
        import_directory(store, snapshot, None)
    (snapshot / "note.txt").unlink()
    os.mkfifo(snapshot / "pipe")
    with pytest.raises(StoreError, match="'pipe': pipes"):
        import_directory(store, snapshot, None)
    assert store.refs() == ["sft@v1"]


def test_s4_links_in_a_circle_are_told(store, model):
    (model / "around.json").symlink_to("again.json")
    (model / "again.json").symlink_to("around.json")
    with pytest.raises(StoreError, match=r"'again\.json': a link that leads nowhere"):
        import_directory(store, model, None)
    assert store.refs() == []


def test_an_artifact_from_another_store_keeps_what_its_manifest_says_and_the_parents_that_are_here(store, tmp_path, publish):
    elsewhere = Store(tmp_path / "elsewhere")
    parent = publish(elsewhere, metrics={"eval/loss": 1.5})
    named = {"ref": parent.ref, "content_id": parent.content_id}
    child = publish(elsewhere, "rm", files={"model/a": b"1", "log.txt": b"said"}, parents=[named], cache_key="k", seed=3, run_id="rm-x")
    publish(store, files={"model/other": b"other"})  # so that numbers differ

    first = import_directory(store, child.path, None)
    assert first.artifact.manifest.parents == []
    assert "made from sft@v1" in first.notes[0]
    assert import_directory(store, parent.path, "sft").artifact.ref == "sft@v2"
    second = import_directory(store, child.path, None)
    manifest = second.artifact.manifest
    assert second.notes == []
    assert [(found.ref, found.content_id) for found in manifest.parents] == [("sft@v2", parent.content_id)]
    assert (manifest.imported.ref, manifest.imported.content_id) == ("rm@v1", child.content_id)
    assert (second.artifact.content_id, manifest.seed, manifest.cache_key, manifest.run_id) == (child.content_id, 3, None, None)
    assert store.get("sft@v2").manifest.metrics == {"eval/loss": 1.5}
    assert all(store.verify(ref) == [] for ref in store.refs())
    with pytest.raises(StoreError, match="found kind rm, needed sft"):
        import_directory(store, child.path, "sft")
    assert plan_collection(store, 1).damaged == []


def test_f6_an_artifact_that_is_not_as_its_manifest_says_is_refused_and_nothing_is_published(store, tmp_path, publish):
    child = publish(Store(tmp_path / "elsewhere"), "rm", files={"model/a": b"1", "log.txt": b"said"})
    copy = tmp_path / "copy"
    for change, told in (
        (lambda: (copy / "log.txt").write_text("sait"), r"log\.txt: not as its manifest says"),
        (lambda: (copy / "log.txt").unlink(), r"log\.txt"),
        (lambda: (copy / "model/b").write_text("1"), r"model/b: not a file of its manifest"),
        (lambda: ((copy / "log.txt").unlink(), (copy / "log.txt").symlink_to("/etc/passwd")), r"log\.txt: not a file of its manifest"),
    ):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(child.path, copy)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        change()
        with pytest.raises(StoreError, match=told):
            import_directory(store, copy, None)
        assert store.refs() == []
        assert not list(store.root.glob(".staging/*"))


def test_a_manifest_of_what_a_stage_made_is_read_by_earlier_versions(store, publish):
    assert b"imported" not in (publish(store).path / "manifest.json").read_bytes()


def test_an_export_is_the_model_and_a_page_of_where_it_is_from(store, tmp_path, publish):
    parent = publish(store)
    named = {"ref": parent.ref, "content_id": parent.content_id}
    facts = {"base_model": "/home/ann/base`\n# x", "form": "adapter", "architecture": "Llama", "score_bias": 0.5}
    files = {"model/adapter.safetensors": b"1", "model/README.md": b"its own", "merged/model.safetensors": b"2", "log.txt": b"said"}
    artifact = publish(
        store, "rm", files=files, parents=[named], facts=facts, metrics={"eval/accuracy": 0.75}, data={"comparisons": "c0ffee"}
    )
    target = tmp_path / "new" / "exported"
    assert export(store, "rm", target, merge=False).ref == "rm@v1"
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name != "README.md"} == {
        "adapter.safetensors": b"1",
        "README.original.md": b"its own",
    }
    page = (target / "README.md").read_text()
    for line in (
        "# rm@v1",
        "| `eval/accuracy` | 0.75 | | |",
        "| `comparisons` | `c0ffee` |",
        f"- `sft@v1`, content id `{parent.content_id}`",
    ):
        assert line in page.splitlines()
    assert "/home/ann" not in page
    assert artifact.content_id in page
    (tmp_path / "empty").mkdir()
    export(store, "rm", tmp_path / "empty", merge=True)
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == b"2"
    assert os.access(tmp_path / "empty" / "model.safetensors", os.W_OK)


def test_an_export_replaces_nothing_and_leaves_nothing_half(store, tmp_path, publish):
    artifact = publish(store)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for directory in (full, full / "thesis.tex", tmp_path / "link"):
        with pytest.raises(StoreError, match="already there; a new or an empty directory is needed") as caught:
            export(store, "sft", directory, merge=False)
        assert caught.value.exit_code == 2
    path = artifact.model_path / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(StoreError, match="is damaged") as caught:
        export(store, "sft", tmp_path / "new", merge=False)
    assert caught.value.exit_code == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full", "link", "store"]


@pytest.mark.parametrize("below", ["artifacts/sft/v0002", "artifacts/mine", "runs/x", ".staging/../aliases/y", "linked"])
def test_nothing_is_exported_into_the_parts_of_a_store(store, tmp_path, publish, below):
    publish(store)
    (store.root / "linked").symlink_to("artifacts/sft")
    with pytest.raises(StoreError, match="of the store, which is its own") as caught:
        export(store, "sft", store.root / below / "z", merge=False, dtype=None, told=print)
    assert caught.value.exit_code == 2
    assert store.refs() == ["sft@v1"] and sorted(path.name for path in store.root.iterdir()) == [
        ".staging",
        "artifacts",
        "ledger.jsonl",
        "linked",
    ]
    export(store, "sft", store.root / "models" / "mine", merge=False, dtype=None, told=print)


def test_an_exported_model_comes_back_as_the_same_content(store, tmp_path, model):
    content = import_directory(store, model, None).artifact.content_id
    export(store, "sft", tmp_path / "out", merge=False)
    (tmp_path / "out" / "README.md").unlink()
    assert import_directory(store, tmp_path / "out", None).artifact.content_id == content


def test_a_stage_that_leaves_no_model_is_no_kind_to_import(rlhf_here, model, store):
    done = rlhf_here("import", model, "--kind", "evaluate")
    assert done.returncode == 2 and "needed a kind of model" in done.stderr
    assert not store.refs()
