"""Errors that no other part tells: one line each, which says what to do."""

import errno
import os

import pytest

from pipeline.report.errors import print_error
from stages.spec import EXIT_RESOURCE


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "base/model.safetensors: Permission denied; permission is needed; change its mode or owner, or give another path"),
        (errno.ENOSPC, "base/model.safetensors: No space left on device; free space is needed; choose another --store"),
        (errno.EROFS, "base/model.safetensors: Read-only file system; a disk that can be written is needed; choose another --store"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_would_help(capsys, number, said):
    assert print_error(OSError(number, os.strerror(number), "base/model.safetensors")) == EXIT_RESOURCE
    assert capsys.readouterr().err == f"{said}\n"
