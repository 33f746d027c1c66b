"""What an export needs torch for: an adapter is merged into its base, weights are cast.

    python -P -m stages.merge DIRECTORY [--merge ADAPTER --kind policy|reward_model] [--dtype bfloat16]

changes the model in DIRECTORY, a copy that nobody reads yet; what is wrong is the last line of standard error.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.models.save import save_merged
from stages.models.tokenizer import load_tokenizer
from stages.process.errors import StageError
from stages.spec import ADAPTER_CONFIG, EXIT_OK, EXIT_USAGE

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main() -> int:
    """Change the model as the command line says."""
    parser = argparse.ArgumentParser(prog="python -P -m stages.merge")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--merge", type=Path)
    parser.add_argument("--kind", choices=["policy", "reward_model"], default="policy")
    parser.add_argument("--dtype", choices=DTYPES)
    arguments = parser.parse_args()
    try:
        if arguments.merge:
            merge(arguments.merge, arguments.directory, generates=arguments.kind == "policy")
        if arguments.dtype:
            cast_weights(arguments.directory, arguments.dtype)
    except StageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def merge(adapter: Path, directory: Path, *, generates: bool) -> None:
    """Put the merged model in place of the adapter's copy in a directory."""
    for path in directory.glob("adapter_*"):
        path.unlink()
    made = directory / ".merged"
    save_merged(adapter, load_tokenizer(str(adapter)), made, generates=generates)
    for path in made.iterdir():
        path.replace(directory / path.name)
    made.rmdir()


def cast_weights(directory: Path, dtype: str) -> None:
    """Write every weight that is a floating-point number of 16 bits or more in another precision, file by file; config.json says so.

    Raises:
        StageError: there are no safetensors, or float16 does not hold a weight.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise StageError(f"{directory}: found no *.safetensors to cast; leave out --dtype", EXIT_USAGE)
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: _cast(name, file.get_tensor(name), DTYPES[dtype]) for name in file.keys()}  # noqa: SIM118
        total += sum(tensor.nbytes for tensor in tensors.values())
        draft = path.with_suffix(".tmp")
        save_file(tensors, draft, metadata=metadata)
        shutil.copymode(path, draft)
        draft.replace(path)
    _update_index(directory, total)
    config_path = directory / "config.json"
    if config_path.exists() and not (directory / ADAPTER_CONFIG).exists():
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        _name_dtype(config, dtype)
        config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:  # ids, masks; weights that are quantized already
        return tensor
    cast_to = tensor.to(dtype)
    if not cast_to.isfinite().all() and tensor.isfinite().all():
        raise StageError(f"{name}: found a weight of {tensor.abs().max():.3g}, which {dtype} does not hold; choose bfloat16", EXIT_USAGE)
    return cast_to.contiguous()


def _update_index(directory: Path, total: int) -> None:
    """Correct the total size that a sharded model's index states."""
    path = directory / "model.safetensors.index.json"
    if path.exists():
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index.setdefault("metadata", {})["total_size"] = total
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _name_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the precision that a configuration names, and those inside of it where they name one."""
    config.pop("torch_dtype", None)  # its older name
    config["dtype"] = dtype
    for value in config.values():
        if isinstance(value, dict):
            inner = cast("dict[str, Any]", value)
            if inner.keys() & {"dtype", "torch_dtype"}:
                _name_dtype(inner, dtype)


if __name__ == "__main__":
    sys.exit(main())
