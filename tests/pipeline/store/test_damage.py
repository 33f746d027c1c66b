"""F6, S6: whatever happens to a published artifact's bytes is found, named and refused."""

import hashlib
import io
import json
import random
import shutil

import pytest
from rich.console import Console

from pipeline.errors import StoreError
from pipeline.report.show import print_artifact, show_data
from pipeline.report.tables import list_data, print_list
from pipeline.store.manifest import Parent, render_manifest
from pipeline.store.mark import MARK_FILE

FILES = {
    "model/config.json": b'{"hidden_size": 8}',
    "model/model-00001.safetensors": random.Random(1).randbytes(40_000),
    "model/model-00002.safetensors": random.Random(2).randbytes(40_001),
    "metrics.jsonl": b'{"step": 1, "loss": 0.5}\n' * 40,
    "empty.txt": b"",
}
DAMAGES = ("flip", "truncate", "extend", "remove", "extra", "swap")


@pytest.fixture
def artifact(store, publish):
    artifact = publish(store, files=FILES, cache_key="k", metrics={"eval/loss": 0.25}, config={"seed": 7})
    make_writable(artifact.path)
    return artifact


def make_writable(directory):
    for path in (directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def damage(directory, how, rng):
    """Damage one file; return its name and how to undo it."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    filled = [path for path in paths if path.stat().st_size]
    path = rng.choice(filled if how in ("flip", "truncate", "swap") else paths)
    content = path.read_bytes()
    if how == "flip":
        position = rng.randrange(len(content))
        flipped = content[position] ^ (1 << rng.randrange(8))
        path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
    elif how == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif how == "extend":
        path.write_bytes(content + rng.randbytes(rng.randrange(1, 9)))
    elif how == "remove":
        path.unlink()
    elif how == "swap":
        path.write_bytes(rng.randbytes(len(content)))
    else:
        path = path.with_name(rng.choice(["added.txt", ".hidden", "ünïcode file", "manifest.json.bak"]))
        path.write_bytes(b"")
        return path.name, path.unlink
    return path.name, lambda: path.write_bytes(content)


@pytest.mark.slow
def test_verify_finds_each_of_1000_random_damages_and_names_the_file(store, artifact):
    rng = random.Random(2026)
    missed = []
    for number in range(1000):
        how = DAMAGES[number % len(DAMAGES)]
        name, undo = damage(artifact.path, how, rng)
        problems = store.verify("sft@v1")
        if not any(name in problem for problem in problems):
            missed.append((number, how, name, problems))
        if number % 25 == 0:
            with pytest.raises(StoreError, match=name) as refusal:
                store.require_verified("sft@v1")
            assert refusal.value.exit_code == 3
        undo()
        if number % 25 == 0:
            assert store.verify("sft@v1") == []
    assert missed == []


@pytest.mark.parametrize("how", ["flip-manifest", "truncate", "extend", "remove", "manifest-gone", "renamed"])
def test_an_artifact_with_damage_seen_at_a_glance_is_invisible_but_reported(store, publish, artifact, how):
    intact = publish(store)
    path = artifact.path / "model/config.json"
    manifest = artifact.path / "manifest.json"
    if how == "flip-manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b"0.25", b"0.99"))
    elif how == "truncate":
        path.write_bytes(b"{")
    elif how == "extend":
        path.write_bytes(path.read_bytes() + b" ")
    elif how == "remove":
        path.unlink()
    elif how == "manifest-gone":
        manifest.unlink()
    else:
        artifact.path.rename(artifact.path.with_name("v0009"))
    assert [each.ref for each in store.list()] == [intact.ref]
    assert store.get("sft") == intact
    damaged = next(ref for ref in store.refs() if ref != intact.ref)
    assert len(store.verify(damaged)) == 1
    with pytest.raises(StoreError) as refusal:
        store.get(damaged)
    assert refusal.value.exit_code == 3


def test_a_flipped_weight_is_visible_but_fails_verification(store, artifact):
    path = artifact.path / "model/model-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[123] ^= 1
    path.write_bytes(content)
    assert store.get("sft").ref == "sft@v1"
    (problem,) = store.verify("sft")
    assert "model-00001.safetensors: sha256" in problem
    with pytest.raises(StoreError, match="model-00001"):
        store.require_verified("sft@latest")


def test_every_damaged_file_is_named_at_once(store, artifact):
    (artifact.path / "metrics.jsonl").unlink()
    (artifact.path / "model/config.json").write_bytes(b"")
    (artifact.path / "model/more.json").write_bytes(b"")
    problems = store.verify("sft@v1")
    assert [any(name in problem for problem in problems) for name in ("metrics.jsonl", "config.json", "more.json")] == [True] * 3
    assert len(problems) == 3


@pytest.mark.parametrize("target", ["file", "directory"])
def test_a_link_in_a_published_artifact_is_reported_although_it_leads_to_equal_bytes(store, artifact, tmp_path, target):
    path = artifact.path / "model" if target == "directory" else artifact.path / "model/config.json"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    assert any(path.name in problem for problem in store.verify("sft@v1"))


def test_a_manifest_that_is_a_link_is_refused(store, artifact, tmp_path):
    shutil.move(artifact.path / "manifest.json", tmp_path / "elsewhere")
    (artifact.path / "manifest.json").symlink_to(tmp_path / "elsewhere")
    assert store.list() == []


def test_a_pipe_in_place_of_the_manifest_does_not_hang(store, artifact):
    import os

    (artifact.path / "manifest.json").unlink()
    os.mkfifo(artifact.path / "manifest.json")
    assert store.list() == []
    assert "not a regular file" in store.verify("sft@v1")[0]


def forge(artifact, **lies):
    """Rewrite a manifest, seal and all."""
    manifest = artifact.manifest.model_copy(update=lies)
    make_writable(artifact.path)
    (artifact.path / "manifest.json").write_bytes(render_manifest(manifest))


def test_a_forged_content_id_is_found(store, artifact):
    forge(artifact, content_id="0" * 64)
    assert "content_id does not follow" in store.verify("sft@v1")[0]


def test_a_forged_file_path_outside_the_artifact_is_refused_before_it_is_read(store, artifact):
    entry = artifact.manifest.files[0]
    for path in ("../v0001/metrics.jsonl", "/etc/passwd", "a\0b", "a//b", "manifest.json", "model/x.bin"):
        forge(artifact, files=[entry.model_copy(update={"path": path})])
        assert store.list() == []
        assert "files.0.path" in store.verify("sft@v1")[0]


def test_a_manifest_that_names_another_artifact_is_refused(store, artifact):
    forge(artifact, kind="ppo")
    assert "it names ppo@v1; its directory needs sft@v1" in store.verify("sft@v1")[0]


def test_a_huge_manifest_is_refused_unread(store, artifact):
    with (artifact.path / "manifest.json").open("r+b") as stream:
        stream.truncate(20 * 1024**3)  # sparse
    assert store.list() == []
    assert "more than 8388608 bytes" in store.verify("sft@v1")[0]


def test_a_deeply_nested_manifest_is_refused(store, artifact):
    config = {}
    for _ in range(150):
        config = {"a": config}
    forge(artifact, config=config)
    (artifact.path / "manifest.json").write_bytes(b'{"a":' * 100_000 + b"}" * 100_000)
    assert store.list() == []


def test_a_manifest_of_a_newer_schema_says_update(store, artifact):
    forge(artifact, schema_version=2)
    assert "update this package" in store.verify("sft@v1")[0]


def test_a_missing_parent_and_a_parent_with_other_content_are_reported(store, publish):
    parent = publish(store, "sft")
    child = publish(store, "rm", parents=[Parent(ref=parent.ref, content_id=parent.content_id)])
    assert store.verify(child.ref) == []
    shutil.rmtree(parent.path)
    assert "rm@v1: parent sft@v1: no artifact sft@v1" in store.verify(child.ref)[0]
    publish(store, "sft", files={"model/other.safetensors": b"other"})
    assert "rm@v1: parent sft@v1 has content" in store.verify(child.ref)[0]
    with pytest.raises(StoreError) as refusal:
        store.lineage("rm@v1")
    assert refusal.value.exit_code == 3


def test_a_cycle_of_parents_is_reported_and_does_not_hang(store, publish):
    first = publish(store, "sft")
    second = publish(store, "rm", parents=[Parent(ref=first.ref, content_id=first.content_id)])
    third = publish(store, "ppo", parents=[Parent(ref=second.ref, content_id=second.content_id)])
    forge(first, parents=[Parent(ref=second.ref, content_id=second.content_id)])
    assert "manifest was written anew" in store.verify("sft@v1")[0]
    for name in ("ledger.jsonl", MARK_FILE):  # as of an earlier version
        (store.root / name).unlink()
    assert "sft@v1 descends from itself" in store.verify("sft@v1")[0]
    assert "rm@v1 descends from itself" in store.verify("rm@v1")[0]
    assert {artifact.ref for artifact in store.lineage(third.ref)} == {"sft@v1", "rm@v1"}


def reseal(artifact, text):
    """Write a manifest of any text, under a right seal, in a store without a ledger that knows the one before."""
    for name in ("ledger.jsonl", MARK_FILE):
        (artifact.path.parents[2] / name).unlink(missing_ok=True)
    body = text.encode().removeprefix(b"{\n")
    (artifact.path / "manifest.json").write_bytes(b'{"manifest_sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body)


ODD_VALUES = ["null", "[]", "{}", "true", '""', '"\\ud800"', "-1", "1e400", "NaN", "-Infinity"]
ODD_VALUES += ["1" + "0" * 23, "1" + "0" * 5000, "[" * 90 + "]" * 90]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:12])
def test_s6_a_sealed_manifest_of_odd_types_is_damaged_or_shown_and_never_a_traceback(store, artifact, value):
    intact = json.loads(artifact.manifest.model_dump_json())
    for field in intact:
        text = json.dumps({**intact, field: "ODD"}, indent=1).replace('"ODD"', value)
        reseal(artifact, text)
        look_at_all(store)
    for field in ("path", "size", "sha256"):
        files = [{**intact["files"][0], field: "ODD"}, *intact["files"][1:]]
        reseal(artifact, json.dumps({**intact, "files": files}, indent=1).replace('"ODD"', value))
        look_at_all(store)


def look_at_all(store):
    """Do what the reading commands do; a damaged artifact is told as one."""
    console = Console(file=io.StringIO(), width=200)
    rows = list_data(store, None)
    print_list(console, rows, store.root)
    json.dumps(rows)
    problems = store.verify("sft@v1")
    assert all(problem.isprintable() for problem in problems)
    for ref in (row["ref"] for row in rows if "damaged" not in row):
        try:
            data = show_data(store, store.get(ref))
        except StoreError as error:
            assert error.exit_code == 3
            continue
        print_artifact(console, data)
        json.dumps(data)
    assert "Traceback" not in console.file.getvalue()


def test_s6_60_fuzzed_manifests_under_a_right_seal_are_damaged_or_shown(store, artifact):
    rng, intact = random.Random(6), (artifact.path / "manifest.json").read_text().partition(",\n")[2]
    for _ in range(60):
        text = intact
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["", "null", "[", "]", "{}", "-1", "1e400", '"', ",", "\\ud800", "\x00"])
                + text[at + rng.randrange(6) :]
            )
        reseal(artifact, "{\n" + text)
        look_at_all(store)


def test_s6_60_fuzzed_aliases_are_damaged_or_right(store, artifact):
    store.set_alias("sft", "best", "sft@v1", by="me")
    path, rng = store.root / "aliases/sft/best.json", random.Random(7)
    intact = path.read_text()
    for _ in range(60):
        at = rng.randrange(len(intact))
        path.write_text(
            intact[:at] + rng.choice(["", "null", "[", "{}", "@", '"', "\\u0000", "sft@best"]) + intact[at + rng.randrange(8) :]
        )
        store.aliases("sft")
        try:
            assert store.get("sft@best").ref == "sft@v1"
        except StoreError as error:
            assert error.exit_code in (3, 4) and error.message.isprintable()


@pytest.mark.parametrize("ref", ["sft@best", "sft", "sft@v1000000000000000000000000", "../x@v1"])
def test_s5_an_alias_that_names_no_version_is_damaged(store, artifact, ref):
    store.set_alias("sft", "best", "sft@v1", by="me")
    path = store.root / "aliases/sft/best.json"
    path.write_text(path.read_text().replace("sft@v1", ref))
    with pytest.raises(StoreError) as refusal:
        store.get("sft@best")
    assert refusal.value.exit_code == 3


def test_s5_an_alias_of_another_kind_is_refused(store, artifact, publish):
    publish(store, "rm")
    store.set_alias("rm", "best", "rm@v1", by="me")
    (store.root / "aliases/sft").mkdir()
    shutil.copy(store.root / "aliases/rm/best.json", store.root / "aliases/sft/best.json")
    with pytest.raises(StoreError, match="sft@best was set to rm@v1; a sft is needed") as refusal:
        store.get("sft@best")
    assert refusal.value.exit_code == 3
