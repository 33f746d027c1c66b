"""A full disk, met by the libraries that write checkpoints: real errors. What a stage does about it: test_room.py."""

import errno
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from stages.process.disk import find_refusal

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


def test_a_refusal_is_found_behind_what_a_library_made_of_it():
    try:
        try:
            raise OSError(errno.EROFS, "Read-only file system", "/models/x")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert find_refusal(error) == errno.EROFS
