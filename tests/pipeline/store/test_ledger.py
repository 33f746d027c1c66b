"""The ledger: what was published and removed. A version that was deleted, forged or written anew is noticed; a crash accuses nobody."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.doctor import examine
from pipeline.errors import ResourceError, StoreError
from pipeline.remotes.addresses import open_remote
from pipeline.remotes.push import push
from pipeline.store.ledger import begin_anew, open_ledger, read_ledger
from pipeline.store.manifest import render_manifest
from pipeline.store.mark import MARK_FILE
from pipeline.store.removal import collect, remove
from pipeline.store.store import Store
from tests.pipeline.remotes.remote_parts import View

KEY = "5" * 64


@pytest.fixture
def ledger_path(store):
    return store.root / "ledger.jsonl"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal_of(call, *arguments):
    with pytest.raises(StoreError) as caught:
        call(*arguments)
    assert "\n" not in caught.value.message
    return caught.value.exit_code, caught.value.message


def make_writable(directory):
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755)


def delete_by_hand(artifact):
    make_writable(artifact.path)
    shutil.rmtree(artifact.path)


def copy_by_hand(artifact, version, **changes):
    """Put a version into a store as somebody would who forges one: its manifest intact, under a right seal."""
    target = artifact.path.with_name(f"v{version:04d}")
    shutil.copytree(artifact.path, target)
    make_writable(target)
    (target / "manifest.json").write_bytes(render_manifest(artifact.manifest.model_copy(update={"version": version, **changes})))


def test_each_publish_and_removal_is_a_line_that_names_the_hash_of_the_line_before(store, publish, ledger_path):
    publish(store, cache_key=KEY)
    publish(store, "rm")
    remove(store, ["rm@v1"])
    lines = ledger_path.read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["event"], row.get("ref")) for row in rows] == [
        ("begin", None), ("claim", "sft@v1"), ("publish", "sft@v1"), ("claim", "rm@v1"), ("publish", "rm@v1"), ("remove", "rm@v1")
    ]  # fmt: skip
    assert rows[0]["previous"] == "0" * 64
    assert [row["previous"] for row in rows[1:]] == [hashlib.sha256(line).hexdigest() for line in lines[:-1]]
    manifest = store.get("sft").path / "manifest.json"
    assert rows[2]["manifest"] == hashlib.sha256(manifest.read_bytes().partition(b"\n")[2]).hexdigest()
    assert rows[2]["cache_key"] == KEY and rows[2]["by"]
    assert store.find_lost() == {}


def test_a_forged_version_with_the_right_key_is_not_reused(store, publish):
    artifact = publish(store, cache_key=KEY)
    copy_by_hand(artifact, 2)
    code, message = refusal_of(store.find_by_cache_key, "sft", KEY)
    assert code == 3 and "v0002: it stands in no line of ledger.jsonl" in message and message.endswith("; `rlhf rm sft@v2`")
    assert refusal_of(store.get, "sft@v2")[0] == 3 and store.verify("sft@v2") and store.verify("sft@v1") == []
    assert store.get("sft").ref == "sft@v1"  # the newest intact one
    remove(store, ["sft@v2"])
    assert store.find_by_cache_key("sft", KEY).ref == "sft@v1"
    assert publish(store).ref == "sft@v2" and store.verify("sft@v2") == []


def test_a_version_that_is_written_anew_is_refused_and_named_with_when_it_was_published(store, publish):
    artifact = publish(store, cache_key=KEY)
    make_writable(artifact.path)
    changed = artifact.manifest.model_copy(update={"metrics": {"eval/loss": 0.0}})
    (artifact.path / "manifest.json").write_bytes(render_manifest(changed))
    code, message = refusal_of(store.find_by_cache_key, "sft", KEY)
    assert code == 3 and f"it is not the one that was published {time.strftime('%Y-%m-%d', time.gmtime())}" in message
    remove(store, ["sft@v1"])
    publish(store)
    copy = store.get("sft@v1")  # the number was given again, as it should be
    assert store.verify(copy.ref) == []


def test_a_version_that_was_deleted_by_hand_is_missed_until_that_is_noted(store, publish):
    lost = publish(store, cache_key=KEY)
    publish(store, files={"model/b": b"2"})
    remove(store, ["sft@v2"])
    delete_by_hand(lost)
    assert list(store.find_lost()) == ["sft@v1"]
    assert "was published" in refusal_of(store.get, "sft@v1")[1] and "gone without `rlhf rm`" in refusal_of(store.get, "sft@v1")[1]
    (finding,) = examine(store)
    assert finding.level == "broken" and finding.place == "sft@v1" and finding.mend()
    assert store.find_lost() == {} and examine(store) == []


def test_an_earlier_store_gets_a_ledger_with_its_first_write_and_what_was_there_is_taken_as_it_is(store, publish, ledger_path):
    first = publish(store)
    damaged = publish(store, files={"model/b": b"2"})
    make_writable(damaged.path)
    (damaged.path / "manifest.json").write_bytes(b"{")
    ledger_path.unlink()
    (store.root / MARK_FILE).unlink()
    assert read_ledger(store.root) is None and store.verify("sft@v1") == [] and store.find_lost() == {}
    publish(store, "rm")
    assert lines_of(ledger_path)[0]["versions"] == {"sft@v1": first.seal, "sft@v2": None}
    assert store.verify("sft@v1") == []
    delete_by_hand(first)
    assert {ref: str(entry).split()[:2] for ref, entry in store.find_lost().items()} == {"sft@v1": ["was", "there"]}


@pytest.mark.parametrize("change", ["removed", "emptied", "begun anew by hand", "another one"])
def test_a_ledger_that_was_taken_away_is_noticed_and_what_is_there_is_reused_only_once_somebody_trusts_it(
    store, publish, ledger_path, tmp_path, change
):
    other = Store(tmp_path / "other")
    publish(other, "rm")
    artifact = publish(store, cache_key=KEY)
    rows = lines_of(ledger_path)
    {
        "removed": ledger_path.unlink,
        "emptied": lambda: ledger_path.write_bytes(b""),
        "begun anew by hand": lambda: ledger_path.write_text(
            json.dumps(rows[0] | {"versions": {"sft@v1": artifact.seal}, "at": "x"}) + "\n"
        ),
        "another one": lambda: shutil.copy(other.root / "ledger.jsonl", ledger_path),
    }[change]()
    found = (
        "not the one that this store has since"
        if change in ("begun anew by hand", "another one")
        else "not there, but this store has one since"
    )
    for known in (store, Store(store.root)):
        code, message = refusal_of(known.find_by_cache_key, "sft", KEY)
        assert code == 3 and f"ledger.jsonl: {found} {rows[0]['at']}" in message and message.endswith("`rlhf doctor --trust`")
        assert refusal_of(known.find_lost)[0] == 3 and known.verify("sft@v1") != []
        (finding,) = examine(known)  # once, not for each version
        assert finding.level == "broken" and found in finding.message
    publish(store, "ppo")  # a finished training is not lost for it, and does not hide it
    assert refusal_of(store.find_by_cache_key, "sft", KEY)[0] == 3
    begin_anew(store.root)
    assert store.find_by_cache_key("sft", KEY) == artifact and store.verify("ppo@v1") == [] and examine(store) == []


def test_a_store_whose_ledger_is_older_than_the_mark_gets_it_with_the_next_write(store, publish, ledger_path):
    publish(store)
    (store.root / MARK_FILE).unlink()
    assert store.verify("sft@v1") == []
    publish(store)
    mark, first = json.loads((store.root / MARK_FILE).read_text()), ledger_path.read_bytes().partition(b"\n")[0]
    assert mark == {"since": json.loads(first)["at"], "first_sha256": hashlib.sha256(first).hexdigest()}
    (store.root / MARK_FILE).write_bytes(b"{")
    assert ".ledger.json, which says how it begins, was changed by hand" in refusal_of(store.get, "sft@v1")[1]


@pytest.mark.parametrize("change", ["a value", "a line less", "a line more", "no text", "no object"])
def test_a_ledger_that_was_changed_is_told_with_its_line_and_nothing_is_reused_until_somebody_trusts_what_is_there(
    store, publish, ledger_path, change
):
    publish(store, cache_key=KEY)
    publish(store, "rm")
    lines = ledger_path.read_bytes().splitlines(keepends=True)
    changed = {
        "a value": [*lines[:2], lines[2].replace(b'"by": "', b'"by": "not '), *lines[3:]],
        "a line less": [*lines[:2], *lines[3:]],
        "a line more": [*lines[:2], lines[1], *lines[2:]],
        "no text": [*lines[:2], b"\xff\n", *lines[2:]],
        "no object": [*lines[:2], b"[]\n", *lines[2:]],
    }[change]
    ledger_path.write_bytes(b"".join(changed))
    number = {"a value": 4}.get(change, 3)
    code, message = refusal_of(store.find_by_cache_key, "sft", KEY)
    assert code == 3 and f"ledger.jsonl:{number}: does not follow from the line before it" in message and "rlhf doctor --trust" in message
    assert refusal_of(store.find_lost)[0] == 3
    publish(store, "ppo")  # a finished training is not lost for it
    assert refusal_of(store.get, "ppo")[0] in (3, 4)
    aside = begin_anew(store.root)
    assert (store.root / aside).read_bytes().startswith(b"".join(changed))
    publish(store, "ppo")
    assert [store.verify(ref) for ref in store.refs()] == [[]] * 4 and store.find_by_cache_key("sft", KEY)


@pytest.mark.parametrize("change", [{"at": 5}, {"by": None}, {"event": ["publish"]}, {"ref": 1}])
def test_the_last_line_for_which_no_other_vouches_may_hold_anything(store, publish, ledger_path, change):
    publish(store)
    shutil.rmtree(store.root / "artifacts" / "sft")
    lines = ledger_path.read_bytes().splitlines(keepends=True)
    ledger_path.write_bytes(b"".join(lines[:-1]) + json.dumps(json.loads(lines[-1]) | change).encode() + b"\n")
    with pytest.raises(StoreError, match=rf"ledger.jsonl:{len(lines)}: .*changed by hand"):
        [str(entry) for entry in store.find_lost().values()]


def test_what_a_power_cut_left_of_a_line_is_cut_off_by_the_next_one(store, publish, ledger_path):
    publish(store)
    whole = ledger_path.read_bytes()
    for left in (b'{"event": "cl', b"\0" * 5000):
        ledger_path.write_bytes(whole + left)
        assert store.verify("sft@v1") == [] and store.find_lost() == {}
    publish(store)
    assert ledger_path.read_bytes().startswith(whole + b'{"event": "claim"') and not read_ledger(store.root).problem


def test_a_publish_that_was_killed_between_rename_and_line_is_found_and_not_accused(store, publish, ledger_path):
    publish(store)
    artifact = publish(store, cache_key=KEY)
    lines = ledger_path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "publish"
    ledger_path.write_bytes(b"".join(lines[:-1]))
    assert store.verify("sft@v2") == [] and store.find_by_cache_key("sft", KEY) == artifact
    publish(store)
    assert [(row["event"], row["ref"]) for row in lines_of(ledger_path)[-3:]] == [
        ("publish", "sft@v2"), ("claim", "sft@v3"), ("publish", "sft@v3")
    ]  # fmt: skip
    delete_by_hand(artifact)
    assert list(store.find_lost()) == ["sft@v2"]


def test_a_publish_and_a_removal_that_were_killed_before_the_rename_leave_nothing_to_miss(store, publish):
    artifact = publish(store)
    with open_ledger(store.root) as append:
        append("claim", "sft@v2", "0" * 64)
    with open_ledger(store.root) as append:
        append("remove", artifact.ref)
    assert store.find_lost() == {} and store.verify("sft@v1") == []
    remove(store, ["sft@v1"])
    assert store.find_lost() == {}


def test_a_collection_writes_its_lines_and_nothing_is_missed(store, publish):
    for number in range(4):
        publish(store, files={"model/a": str(number).encode()})
    collect(store, 1)
    assert store.refs() == ["sft@v4"] and store.find_lost() == {}


def test_a_ledger_that_may_not_be_written_lets_nothing_be_published(store, publish, ledger_path, tmp_path):
    publish(store)
    (tmp_path / "elsewhere").write_text("mine")
    ledger_path.unlink()
    ledger_path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError):
        publish(store)
    assert store.refs() == ["sft@v1"] and (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.slow
def test_publishers_and_readers_at_once_tear_no_line_and_accuse_nobody(store, publish):
    publish(store, cache_key=KEY)
    stop, accused = threading.Event(), []

    def read():
        own = Store(store.root)
        while not stop.is_set():
            accused.extend(problem for ref in own.refs() for problem in _problems(own, ref))
            accused.extend(own.find_lost())

    reader = threading.Thread(target=read)
    reader.start()
    script = (
        "import sys; from pathlib import Path; from pipeline.store.store import Store; from pipeline.store.manifest import ManifestFields\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for _ in range(20):\n"
        "    with store.staging('sft') as staging:\n"
        "        (staging.path / 'a').write_text(sys.argv[2])\n"
        "        store.publish(staging, ManifestFields())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    writers = [subprocess.Popen([sys.executable, "-P", "-c", script, str(store.root), name], env=environment) for name in ("x", "y")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    stop.set()
    reader.join()
    ledger = read_ledger(store.root)
    assert accused == [] and not ledger.problem and len(ledger.entries) == 41


def _problems(store, ref):
    try:
        store.get(ref)
    except StoreError as error:
        return [error.message]
    return []


def test_a_push_to_a_store_on_this_machine_stands_in_its_ledger(store, publish, tmp_path):
    other = Store(tmp_path / "other")
    publish(other, "rm")
    publish(store)
    push(store, "sft", open_remote(f"file://{other.root}"), View())
    assert lines_of(other.root / "ledger.jsonl")[-1]["event"] == "push" and other.verify("sft@v1") == []
    copy = tmp_path / "copy"
    push(store, "sft", open_remote(f"file://{copy}"), View())
    assert not (copy / "ledger.jsonl").exists() and Store(copy).verify("sft@v1") == []


def test_a_ledger_of_a_thousand_versions_is_read_in_a_moment(store):
    with open_ledger(store.root) as append:
        os_fsync, os.fsync = os.fsync, lambda descriptor: None
        try:
            for number in range(1, 1001):
                for event in ("claim", "publish"):
                    append(event, f"sft@v{number}", "0" * 64, content_id="0" * 64, cache_key=KEY)
        finally:
            os.fsync = os_fsync
    times_s = []
    for _ in range(5):
        start_s = time.process_time()
        assert len(read_ledger(store.root).entries) == 1000
        times_s.append(time.process_time() - start_s)
    assert min(times_s) < 0.06  # 12 ms here; twenty at most are the aim, on a machine by itself
