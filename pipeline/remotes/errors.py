"""What all remotes share: errors of their libraries as one line, the size of a piece, the name of a tag."""

from collections.abc import Generator
from contextlib import contextmanager

from data.secrets import redact
from pipeline.errors import ResourceError, StoreError
from pipeline.store.refs import Ref, version_directory
from stages.spec import EXIT_MISSING

CHUNK_BYTES = 4 * 1024 * 1024


@contextmanager
def asking(place: str) -> Generator[None]:
    """Turn what a file system's library raises into one line: each has errors of its own, and they quote addresses.

    Raises:
        StoreError: a file is not there (exit 4), or the remote did not do what it was asked (exit 5).
    """
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(
            f"{place}: not there; the address of a store needed; check it, and that its bucket exists", EXIT_MISSING
        ) from error
    except Exception as error:
        todo = "check address, network and credentials, then give the same command again: it goes on where it stopped"
        raise ResourceError(f"{place}: {first_line(error)}; a remote that answers and permits this needed; {todo}") from error


def name_tag(ref: Ref) -> str:
    """Name the tag of a version on the Hub: ppo-v0001."""
    assert ref.version is not None
    return f"{ref.kind}-{version_directory(ref.version)}"


def first_line(error: Exception) -> str:
    """Take what an error says on its first line, without secrets."""
    first = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return redact(first.strip().split("\n", 1)[0][:300]) or type(error).__name__
