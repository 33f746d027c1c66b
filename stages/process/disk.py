"""A disk that refuses, whoever met it: what the libraries raise -> one line with the path, the need and what is free."""

import errno
import os
import re
import resource
import shutil
from pathlib import Path

from stages.process.context import StageContext

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BROKEN = (errno.EIO, errno.ESTALE)  # a disk, or a server of files that is gone
_REFUSED = (*_FULL, *_BROKEN, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
# torch's writer of zip files knows of the error only that what it wrote did not arrive; its reader has another fault.
_TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|inline_container\.cc(?!.*Reader)|iostream error", re.DOTALL)


def find_refusal(error: BaseException | None) -> int | None:
    """Find the error number by which the file system refused a write, in an error or what led to it; None: it did not."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _REFUSED:
            return error.errno
        text = str(error)
        if isinstance(error, RuntimeError) and _TORCH_WRITER.search(text):
            return errno.ENOSPC
        # safetensors is written in Rust, torch in C++: they quote the system.
        for number in _REFUSED:
            if f"(os error {number})" in text or (isinstance(error, RuntimeError) and f"failed with {os.strerror(number)}" in text):
                return number
        error = error.__cause__ or error.__context__
    return None


def describe_refusal(context: StageContext, error: BaseException, number: int) -> str:
    """Say which path the file system refused a stage, and for a full one how much was needed and is free."""
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else None
    path = Path(named) if named else context.spec.checkpoint_dir
    need = next((size for place, size in context.planned_bytes.items() if path.is_relative_to(place)), 0)
    what = "the output" if path.is_relative_to(context.spec.output_dir) else "a checkpoint"
    needed = f", needed about {need:,} for {what}" if need else ""
    return describe_path(path, number, needed, "; the same command goes on from the last whole checkpoint, if there is one")


def describe_path(path: Path, number: int, needed: str = ", needed more", then: str = "") -> str:
    """Say that the file system refused a path, and for a full one how much is free."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    allowed = f" (files of at most {limit:,} bytes: ulimit -f)" if limit != resource.RLIM_INFINITY else ""
    if number == errno.EFBIG:
        said = f"{path}: {os.strerror(number)}; larger files needed than process and file system allow{allowed}"
        return f"{said}; raise the limit, or choose another store{then}"
    if number in _BROKEN:
        return f"{path}: {os.strerror(number)}; a disk that answers needed; check it and what it is mounted from{then}"
    if number not in _FULL:
        return f"{path}: {os.strerror(number)}; write permission needed; change its mode or owner, or choose another store"
    free = shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free
    return f"{path}: {os.strerror(number)}; found {free:,} bytes free{allowed}{needed}; free space or choose another store{then}"
