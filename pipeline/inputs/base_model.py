"""What a base model is: the part of a cache key that stands for all bytes that loading reads.

directory   its own files, by the names that from_pretrained looks for
            the weights that an index or config.json names further down
            what an adapter stands on, to the end of the chain; or the merged model beside it, which is read in its place
hub id      the commit that its revision names at this moment, which the stages then read
"""

import hashlib
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.recipe.base_files import find_below, name_weights
from pipeline.store.disk import hash_file
from stages.spec import EXIT_MISSING, EXIT_RESOURCE

# What from_pretrained reads; a README or a note beside it changes nothing. In the second row, vocabularies of older tokenizers.
_PATTERNS = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt", "*.safetensors")
_OTHER_VOCABULARIES = ("*.codes", "*.spm", "*.tiktoken", "*.tokenizer", "*.vocab", "tokenizer.model.*")


def identify_model(model: str, revision: str | None) -> str:
    """Name a base model by content: a directory by the sha256 of all that loading it reads, a hub id by its commit.

    Raises:
        ConfigError: It names weights outside of its directory, or its chain of adapters has no end (exit 2).
        StoreError: A file cannot be read (exit 5), or what it names is not there (exit 4).
    """
    return _identify(model, revision, ())


def _identify(model: str, revision: str | None, above: tuple[str, ...]) -> str:
    directory = Path(model)
    below = find_below(model, revision, above)
    if not directory.is_absolute():
        return f"hub:{model}@{revision or 'main'}" + (f" on {_identify(*below)}" if below else "")
    digest = hashlib.sha256()
    own = sorted({path for pattern in (*_PATTERNS, *_OTHER_VOCABULARIES) for path in directory.glob(pattern)})
    for path in own:
        digest.update(f"{path.name} {_hash(path)}\n".encode())
    for name in name_weights(directory):
        if directory / name not in own:
            digest.update(f"{name} {_hash(directory / name)}\n".encode())
    if below:
        digest.update(f"on {_identify(*below)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _hash(path: Path) -> str:
    try:
        return hash_file(path.resolve())[1]  # a hub's cache is made of links
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not there, needed as a part of the base model; copy it there", EXIT_MISSING) from error
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise StoreError(f"{path}: {found}; a file that can be read needed; change its mode or owner", EXIT_RESOURCE) from error
