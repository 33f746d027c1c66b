"""The store: publish, find, aliases, lineage."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import publish as publish_module
from pipeline.store.manifest import ManifestFields, Parent
from pipeline.store.mark import MARK_FILE
from pipeline.store.parts import require_places
from pipeline.store.removal import remove
from pipeline.store.store import Store


def parents(*artifacts):
    return [Parent(ref=artifact.ref, content_id=artifact.content_id) for artifact in artifacts]


def refusal_of(action, *args, **kwargs):
    with pytest.raises(StoreError) as refusal:
        action(*args, **kwargs)
    assert refusal.value.message.isprintable()
    return refusal.value


def test_a_published_artifact_is_found_with_all_that_was_said_of_it(store, publish):
    published = publish(
        store, "rm", cache_key="k", seed=7, metrics={"eval/accuracy": 0.8}, facts={"pad_token_id": 0}, config={"a": [1, None]}
    )
    found = Store(store.root).get("rm")
    assert found == published
    assert (found.ref, found.kind, found.version) == ("rm@v1", "rm", 1)
    assert found.path == store.root / "artifacts/rm/v0001" and found.model_path == found.path / "model"
    assert found.manifest.metrics == {"eval/accuracy": 0.8} and found.manifest.config == {"a": [1, None]}
    assert sorted(entry.path for entry in found.manifest.files) == ["metrics.jsonl", "model/config.json", "model/model.safetensors"]
    assert (found.model_path / "model.safetensors").read_bytes() == bytes(range(256)) * 8
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.manifest.created_utc)).total_seconds()) < 60


def test_equal_bytes_give_an_equal_content_id_in_any_store_and_kind(store, publish, tmp_path):
    other = Store(tmp_path / "other")
    assert publish(store, "sft").content_id == publish(other, "ppo").content_id
    assert publish(store, files={"model/a": b"1"}).content_id != publish(store, files={"model/a": b"2"}).content_id


@pytest.mark.parametrize(("umask", "file", "directory"), [(0o022, 0o444, 0o555), (0o027, 0o440, 0o550), (0o077, 0o400, 0o500)])
def test_f11_published_weights_may_be_read_by_whom_the_umask_lets(store, umask, file, directory):
    before = os.umask(umask)
    try:
        with store.staging("sft") as staging:
            (staging.path / "model").mkdir()
            for name in ("model/model.safetensors", "log.txt"):
                (staging.path / name).write_text("x")
            (staging.path / "model" / "model.safetensors").chmod(0o600)  # as safetensors writes it
            artifact = store.publish(staging, ManifestFields())
    finally:
        os.umask(before)
    modes = {str(path.relative_to(artifact.path)): stat.S_IMODE(path.stat().st_mode) for path in (artifact.path, *artifact.path.rglob("*"))}
    assert modes == {".": directory, "model": directory, "model/model.safetensors": file, "log.txt": file, "manifest.json": file}


def test_a_published_artifact_is_read_only(store, publish):
    artifact = publish(store)
    for path in (artifact.path, *artifact.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0, path


def test_every_file_and_directory_is_durable_before_the_rename_and_the_name_after_it(store, publish, monkeypatch):
    publish(store)
    log = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (log.append(Path(f"/proc/self/fd/{descriptor}").readlink()), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda old, new, **kwargs: (log.append("rename"), rename(old, new, **kwargs)))
    artifact = publish(store, files={"model/a": b"1", "model/deep/b": b"2", "c": b"3"})
    before, after = log[: log.index("rename")], log[log.index("rename") + 1 :]
    ledger = store.root / "ledger.jsonl"
    assert before.count(ledger) == 1  # the claim
    before.remove(ledger)
    staging = before[0].relative_to(store.root / ".staging").parts[0]
    synced = {str(path.relative_to(store.root / ".staging" / staging)) for path in before}
    assert synced == {"model/a", "model/deep/b", "c", "manifest.json", "model", "model/deep", "."}
    assert after == [artifact.path.parent, ledger]


def test_versions_count_up_per_kind_and_sort_by_number(store, publish):
    for _ in range(11):
        publish(store, "sft")
    publish(store, "rm")
    assert [artifact.ref for artifact in store.list()] == ["rm@v1", *(f"sft@v{version}" for version in range(1, 12))]
    assert store.get("sft").version == 11


def test_order_follows_versions_when_the_clock_goes_backwards_and_times_are_equal(store, publish, monkeypatch):
    class Clock(datetime):
        hours = iter(range(23, 0, -1))

        @classmethod
        def now(cls, tz=None):
            return datetime(2020, 1, 1, next(cls.hours), tzinfo=tz)

    monkeypatch.setattr(publish_module, "datetime", Clock)
    for number in range(5):
        publish(store, files={"model/a": str(number).encode()}, cache_key="k")
    for path in store.root.rglob("*"):
        os.utime(path, (1, 1))
    times = [artifact.manifest.created_utc for artifact in store.list()]
    assert times == sorted(times, reverse=True) and len(set(times)) == 5
    assert [artifact.version for artifact in store.list("sft")] == [1, 2, 3, 4, 5]
    assert store.get("sft").version == store.find_by_cache_key("sft", "k").version == 5


def test_what_is_no_version_directory_is_ignored(store, publish):
    publish(store)
    artifacts = store.root / "artifacts"
    for name in ("v1", "v0001.tmp", "notes", "v0000"):
        (artifacts / "sft" / name).mkdir()
    (artifacts / "README.txt").write_text("mine")
    (artifacts / "-x").mkdir()
    (artifacts / "sft" / "v0007").write_text("a file")
    assert [artifact.ref for artifact in store.list()] == ["sft@v1"]
    # A file of that name is in the way, so the next version goes past it.
    assert publish(store).ref == "sft@v8"


def test_a_version_that_appears_during_a_publish_moves_it_to_the_next_number(store, publish, monkeypatch):
    publish(store)
    rename, clashes = os.rename, []

    def rename_after_a_rival(source, target, **directories):
        if not clashes:
            clashes.append(store.root / "artifacts/sft" / target)
            clashes[0].mkdir()
            (clashes[0] / "rival").write_text("first")
        return rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", rename_after_a_rival)
    artifact = publish(store)
    assert clashes == [store.root / "artifacts/sft/v0002"]
    assert artifact.ref == "sft@v3" and store.verify(artifact.ref) == []
    assert (clashes[0] / "rival").read_text() == "first"


@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "training_args.bin", "x.pkl", "manifest.json", "line\nbreak"])
def test_refused_files_are_named_and_nothing_is_published(store, publish, name):
    error = refusal_of(publish, store, files={"model/config.json": b"{}", name: b"x"})
    assert error.exit_code == 3 and name.split("\n")[0] in error.message
    assert store.refs() == [] and list((store.root / ".staging").iterdir()) == []


@pytest.mark.parametrize("special", ["file link", "dangling link", "directory link", "fifo"])
def test_links_and_pipes_are_refused(store, tmp_path, special):
    secret = tmp_path / "secret"
    secret.write_text("outside")
    with store.staging("sft") as staging:
        (staging.path / "config.json").write_text("{}")
        path = staging.path / "model"
        if special == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to({"file link": secret, "dangling link": tmp_path / "none", "directory link": tmp_path}[special])
        error = refusal_of(store.publish, staging, ManifestFields())
    assert error.exit_code == 3 and "'model'" in error.message
    assert store.refs() == [] and secret.read_text() == "outside"


def test_all_refused_files_are_named_at_once(store, publish):
    error = refusal_of(publish, store, files={"a.pkl": b"", "b.bin": b"", "c.json": b""})
    assert "a.pkl" in error.message and "b.bin" in error.message and "c.json" not in error.message


def test_an_empty_artifact_is_refused(store):
    with store.staging("sft") as staging:
        (staging.path / "model").mkdir()
        assert refusal_of(store.publish, staging, ManifestFields()).exit_code == 3


def test_a_manifest_too_deep_to_be_read_is_not_published(store, publish):
    config = {}
    for _ in range(500):
        config = {"a": config}
    with pytest.raises(ValueError):
        publish(store, config=config)
    assert store.refs() == []


def test_an_artifact_is_found_by_version_latest_alias_and_content_prefix(store, publish):
    first = publish(store, files={"model/a": b"1"})
    second = publish(store, files={"model/a": b"2"})
    store.set_alias("sft", "stable", "sft@v1", by="me")
    assert store.get("sft") == store.get("sft@latest") == store.get("sft@v2") == second
    assert store.get("sft@v1") == store.get("sft@stable") == store.get(first.content_id[:6]) == store.get(first.content_id) == first


def test_missing_artifacts_say_what_is_there(store, publish):
    publish(store)
    for ref, found in (
        ("sft@v9", "v1"),
        ("rm", "kind rm"),
        ("evaluate", "kinds there: sft;"),
        ("sft@best", "no alias best"),
        ("0" * 64, "content id"),
    ):
        error = refusal_of(store.get, ref)
        assert error.exit_code == 4 and found in error.message
    assert refusal_of(store.verify, "sft@v9").exit_code == 4


def test_where_no_version_is_intact_the_newest_says_why(store, publish):
    publish(store)
    newest = publish(store)
    for version in store.list("sft"):
        (version.path / "manifest.json").chmod(0o644)
        (version.path / "manifest.json").write_text("")
    error = refusal_of(store.get, "sft")
    assert error.exit_code == 3 and str(newest.path) in error.message


def test_an_ambiguous_content_prefix_is_refused(store, publish):
    ids = {}
    for number in range(40):
        artifact = publish(store, files={"model/a": str(number).encode()})
        ids[artifact.ref] = artifact.content_id
    # No two real ids share six digits, so two manifests get ids that do.
    from pipeline.store.manifest import render_manifest

    for ref, content_id in (("sft@v1", "abcdef" + "0" * 58), ("sft@v2", "abcdef" + "1" * 58)):
        artifact = store.get(ref)
        path = artifact.path / "manifest.json"
        path.chmod(0o644)
        path.write_bytes(render_manifest(artifact.manifest.model_copy(update={"content_id": content_id})))
    for name in ("ledger.jsonl", MARK_FILE):  # which know the real ones
        (store.root / name).unlink()
    error = refusal_of(store.get, "abcdef")
    assert error.exit_code == 2 and "sft@v1, sft@v2" in error.message
    assert store.get("abcdef0").ref == "sft@v1"


def test_equal_content_published_twice_is_not_ambiguous(store, publish):
    publish(store)
    again = publish(store)
    assert store.get(again.content_id[:12]) == again


def test_the_newest_artifact_with_a_cache_key_is_found_in_its_kind_only(store, publish):
    publish(store, "sft", cache_key="a")
    newest = publish(store, "sft", cache_key="a")
    publish(store, "sft", cache_key="b")
    publish(store, "rm", cache_key="c")
    publish(store, "sft", cache_key=None)
    assert store.find_by_cache_key("sft", "a") == newest
    assert store.find_by_cache_key("sft", "c") is None
    assert store.find_by_cache_key("ppo", "a") is None


def test_an_alias_remembers_who_moved_it_and_from_where(store, publish):
    publish(store)
    publish(store)
    assert store.set_alias("sft", "best", "sft@v1", by="anna").previous is None
    alias = store.set_alias("sft", "best", "sft", by="ben")
    assert (alias.ref, alias.previous, alias.by) == ("sft@v2", "sft@v1", "ben")
    assert store.aliases("sft") == {"best": alias}
    on_disk = json.loads((store.root / "aliases/sft/best.json").read_text())
    assert set(on_disk) == {"ref", "content_id", "previous", "by", "at"}


@pytest.mark.parametrize(("kind", "name", "ref", "exit_code"), [
    ("sft", "latest", "sft", 2),
    ("sft", "v1", "sft", 2),
    ("sft", "../x", "sft", 2),
    ("../sft", "best", "sft", 2),
    ("rm", "best", "sft", 2),
    ("sft", "best", "sft@v9", 4),
])  # fmt: skip
def test_an_alias_that_is_unsafe_or_points_to_nothing_is_refused(store, publish, kind, name, ref, exit_code):
    publish(store)
    assert refusal_of(store.set_alias, kind, name, ref, by="me").exit_code == exit_code
    assert store.aliases("sft") == {} and not (store.root / "aliases" / "x.json").exists()


def test_a_damaged_alias_is_reported_and_mended_by_setting_it_anew(store, publish):
    publish(store)
    store.set_alias("sft", "best", "sft", by="me")
    path = store.root / "aliases/sft/best.json"
    for content in (b"", b"{", b"[]", b'{"ref": 1}', b"\xff" * 100, b" " * 10**6):
        path.write_bytes(content)
        assert refusal_of(store.get, "sft@best").exit_code == 3
        assert store.aliases("sft") == {}
    store.set_alias("sft", "best", "sft", by="me")
    assert store.get("sft@best").ref == "sft@v1"


def test_an_alias_of_a_version_number_given_again_is_refused(store, publish):
    import shutil

    store.set_alias("sft", "best", publish(store).ref, by="me")
    shutil.rmtree(store.get("sft").path)
    publish(store, files={"model/a": b"another"})
    error = refusal_of(store.get, "sft@best")
    assert error.exit_code == 3 and "set the alias anew" in error.message


def test_lineage_lists_all_ancestors_nearest_first_and_once(store, publish):
    sft = publish(store, "sft")
    rm = publish(store, "rm", parents=parents(sft))
    ppo = publish(store, "ppo", parents=parents(sft, rm))
    publish(store, "sft", files={"model/a": b"unrelated"})
    assert store.lineage(ppo.ref) == [sft, rm]
    assert store.lineage("rm") == [sft]
    assert store.lineage("sft@v1") == []


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened below the store, in order; directories do not count."""
    paths, real = [], os.open

    def open_and_note(path, flags, *rest, **named):
        descriptor = real(path, flags, *rest, **named)
        if not flags & os.O_DIRECTORY:
            paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        return descriptor

    monkeypatch.setattr(os, "open", open_and_note)
    return paths


