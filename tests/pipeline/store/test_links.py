"""F7, F12, S4: a link in the place of a part of the store is refused in one line; nothing is read, written or removed through it."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import ResourceError, StoreError
from pipeline.store.manifest import ManifestFields
from pipeline.store.parts import require_own_parts, require_places
from pipeline.store.store import Store

NAME = f"sft-{'0' * 32}"  # as a dead writer leaves it


@pytest.fixture
def foreign(tmp_path):
    """A directory of somebody else, which looks as if the store had written it."""
    directory = tmp_path / "foreign"
    for path in (f"{NAME}/model/weights", "v0001/manifest.json", "sft/v0001/manifest.json", "checkpoints/checkpoint-5/state", "best.json"):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text("precious")
    (directory / f"{NAME}.lock").touch()
    return directory


def state_of(directory):
    """Names, sizes, modes and times, that of the last change of anything included, of all below a directory."""
    entries = {path: path.lstat() for path in [directory, *directory.rglob("*")]}
    return {path: (entry.st_ino, entry.st_size, entry.st_mode, entry.st_mtime_ns, entry.st_ctime_ns) for path, entry in entries.items()}


PARTS = ["artifacts", "artifacts/sft", "aliases", "aliases/sft", ".staging", ".trash", "runs", "runs/sft-0123456789abcdef", "notes",
         "tokens", "slurm", "demo"]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_link_in_place_of_a_part_is_told_before_anything_is_done(store, foreign, part, is_dangling):
    path = store.root / part
    path.parent.mkdir(parents=True)
    path.symlink_to(foreign / "gone" if is_dangling else foreign)
    before = state_of(foreign)
    with pytest.raises(ResourceError, match="a link, which is not followed") as refusal:
        require_own_parts(store.root)
    assert str(path) in refusal.value.message and refusal.value.exit_code == 5
    assert state_of(foreign) == before


def test_a_whole_store_and_links_that_are_no_part_of_it_are_left_alone(store, publish, foreign):
    publish(store)
    for path in ("latest", "artifacts/Newest", "runs/newest"):
        (store.root / path).parent.mkdir(exist_ok=True)
        (store.root / path).symlink_to(foreign)
    before = state_of(store.root)
    require_own_parts(store.root)
    require_own_parts(store.root.parent / "none")
    assert state_of(store.root) == before


def test_a_reaper_removes_nothing_behind_a_link(store, foreign):
    """F7: `rlhf ls` once removed all below a directory that `.staging` was a link to."""
    store.root.mkdir()
    (store.root / ".staging").symlink_to(foreign)
    before = state_of(foreign)
    with pytest.raises(ResourceError, match="a link, which is not followed"):
        store.reap()
    with pytest.raises(ResourceError, match="a link, which is not followed"), store.staging("sft"):
        raise AssertionError("nothing was opened")
    (store.root / ".staging").unlink()
    (store.root / ".staging").mkdir()
    (store.root / ".staging" / NAME).symlink_to(foreign)
    (store.root / ".staging" / f"{NAME}.lock").touch()
    store.reap()
    assert state_of(foreign) == before


@pytest.mark.parametrize("part", ["artifacts", "artifacts/sft"])
def test_artifacts_behind_a_link_are_neither_read_nor_written(store, publish, foreign, part):
    other = Store(foreign.parent / "other")
    publish(other)
    path = store.root / part
    path.parent.mkdir(parents=True)
    path.symlink_to(other.root / part)
    before = state_of(other.root)
    for action in (store.list, store.refs, lambda: store.get("sft@v1"), lambda: store.verify("sft@v1"), lambda: publish(store)):
        with pytest.raises(ResourceError, match="a link, which is not followed"):
            action()
    assert state_of(other.root) == before


def test_a_version_that_is_a_link_is_damaged(store, publish, tmp_path):
    real = publish(store)
    moved = real.path.rename(tmp_path / "moved")
    real.path.symlink_to(moved)
    before = state_of(moved)
    assert store.list() == [] and store.refs() == ["sft@v1"]
    (problem,) = store.verify("sft@v1")
    assert "v0001: a link, which is not followed" in problem
    with pytest.raises(StoreError) as refusal:
        store.get("sft@v1")
    assert refusal.value.exit_code == 3
    assert publish(store).ref == "sft@v2"
    assert state_of(moved) == before


@pytest.mark.parametrize("part", ["aliases", "aliases/sft"])
def test_aliases_behind_a_link_are_neither_read_nor_written(store, publish, foreign, part):
    publish(store)
    (store.root / part).parent.mkdir(exist_ok=True)
    (store.root / part).symlink_to(foreign)
    before = state_of(foreign)
    for action in (lambda: store.set_alias("sft", "best", "sft@v1", by="me"), lambda: store.get("sft@best"), lambda: store.aliases("sft")):
        with pytest.raises(ResourceError, match="a link, which is not followed"):
            action()
    assert state_of(foreign) == before


@pytest.mark.parametrize("name", [".best.json.tmp", "best.json", ".lock"])
def test_an_alias_is_not_written_through_a_link_in_place_of_a_file(store, publish, foreign, name):
    publish(store)
    directory = store.root / "aliases" / ("" if name == ".lock" else "sft")
    directory.mkdir(parents=True)
    (directory / name).symlink_to(foreign / "best.json")
    if name == ".lock":
        with pytest.raises(ResourceError, match="a link, which is not followed"):
            store.set_alias("sft", "best", "sft@v1", by="me")
    else:
        store.set_alias("sft", "best", "sft@v1", by="me")
        assert store.get("sft@best").ref == "sft@v1"
    assert (foreign / "best.json").read_text() == "precious"


def test_a_directory_that_becomes_a_link_while_a_stage_writes_is_not_followed_at_the_end(store, foreign):
    with store.staging("sft") as staging:
        (staging.path / "model").mkdir()
        (staging.path / "model" / "weights").write_text("x")
        staging.path.rename(staging.path.with_name("away"))
        staging.path.symlink_to(foreign / NAME)
        before = state_of(foreign)
        with pytest.raises(ResourceError, match="a link, which is not followed"):
            store.publish(staging, ManifestFields())
    assert state_of(foreign) == before and store.refs() == []


def mounted(script):
    """Run a shell script in a mount namespace of its own, where it may mount; None where that is not allowed."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("may not mount")
    return subprocess.run(["unshare", "-rm", "bash", "-ec", script], capture_output=True, text=True, check=False, timeout=60)


