"""Signatures by OpenSSF model signing: who holds the key vouches for an artifact, and whoever has the public key can check that offline.

    artifacts/sft/v0001.sig.json    beside the version, which is read-only: a Sigstore bundle

It covers every file of the version, its manifest among them, which names the content of its parents. Any tool that knows the format
checks it: `model_signing verify key store/artifacts/sft/v0001 --signature ... --public_key ...`.
"""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import read_bounded, replace_durably, writing
from pipeline.store.refs import SIGNATURE_SUFFIX, version_directory
from pipeline.store.staging import ARTIFACTS_DIR
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, EXIT_USAGE

_MAX_SIGNATURE_BYTES = 64 * 1024 * 1024
_NEEDED = "an elliptic curve key in PEM without a password is needed: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"


def signature_name(version: int) -> str:
    """Name the signature of a version, which lies beside its directory."""
    return f"{version_directory(version)}{SIGNATURE_SUFFIX}"


def sign(store: Store, ref: str, key: Path) -> tuple[Artifact, Path]:
    """Sign an artifact of which every byte was verified; an earlier signature is replaced.

    Args:
        store: Where it is.
        ref: Which one.
        key: Private key of an elliptic curve, in PEM.

    Returns:
        The artifact, and where its signature lies.

    Raises:
        StoreError: it is damaged or forged (exit 3), not there (exit 4), the key cannot be used or the library is not installed (exit 2),
            or the file system refused (exit 5).
    """
    library, _ = _import_library()
    _require_key(key)
    artifact = store.require_verified(store.get(ref).ref)
    with TemporaryDirectory(prefix="rlhf-sign-") as draft:
        try:
            library.Config().use_elliptic_key_signer(private_key=key).sign(artifact.path, Path(draft) / "signature")
        except (ValueError, TypeError) as error:
            raise StoreError(f"{key}: {error}; {_NEEDED}", EXIT_USAGE) from error
        content = (Path(draft) / "signature").read_bytes()
    place = artifact.path.with_name(signature_name(artifact.version))
    with writing(place), open_root(store.root) as root, root.enter(f"{ARTIFACTS_DIR}/{artifact.kind}") as directory:
        replace_durably(place.name, content, dir_fd=directory.fd)
    return artifact, place


def find_signature_problems(artifact: Artifact, key: Path) -> list[str]:
    """Check an artifact's signature against a public key; return a line for what is wrong, none where it holds.

    Raises:
        StoreError: the key cannot be used, or the library is not installed (exit 2), or there is no such key (exit 4).
    """
    _, library = _import_library()
    _require_key(key)
    try:
        checker = library.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError) as error:
        needed = "the public half in PEM is needed: `openssl ec -in key.pem -pubout -out key.pub`"
        raise StoreError(f"{key}: {error}; {needed}", EXIT_USAGE) from error
    place = artifact.path.with_name(signature_name(artifact.version))
    try:
        content = read_bounded(place, _MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        return [f"{place}: not there; a signature is needed; `rlhf sign {artifact.ref} --key FILE`"]
    except (OSError, ValueError) as error:
        return [f"{place}: {error}; a signature is needed; sign it again"]
    with TemporaryDirectory(prefix="rlhf-verify-") as draft:  # the very bytes that were looked at
        copy = Path(draft) / "signature"
        copy.write_bytes(content)
        try:
            checker.verify(artifact.path, copy)
        except Exception as error:  # what the library raises for a bundle that somebody made up is not its own
            reason = str(error).strip().splitlines() or ["it was not made with this key"]
            found = f"{place}: {type(error).__name__}: {reason[0][:300]}"
            return [f"{found}; the signature of this very artifact by this key is needed; do not use it"]
    return []


def _import_library() -> tuple[Any, Any]:
    """Import the library's halves that sign and that verify: it brings many others, which nothing else needs."""
    with suppress(ImportError):
        from model_signing import signing, verifying

        return signing, verifying
    raise StoreError("model-signing: not installed; it is needed for signatures; `pip install 'rlhf[sign]'`", EXIT_USAGE)


def _require_key(key: Path) -> None:
    if not key.is_file():
        raise StoreError(f"{key}: no such file; {_NEEDED}", EXIT_MISSING)