@pytest.mark.slow
def test_a_long_and_wide_lineage_reads_each_manifest_once_for_each_child(store, publish, opened):
    last = publish(store, "sft")
    for _ in range(100):
        last = publish(store, "sft", files={"a": b"x"}, parents=parents(last, *([store.get("sft@v1")] if last.version > 1 else [])))
    opened.clear()
    assert len(store.lineage(last.ref)) == 100
    # 100 have their predecessor as parent, 99 of them the first one too; and the artifact itself.
    assert sorted(path.name for path in opened) == [".ledger.json", "ledger.jsonl", *["manifest.json"] * 200]


def test_listing_opens_one_small_file_for_each_artifact(store, publish, monkeypatch, opened):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    files = {f"model/part-{number}": b"x" * 4096 for number in range(8)}
    for _ in range(50):
        publish(store, files=files, config={f"key_{number}": number for number in range(100)})
    opened.clear()
    assert len(store.list()) == 50
    assert sorted(opened) == sorted(store.root.glob("artifacts/sft/*/manifest.json"))
    assert max(path.stat().st_size for path in opened) < 8192


def test_the_store_imports_neither_torch_nor_much_else():
    code = "import sys, pipeline.store.store; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"torch", "transformers", "numpy", "yaml", "rich"} & set(finished.stdout.split())


def test_a_number_after_which_there_is_none_is_told_before_anything_trains_and_nothing_is_published_out_of_sight(store, publish):
    publish(store)
    (store.root / "artifacts" / "sft" / "v999999999" / "x").mkdir(parents=True)
    for begin in (lambda: require_places(store.root, ["rm", "sft"]), lambda: publish(store)):
        with pytest.raises(StoreError, match="sft@v999999999 is there, after which there is no number") as caught:
            begin()
        assert caught.value.exit_code == 3
    remove(store, ["sft@v999999999"])
    assert publish(store).ref == "sft@v2"
