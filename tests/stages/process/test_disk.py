"""A full disk, met by the libraries that write checkpoints: real errors. What a stage does about it: test_room.py."""

import errno
import os
import resource
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from stages.process.disk import describe_path, find_refusal

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path_factory):
    """A disk of 18 MB."""
    directory = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def error_of(write):
    with pytest.raises(Exception) as caught:
        write()
    return caught.value


@AS_ROOT
def test_every_writer_of_a_checkpoint_is_understood_on_a_full_disk(small_disk):
    tensor, path = torch.zeros(6_000_000), small_disk / "file"
    writers = [
        lambda: torch.save(tensor, path),
        lambda: torch.save(tensor, path, _use_new_zipfile_serialization=False),
        lambda: save_file({"tensor": tensor}, path),
        lambda: path.write_bytes(bytes(24_000_000)),
    ]
    for write in writers:
        assert find_refusal(error_of(write)) == errno.ENOSPC
        path.unlink(missing_ok=True)


def test_other_errors_are_no_refusal_of_the_disk(tmp_path):
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    others = [
        error_of(lambda: torch.load(tmp_path / "torn.pt")),
        error_of(lambda: torch.zeros(2) @ torch.zeros(3)),
        error_of((tmp_path / "nowhere").read_bytes),
        ValueError("No space left on device"),
    ]
    assert [find_refusal(error) for error in others] == [None] * len(others)


def test_every_writer_of_a_checkpoint_is_understood_where_files_may_not_be_so_large(tmp_path):
    tensor, path, limits = torch.zeros(6_000_000), tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    try:
        found = [
            find_refusal(error_of(write))
            for write in (lambda: save_file({"tensor": tensor}, path), lambda: path.write_bytes(bytes(24_000_000)))
        ]
        assert found == [errno.EFBIG, errno.EFBIG]
        assert find_refusal(error_of(lambda: torch.save(tensor, path))) == errno.ENOSPC  # it does not say why; both are told then
        for number in (errno.EFBIG, errno.ENOSPC):
            told = describe_path(path, number)
            assert os.strerror(number) in told and "files of at most 2,000,000 bytes: ulimit -f" in told
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit" not in describe_path(path, errno.ENOSPC) or limits[0] != resource.RLIM_INFINITY


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_does_not_answer_is_no_matter_of_permissions(tmp_path, number):
    assert find_refusal(OSError(number, os.strerror(number), str(tmp_path))) == number
    assert describe_path(tmp_path, number).startswith(f"{tmp_path}: {os.strerror(number)}; a disk that answers needed; check it")


def test_a_refusal_is_found_behind_what_a_library_made_of_it():
    try:
        try:
            raise OSError(errno.EROFS, "Read-only file system", "/models/x")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert find_refusal(error) == errno.EROFS