PUBLISH = """
import sys
from pathlib import Path
from pipeline.errors import StoreError
from pipeline.store.manifest import ManifestFields
from pipeline.store.parts import require_own_parts, require_places
from pipeline.store.store import Store
store = Store(Path(sys.argv[1]))
try:
    require_own_parts(store.root)
    require_places(store.root, ["sft", "rm"])
    with store.staging("sft") as staging:
        (staging.path / "a").write_text("x")
        print(store.publish(staging, ManifestFields()).ref)
except StoreError as error:
    print(error.exit_code, error.message)
"""


@pytest.mark.parametrize("part", ["artifacts", "artifacts/rm", ".staging", "runs"])
@pytest.mark.parametrize("how", ["-t tmpfs none", "--bind ELSEWHERE"])
def test_parts_on_another_device_are_found_before_training_unless_nothing_is_renamed_there(tmp_path, part, how):
    """F12: a mount in the store; a bind mount has the same device number, and cannot be renamed into either."""
    path = tmp_path / "store" / part
    path.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "publish.py").write_text(PUBLISH)
    mount = how.replace("ELSEWHERE", str(tmp_path / "elsewhere"))
    done = mounted(f"mount {mount} {path}\n{os.sys.executable} {tmp_path / 'publish.py'} {tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    if part == "runs":
        assert done.stdout == "sft@v1\n"
    else:
        assert done.stdout.startswith(f"5 {tmp_path / 'store' / 'artifacts'}") and "one file system needed" in done.stdout
        assert done.stdout.count("\n") == 1


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_store_as_a_whole_may_be_a_link_to_another_device(tmp_path, publish):
    """F12."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        (tmp_path / "link").symlink_to(directory)
        store = Store(tmp_path / "link")
        require_own_parts(store.root)
        require_places(store.root, ["sft"])
        assert store.verify(publish(store).ref) == [] and (Path(directory) / "artifacts/sft/v0001").is_dir()
