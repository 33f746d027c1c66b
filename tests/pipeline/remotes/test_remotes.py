"""Push and pull over fsspec: faults at each call, two pushers, remotes that lie. Row F10; S4 to S6 and S11 for remotes."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import count

import pytest

from pipeline.errors import ResourceError, StoreError
from pipeline.remotes.addresses import open_remote
from pipeline.remotes.pull import find_content, pull
from pipeline.remotes.push import push
from pipeline.remotes.transfers import list_refs
from pipeline.store.manifest import FileEntry, Manifest, compute_content_id, render_manifest
from pipeline.store.refs import Ref
from pipeline.store.store import Store
from tests.pipeline.remotes.remote_parts import View, find_broken, memory_remote, publish_chain

CHAIN = ["sft@v1", "rm@v1", "ppo@v1"]


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "other")


def staged(store):
    return sorted(path.name for path in (store.root / ".staging").glob("*")) if store.root.exists() else []


def test_f10_a_push_that_fails_at_any_call_leaves_no_manifest_without_its_data_and_the_next_one_finishes(store, publish):
    publish_chain(store, publish)
    for n in count(1):
        remote, files = memory_remote()
        files.fail_at = n
        try:
            push(store, "ppo", remote, View())
        except StoreError as error:
            assert "the connection broke" in error.message and error.exit_code == 5
        else:
            if files.num_calls < n:
                break
        assert find_broken(files) == []
        files.fail_at = None
        assert list(push(store, "ppo", remote, View())) == CHAIN
        assert find_broken(files) == []
        assert [str(ref) for ref in list_refs(remote)] == ["ppo@v1", "rm@v1", "sft@v1"]
        assert all(path.startswith("/remote/artifacts/") for path in files.store), "a claim is left"
    assert n > 30  # 3 artifacts, each with 4 files, a claim and a manifest


def test_f10_a_pull_that_fails_at_any_call_publishes_nothing_broken_and_the_next_one_finishes(store, publish, tmp_path):
    publish_chain(store, publish)
    remote, files = memory_remote()
    push(store, "rm", remote, View())
    for n in count(1):
        pulled = Store(tmp_path / f"pulled-{n}")
        files.num_calls, files.fail_at = 0, n
        try:
            pull(pulled, "rm", remote, View())
        except StoreError as error:
            assert "the connection broke" in error.message and error.exit_code == 5
            assert all(pulled.verify(ref) == [] for ref in pulled.refs())
            files.num_calls, files.fail_at = 0, None
            assert list(pull(pulled, "rm", remote, View())) == CHAIN[:2]
        else:
            if files.num_calls < n:
                break
        assert pulled.refs() == sorted(CHAIN[:2]) and all(pulled.verify(ref) == [] for ref in CHAIN[:2])
        assert staged(pulled) == []
    assert n > 20


def test_a_push_that_was_stopped_sends_only_what_is_not_there_and_trusts_no_size(store, publish):
    artifact = publish(store, "sft")
    remote, files = memory_remote()
    push(store, "sft", remote, View())
    place = "/remote/artifacts/sft/v0001"
    files.rm_file(f"{place}/manifest.json")
    files.pipe_file(f"{place}/model/model.safetensors", bytes(2048))  # the right size
    files.sent.clear()
    assert push(store, "sft", remote, View()) == {"sft@v1": True}
    assert files.sent == [f"{place}/model/model.safetensors"]
    assert find_broken(files) == [] and artifact.ref == "sft@v1"


def test_a_pull_goes_on_with_the_files_that_a_failed_one_left(store, publish, other):
    publish(store, "sft", {f"model/{i}.safetensors": bytes([i]) * 5000 for i in range(9)})
    remote, files = memory_remote()
    push(store, "sft", remote, View())
    files.num_calls, files.fail_at = 0, 40
    with pytest.raises(ResourceError):
        pull(other, "sft", remote, View())
    (directory,) = (path for path in (other.root / ".staging").iterdir() if path.is_dir())
    whole = [path for path in directory.rglob("*.safetensors") if path.stat().st_size == 5000]
    whole[0].write_bytes(b"\xff" * 5000)  # damaged meanwhile: of the right size
    (directory / "stranger").write_text("")
    files.num_calls, files.fail_at = 0, None
    pull(other, "sft", remote, View())
    assert other.verify("sft@v1") == [] and staged(other) == []
    assert files.num_calls < 9 * 8 - 6 * (len(whole) - 1) + 10
    assert len(whole) > 1


def test_a_pulled_artifact_is_the_very_same_and_is_found_by_its_cache_key(store, publish, other, tmp_path):
    publish_chain(store, publish)
    remote = open_remote(f"file://{tmp_path}/far away ü")
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, True)
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, False)
    assert pull(other, "ppo@latest", remote, View()) == dict.fromkeys(CHAIN, True)
    assert pull(other, "ppo@v1", remote, View()) == dict.fromkeys(CHAIN, False)
    for ref in CHAIN:
        ours, theirs = store.get(ref), other.get(ref)
        for path in [*(entry.path for entry in ours.manifest.files), "manifest.json"]:
            assert (ours.path / path).read_bytes() == (theirs.path / path).read_bytes()
            assert not (theirs.path / path).stat().st_mode & 0o222
        assert other.verify(ref) == []
    assert other.find_by_cache_key("sft", "sft-key").ref == "sft@v1"
    assert pull(Store(tmp_path / "third"), store.get("rm").content_id[:12], remote, View()) == {"sft@v1": True, "rm@v1": True}
    assert sorted(path.name for path in (tmp_path / "far away ü").iterdir()) == [".staging", "artifacts"]
    assert list((tmp_path / "far away ü" / ".staging").iterdir()) == []


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_of_two_pushers_with_different_contents_one_wins_and_the_other_is_told_both_ids(store, publish, other, tmp_path, scheme):
    ours = publish(store, "sft")
    theirs = publish(other, "sft", {"model/model.safetensors": b"other"})
    remote = memory_remote()[0] if scheme == "memory" else open_remote(f"file://{tmp_path}/remote")
    push(store, "sft", remote, View())
    before = remote.find_manifest(Ref("sft", 1))
    with pytest.raises(StoreError) as raised:
        push(other, "sft", remote, View())
    assert raised.value.exit_code == 3
    assert ours.content_id[:12] in raised.value.message and theirs.content_id[:12] in raised.value.message
    assert remote.find_manifest(Ref("sft", 1)) == before
    assert remote.find(remote.claim_path(Ref("sft", 1))) is None


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_while_one_pusher_holds_a_version_another_content_never_touches_its_files(store, publish, other, tmp_path, scheme):
    publish(store, "sft")
    publish(other, "sft", {"model/config.json": b"{}", "model/model.safetensors": b"\1" * 2048, "metrics.jsonl": b'{"step": 1}\n'})
    remote = memory_remote()[0] if scheme == "memory" else open_remote(f"file://{tmp_path}/remote")
    lost = []

    class Interrupting(View):
        def moved(self, num_bytes):
            if not lost:
                with pytest.raises(ResourceError) as raised:
                    push(other, "sft", remote, View())
                lost.append(raised.value.message)

    push(store, "sft", remote, Interrupting())
    assert "is being pushed from elsewhere" in lost[0] and ".staging/sft-v0001.json" in lost[0]
    assert store.get("sft").content_id[:12] in lost[0] and other.get("sft").content_id[:12] in lost[0]
    assert pull(Store(tmp_path / "pulled"), "sft", remote, View()) == {"sft@v1": True}


def test_a_pusher_who_claims_after_another_one_published_gives_the_claim_up(store, publish, other):
    publish(store, "sft")
    publish(other, "sft", {"model/model.safetensors": b"other"})
    remote, files = memory_remote()
    find, looks = remote.find_manifest, []

    def push_between(ref):
        there = find(ref)
        if not looks:
            looks.append(ref)
            push(store, "sft", remote, View())  # after the first look, before the claim
        return there

    object.__setattr__(remote, "find_manifest", push_between)
    with pytest.raises(StoreError, match="there holds content") as raised:
        push(other, "sft", remote, View())
    assert raised.value.exit_code == 3 and find_broken(files) == []
    assert remote.find(remote.claim_path(Ref("sft", 1))) is None


def test_the_same_content_of_another_run_is_there_already(store, publish, other):
    publish(store, "sft")
    publish(other, "sft", seed=7)
    remote, files = memory_remote()
    push(store, "sft", remote, View())
    files.sent.clear()
    assert push(other, "sft", remote, View()) == {"sft@v1": False} and files.sent == []


def test_data_that_went_away_at_the_remote_is_sent_again(store, publish):
    publish(store, "sft")
    remote, files = memory_remote()
    push(store, "sft", remote, View())
    files.rm_file("/remote/artifacts/sft/v0001/model/config.json")
    assert push(store, "sft", remote, View()) == {"sft@v1": True}
    assert find_broken(files) == []


def test_a_damaged_artifact_is_not_pushed(store, publish):
    path = publish(store, "sft").path / "model" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(bytes(2048))
    remote, files = memory_remote()
    with pytest.raises(StoreError, match="damaged") as raised:
        push(store, "sft", remote, View())
    assert raised.value.exit_code == 3 and not files.store


def test_a_version_with_another_content_here_is_kept_and_told(store, publish, other):
    ours, theirs = publish(store, "sft"), publish(other, "sft", {"model/model.safetensors": b"other"})
    remote, _ = memory_remote()
    push(store, "sft", remote, View())
    with pytest.raises(StoreError) as raised:
        pull(other, "sft", remote, View())
    assert raised.value.exit_code == 3 and ours.content_id[:12] in raised.value.message and theirs.content_id[:12] in raised.value.message
    assert other.verify("sft@v1") == [] and other.refs() == ["sft@v1"]


def test_a_damaged_version_here_is_told_when_it_is_pulled(store, publish, other):
    publish(store, "sft")
    remote, _ = memory_remote()
    push(store, "sft", remote, View())
    pull(other, "sft", remote, View())
    path = other.get("sft").path / "model" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(bytes(2048))
    with pytest.raises(StoreError, match="`rlhf rm sft@v1`") as raised:
        pull(other, "sft", remote, View())
    assert raised.value.exit_code == 3


def forge(files, path, kind="sft", version=1, parents=(), content_id=None, size=None):
    """Put a manifest of our own making, sealed as it should be, and its data at a remote."""
    entry = FileEntry.model_construct(path=path, size=len(b"evil") if size is None else size, sha256=hashlib.sha256(b"evil").hexdigest())
    paths = [entry]
    manifest = Manifest.model_construct(
        kind=kind,
        version=version,
        content_id=content_id or compute_content_id(paths),
        created_utc="2026",
        files=paths,
        parents=list(parents),
    )
    MemoryPipe = type(files).__mro__[1].pipe_file
    MemoryPipe(files, f"/remote/artifacts/{kind}/v{version:04d}/manifest.json", render_manifest(manifest))
    if "\0" not in path:
        MemoryPipe(files, f"/remote/artifacts/{kind}/v{version:04d}/data", b"evil")
    return manifest


@pytest.mark.parametrize(
    "path",
    [
        "../../../evil",
        "/tmp/evil",
        "model/../../evil",
        "a\0b",
        "model\\evil",
        "evil.pkl",
        "manifest.json",
        "a//b",
        "./a",
        "x" * 256,
        "\x1b[31m",
    ],
)
def test_s4_unsafe_paths_in_a_manifest_are_refused_before_anything_is_written(other, path):
    remote, files = memory_remote()
    forge(files, path)
    with pytest.raises(StoreError) as raised:
        pull(other, "sft@v1", remote, View())
    assert raised.value.exit_code == 3 and "\n" not in raised.value.message and raised.value.message.isprintable()
    assert not other.root.exists()


def test_s6_manifests_that_lie_are_refused_before_anything_is_written(store, publish, other):
    publish_chain(store, publish)
    remote, files = memory_remote()
    sft = forge(files, "data", "sft", content_id="0" * 64)
    for kind in ("rm", "ppo"):
        forge(files, "data", kind)
    files.store["/remote/artifacts/rm/v0002/manifest.json"] = files.store["/remote/artifacts/rm/v0001/manifest.json"]
    big = b"x" * (9 * 2**20)
    files.pipe_file("/remote/artifacts/ppo/v0002/manifest.json", big)
    files.pipe_file("/remote/artifacts/ppo/v0003/manifest.json", b"null")
    for ref in ("sft@v1", "rm@v2", "ppo@v2", "ppo@v3"):
        with pytest.raises(StoreError) as raised:
            pull(other, ref, remote, View())
        assert raised.value.exit_code == 3, ref
    assert sft.content_id == "0" * 64
    with pytest.raises(StoreError) as raised:
        pull(other, "ppo@v9", remote, View())
    assert raised.value.exit_code == 4
    assert not other.root.exists()


def test_s6_cycles_and_parents_that_are_missing_or_others_are_refused(other):
    from pipeline.store.manifest import Parent

    remote, files = memory_remote()
    content_id = forge(files, "data").content_id
    loop = [Parent(ref="rm@v1", content_id=content_id)]
    forge(files, "data", parents=loop)
    forge(files, "data", "rm", parents=[Parent(ref="sft@v1", content_id=content_id)])
    forge(files, "data", "ppo", parents=[Parent(ref="sft@v7", content_id=content_id)])
    forge(files, "data", "ppo", 2, parents=[Parent(ref="sft@v1", content_id="1" * 64)])
    for ref, exit_code, word in (("sft@v1", 3, "descends from itself"), ("ppo@v1", 4, "sft@v7"), ("ppo@v2", 3, "111111111111")):
        with pytest.raises(StoreError, match=word) as raised:
            pull(other, ref, remote, View())
        assert raised.value.exit_code == exit_code
    assert not other.root.exists()


def test_data_that_differs_from_the_manifest_is_never_published(store, publish, other):
    publish(store, "sft")
    for content in (bytes(2048), b"short", bytes(5000), None):
        remote, files = memory_remote()
        push(store, "sft", remote, View())
        path = "/remote/artifacts/sft/v0001/model/model.safetensors"
        if content is None:
            files.rm_file(path)
        else:
            files.pipe_file(path, content)
        with pytest.raises(StoreError, match=r"model\.safetensors") as raised:
            pull(other, "sft", remote, View())
        assert raised.value.exit_code == 3 and other.refs() == []


def test_a_pull_that_the_disk_cannot_hold_is_refused_before_it_begins(other):
    remote, files = memory_remote()
    forge(files, "data", size=2**60)
    with pytest.raises(ResourceError, match="1,152,921,504,606,846,976 bytes needed"):
        pull(other, "sft@v1", remote, View())
    assert other.refs() == []


def test_names_are_of_each_store(other):
    remote, _ = memory_remote()
    with pytest.raises(StoreError) as raised:
        pull(other, "ppo@best", remote, View())
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("ref", ["../x", "sft@v0", "-rf", "sft@../../x", "x" * 300, "sft@v1\n"])
def test_s5_bad_refs_are_refused(other, ref):
    with pytest.raises(StoreError) as raised:
        pull(other, ref, memory_remote()[0], View())
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:canary-secret@bucket/x",
        "s3://canary-secret@bucket/x",
        "s3://bucket/x?X-Whatever=canary-secret",
        "s3://bucket/x#canary-secret",
        "gs://u:canary-secret@bucket/x",
        "hf://u:canary-secret@owner/name",
        "https://u:canary-secret@host/x",
    ],
)
def test_s11_an_address_that_holds_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(StoreError) as raised:
        open_remote(url)
    assert raised.value.exit_code == 2 and "canary" not in raised.value.message


@pytest.mark.parametrize(
    "url", ["", "s3", "s3://", "ftp://x/y", "file://relative", "file:///a/../b", "hf://owner", "hf://a/b/c", "s3://b/\n"]
)
def test_what_is_no_address_is_told_in_a_line(url):
    with pytest.raises(StoreError) as raised:
        open_remote(url)
    assert raised.value.exit_code == 2 and raised.value.message.isprintable()


def test_a_fifo_in_the_place_of_a_manifest_is_not_waited_for(tmp_path, other):
    (tmp_path / "remote/artifacts/sft/v0001").mkdir(parents=True)
    os.mkfifo(tmp_path / "remote/artifacts/sft/v0001/manifest.json")
    remote = open_remote(f"file://{tmp_path}/remote")
    with pytest.raises(StoreError, match="not a regular file"):
        pull(other, "sft@v1", remote, View())
    told = find_content(remote, Ref("sft", 1))  # by which `ls` goes on to the next one
    assert isinstance(told, StoreError) and told.exit_code == 3


@pytest.mark.parametrize("link", ["artifacts", "artifacts/sft", "artifacts/sft/v0001", "artifacts/sft/v0001/model", ".staging"])
def test_a_link_that_lies_in_a_store_at_file_is_not_written_through(store, publish, tmp_path, link):
    foreign, place = tmp_path / "foreign", tmp_path / "there" / link
    foreign.mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(foreign)
    publish(store, "sft", {"model/config.json": b"{}"})
    with pytest.raises(ResourceError, match="a link, which is not followed") as raised:
        push(store, "sft", open_remote(f"file://{tmp_path / 'there'}"), View())
    assert raised.value.exit_code == 5 and list(foreign.iterdir()) == []


def test_a_store_at_file_may_be_a_link_as_a_whole(store, publish, other, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    publish(store, "sft")
    push(store, "sft", open_remote(f"file://{tmp_path / 'link'}"), View())
    pull(other, "sft", open_remote(f"file://{tmp_path / 'there'}"), View())
    assert other.verify("sft@v1") == [] and list((tmp_path / "there/.staging").iterdir()) == []


def test_a_package_that_is_not_installed_is_named_and_nothing_is_imported_before(tmp_path):
    script = (
        "import sys\n"
        "from pipeline.cli import app\n"
        "app(['ls', '--store', sys.argv[1]], standalone_mode=False)\n"
        "assert not {'fsspec', 's3fs', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.modules['s3fs'] = None\n"
        "from pipeline.cli import main\n"
        "sys.argv = ['rlhf', 'ls', 's3://bucket/x', '--json']\n"
        "main()\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert process.returncode == 2 and "pip install 's3fs'" in process.stderr and "Traceback" not in process.stderr


def test_ls_marks_what_a_stopped_push_left(store, publish):
    from pipeline.report.tables import list_remote_data

    publish_chain(store, publish)
    remote, files = memory_remote()
    push(store, "rm", remote, View())
    files.pipe_file("/remote/artifacts/ppo/v0001/log.txt", b"")
    files.pipe_file("/remote/artifacts/ppo/v0002/manifest.json", b"[]")
    rows = list_remote_data(remote)
    assert [row["ref"] for row in rows] == ["ppo@v1", "ppo@v2", "rm@v1", "sft@v1"]
    assert "a push goes on, or was stopped" in rows[0]["damaged"] and "damaged" in rows[1]
    assert rows[2]["content_id"] == store.get("rm").content_id and rows[2]["path"] == "memory://remote/artifacts/rm/v0001"
    json.dumps(rows)
