"""F5, F11, F12: full disks, missing permission, odd paths."""

import errno
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.errors import ResourceError, StoreError
from pipeline.export import export
from pipeline.remotes.addresses import open_remote
from pipeline.remotes.push import push
from pipeline.store.importing import import_directory
from pipeline.store.removal import remove
from pipeline.store.store import Store
from tests.pipeline.remotes.remote_parts import View

NOBODY = 65534


def fail_at(monkeypatch, name, number, code):
    """Let the n-th call of an os function fail."""
    function, count = getattr(os, name), 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("name", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EXDEV, errno.EFBIG])
def test_a_refusal_by_the_file_system_is_one_line_and_old_versions_stay(store, publish, monkeypatch, name, code):
    old = publish(store)
    for number in range(1, 30):
        with monkeypatch.context() as patch:
            fail_at(patch, name, number, code)
            try:
                publish(store, "rm")
            except ResourceError as error:
                assert error.exit_code == 5 and error.message.isprintable()
                assert str(store.root) in error.message and os.strerror(code) in error.message
                assert ("bytes free" in error.message) == (code in (errno.ENOSPC, errno.EDQUOT, errno.EIO))
            except OSError as error:
                # The test's own files in staging: what a stage process would see.
                assert name == "mkdir" and error.errno == code
            else:
                break
        store = Store(store.root)
        store.reap()
        assert store.get("sft") == old and store.verify("sft") == []
        assert store.list() == [store.get(ref) for ref in store.refs()]
        assert list((store.root / ".staging").iterdir()) == []
    else:
        pytest.fail("the calls never came to an end")


def test_a_failed_alias_write_keeps_the_old_alias(store, publish, monkeypatch):
    publish(store)
    publish(store)
    store.set_alias("sft", "best", "sft@v1", by="me")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            fail_at(patch, name, 1, errno.ENOSPC)
            with pytest.raises(ResourceError, match="bytes free"):
                store.set_alias("sft", "best", "sft@v2", by="me")
        assert store.get("sft@best").ref == "sft@v1"


def test_a_file_system_without_modes_does_not_fail_a_publish(store, publish, monkeypatch):
    fail_at(monkeypatch, "chmod", 1, errno.EPERM)
    assert store.verify(publish(store).ref) == []


def test_a_file_system_without_directory_fsync_does_not_fail_a_publish(store, publish, monkeypatch):
    fsync = os.fsync

    def fsync_files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_files_only)
    assert store.verify(publish(store).ref) == []


def run_without_privileges(function):
    """Call a function in a child process that may not ignore file modes; return the text it returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writer, function().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def open_store(publish):
    """A store below a directory that everybody may enter, with one artifact."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        store = Store(Path(directory) / "store")
        publish(store)
        yield store
        for path in (store.root, *store.root.rglob("*")):
            path.chmod(0o755)


def test_a_store_that_may_only_be_read_reads_and_refuses_writes_in_one_line(open_store, publish):
    (open_store.root / ".staging" / "sft-left").mkdir()
    for path in (open_store.root, *open_store.root.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)

    def use():
        store = Store(open_store.root)
        assert store.reap() == []
        assert [artifact.ref for artifact in store.list()] == ["sft@v1"] and store.verify("sft") == [] and store.lineage("sft") == []
        texts = []
        for write in (lambda: publish(store), lambda: store.set_alias("sft", "best", "sft", by="me")):
            try:
                write()
            except StoreError as error:
                texts.append(f"{error.exit_code} {error.message}")
        return "\n".join(texts)

    lines = run_without_privileges(use).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("5 ") and str(open_store.root) in line and "write permission needed" in line


def test_a_user_without_privileges_publishes_and_finds_the_artifact_read_only(publish, open_store):
    shared = open_store.root.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    def use():
        store = Store(shared / "store")
        refs = [publish(store).ref, publish(store).ref]
        assert refs == ["sft@v1", "sft@v2"] and store.verify("sft") == []
        try:
            (store.get("sft").path / "log.txt").write_text("late")
        except PermissionError:
            return "refused"
        return "written"

    assert run_without_privileges(use) == "refused"


