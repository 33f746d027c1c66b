"""A store at file:// on file systems that cannot do all."""

import errno
import os

import pytest

from pipeline.errors import ResourceError
from pipeline.remotes.directory import create_file


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.ENOTSUP])
def test_a_name_is_made_once_where_there_are_second_names_and_where_there_are_none(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    if number is not None:
        monkeypatch.setattr(os, "link", refuse)
    root = tmp_path / "store"
    root.mkdir()
    path = f"{root}/artifacts/sft/v0001/manifest.json"
    create_file(root, path, b"first")
    with pytest.raises(ResourceError, match="File exists"):
        create_file(root, path, b"second")
    assert (root / "artifacts/sft/v0001/manifest.json").read_bytes() == b"first"
    assert not list((root / ".staging").iterdir())
