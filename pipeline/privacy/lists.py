"""Which records each record set holds: keyed hashes (`data.identity`) in `records/` of the store, a file for each set.

    records/secret                   the store's key; without it the hashes cannot be tried out
    records/<kind>-<hash>.turns      named by the set's fingerprint, which each artifact that learnt from it names in its manifest
    records/<kind>-<hash>.list       the same of an earlier version, which did not look into conversations
    records/forgotten                what `rlhf forget` left

Written while a set is read for the first time: one pass, nothing is held but the hashes.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.identity import DIGEST_BYTES, FORGOTTEN_FILE, SECRET_FILE, make_secret, name_secret
from pipeline.errors import StoreError
from pipeline.store.directory import open_root
from pipeline.store.disk import locked, reading, write_durably, writing
from pipeline.store.parts import RECORDS_DIR
from stages.spec import EXIT_VERIFICATION

_LIST_SUFFIX, _EARLIER_SUFFIX = ".turns", ".list"
_NO_STORE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def open_secret(root: Path) -> bytes:
    """Read a store's secret, drawn with the first use.

    Raises:
        StoreError: it is gone, and what was listed or forgotten by it is there (exit 3), or the file system refused (exit 5).
    """
    if (secret := find_secret(root)) is not None:
        return secret
    place = root / RECORDS_DIR / SECRET_FILE
    with writing(place), open_root(root, create=True) as store, store.enter(RECORDS_DIR, create=True) as records:
        if FORGOTTEN_FILE in records.names():
            found = f"{place}: not there, so it is not known which records were forgotten"
            raise StoreError(f"{found}; needed; restore it from a copy", EXIT_VERIFICATION)
        draft = f".secret-{uuid.uuid4().hex}"
        write_durably(draft, make_secret(), dir_fd=records.fd, mode=0o660)  # whoever has it can try out guesses
        try:
            os.link(draft, SECRET_FILE, src_dir_fd=records.fd, dst_dir_fd=records.fd, follow_symlinks=False)
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without second names (FAT, some of networks): one process after the other
            with locked(".lock", dir_fd=records.fd):
                if SECRET_FILE not in records.names():
                    os.rename(draft, SECRET_FILE, src_dir_fd=records.fd, dst_dir_fd=records.fd)
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=records.fd)
    secret = find_secret(root)
    assert secret is not None
    return secret


def find_secret(root: Path) -> bytes | None:
    """Read a store's secret; None where it has none yet."""
    place = root / RECORDS_DIR / SECRET_FILE
    with suppress(FileNotFoundError), reading(place):
        return place.read_bytes()
    return None


def find_forgotten(root: Path) -> Path | None:
    """Return the store's `records/` where something was forgotten, for `data.treatment`."""
    return root / RECORDS_DIR if name_forgotten(root) else None


def name_forgotten(root: Path) -> str:
    """Tell one list of what was forgotten from another; empty where nothing was."""
    try:
        return hashlib.sha256((root / RECORDS_DIR / FORGOTTEN_FILE).read_bytes()).hexdigest()
    except OSError as error:
        if error.errno in _NO_STORE:  # whoever writes there tells what is wrong with the path
            return ""
        raise


def list_path(root: Path, kind: str, fingerprint: str) -> Path | None:
    """Name the list of a record set; None of one that has no records of its own."""
    algorithm, _, digest = fingerprint.partition(":")
    return root / RECORDS_DIR / f"{kind}-{digest[:32]}{_LIST_SUFFIX}" if algorithm == "sha256" and len(digest) == 64 else None


def write_list(root: Path, kind: str, fingerprint: str, digests: bytearray, secret: bytes) -> None:
    """Write the list of a record set, in one step; what an earlier reading of a set of this fingerprint listed stays in it."""
    path = list_path(root, kind, fingerprint)
    assert path is not None
    before = [read_list(each, secret) for each in (path, path.with_suffix(_EARLIER_SUFFIX))]
    found = np.frombuffer(bytes(digests), _HASHES)
    listed = np.unique(
        np.concatenate([found, *(each for each in before if each is not None)], dtype=_HASHES)
    )  # else in this machine's order
    with open_root(root) as store, store.enter(RECORDS_DIR, create=True) as records:
        draft = f".{path.name}-{uuid.uuid4().hex}"
        write_durably(draft, name_secret(secret) + listed.tobytes(), dir_fd=records.fd)
        os.replace(draft, path.name, src_dir_fd=records.fd, dst_dir_fd=records.fd)


_HASHES = np.dtype([("first", ">u8"), ("second", ">u8")])


def read_list(path: Path, secret: bytes) -> "np.ndarray | None":
    """Read a list; None where there is none, or one of another secret."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if content[:DIGEST_BYTES] != name_secret(secret) or len(content) % DIGEST_BYTES:
        return None
    return np.frombuffer(content, _HASHES, offset=DIGEST_BYTES)


def count_listed(path: Path, secret: bytes, wanted: Iterable[bytes]) -> int | None:
    """Count the hashes that a list holds of those wanted; None where there is no list."""
    listed = read_list(path, secret)
    if listed is None:  # what an earlier version did not find may be there all the same
        earlier = read_list(path.with_suffix(_EARLIER_SUFFIX), secret)
        return None if earlier is None else _count(earlier, wanted) or None
    return _count(listed, wanted)


def _count(listed: "np.ndarray", wanted: Iterable[bytes]) -> int:
    asked = np.frombuffer(b"".join(sorted(wanted)), _HASHES)
    places = np.searchsorted(listed["first"], asked["first"])
    near = [listed[place : place + 4] for place in places]  # equal first halves by chance: never more than a few
    return sum(bool(np.any(some == hash_)) for some, hash_ in zip(near, asked, strict=True))