def test_a_store_that_may_not_be_read_says_so_in_one_line(open_store):
    (open_store.root / "artifacts").chmod(0)

    def use():
        try:
            Store(open_store.root).list()
        except StoreError as error:
            return f"{error.exit_code} {error.message}"
        return "listed"

    assert run_without_privileges(use).startswith("5 ")
    assert "read permission needed" in run_without_privileges(use)


ODD_NAMES = ["plain", "mit Leerzeichen", "ünïcödé-模型-🚀", "new\nline", "$(touch x)", "-rf", "é" * 127, "x" * 255, "quote'\"", ".hidden"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_store_works_at_any_path(tmp_path, publish, name):
    store = Store(tmp_path / name)
    artifact = publish(store, files={"model/a file with spaces.json": b"{}", "model/ünïcödé.safetensors": b"1"})
    store.set_alias("sft", "best", artifact.ref, by="me")
    assert Store(tmp_path / name).get("sft@best") == artifact and store.verify(artifact.ref) == []
    (artifact.path / "manifest.json").unlink()
    (problem,) = store.verify("sft@v1")
    assert problem.isprintable()


def test_a_store_behind_a_link_is_the_same_store(tmp_path, publish):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    artifact = publish(Store(tmp_path / "link"))
    assert publish(Store(tmp_path / "real")).version == 2
    assert Store(tmp_path / "real").get("sft@v1").content_id == artifact.content_id


def test_a_relative_store_stays_where_it_was_opened(tmp_path, publish, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    publish(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.get("sft").path == tmp_path / "store/artifacts/sft/v0001"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_store_lies_on_another_device_than_the_working_directory(publish):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        store = Store(Path(directory) / "store")
        assert store.verify(publish(store).ref) == []


@pytest.fixture
def full_disk(tmp_path, publish):
    """full_disk(): a store with an sft and its rm on a disk of which not a byte is free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")

    def fill():
        store = Store(disk / "store")
        publish(store)
        publish(store, "rm")
        with suppress(OSError), (disk / "more").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(512))
        return store

    yield fill
    subprocess.run(["umount", disk], check=True)


def test_what_is_removed_makes_room_though_no_line_can_be_written_before(full_disk):
    store = full_disk()
    with pytest.raises(ResourceError, match="No space left"):
        store.set_alias("rm", "best", "rm@v1", by="me")
    assert remove(store, ["sft@v1"]) == ["sft@v1"]
    assert store.refs() == ["rm@v1"] and store.find_lost() == {} and store.verify("rm@v1") == []


def test_a_full_disk_is_named_by_the_place_that_is_written(full_disk, tmp_path):
    store, model = full_disk(), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (model / "model.safetensors").write_bytes(save({"w": np.zeros(4000, dtype=np.float32)}))
    with pytest.raises(ResourceError, match=rf"^{re.escape(str(store.root / '.staging'))}/sft-[0-9a-f]+/model/"):
        import_directory(store, model, None)
    with pytest.raises(ResourceError, match=rf"^{re.escape(str(store.root.parent))}/\.draft-"):
        export(store, "sft", store.root.parent / "mine", merge=False, dtype=None, told=print)
    assert not list(store.root.glob(".staging/*"))
    (store.root.parent / "there").mkdir()
    with pytest.raises(ResourceError, match=r"/there/\S+: No space left on device; [0-9,]+ bytes needed, 0 bytes free; free space"):
        push(store, "sft", open_remote(f"file://{store.root.parent / 'there'}"), View())


def test_a_store_that_is_a_link_to_nothing_is_told_as_that(tmp_path, publish):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(
        ResourceError, match=rf"^{tmp_path}/link: File exists; a directory needed, found a link to nothing; make what it names"
    ):
        publish(Store(tmp_path / "link"))
