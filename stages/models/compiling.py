"""torch.compile for a transformer's layers, where `hardware.compile` asks for it."""

import contextlib
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

from stages.internals import allow_recompiles, is_compiled, keep_kernels_apart, list_layers
from stages.models.attention import keep_from_compiling
from stages.process.context import StageContext, uses_gpu
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE


def compile_layers(context: StageContext, *models: Any) -> None:
    """Compile each layer of the models, with its row of any length, if `hardware.compile` is set; the last thing done to a model.

    One layer is compiled for all (they differ in weights only). Attention over documents is left as it is: it loops over groups.

    Raises:
        StageError: there is no compiler of C++, or on a GPU of C; exit code 2.
    """
    if not context.spec.hardware.compile:
        return
    if missing := _find_missing(gpu=uses_gpu(context)):
        raise StageError(f"hardware.compile = true, but {missing}; install it, or set hardware.compile: false", EXIT_USAGE)
    # Variants of one layer: four models, with gradients and without, adapters; beyond the limit a layer would quietly run uncompiled.
    allow_recompiles(64)
    keep_from_compiling()
    keep_kernels_apart()
    for model in models:
        for layer in list_layers(model):
            layer.compile(dynamic=True)


def _find_missing(*, gpu: bool) -> str | None:
    """Say what torch.compile would not find: on a GPU Triton compiles a module of C for the driver, with Python's headers."""
    compilers = ["g++"] if not gpu else ["gcc", "clang"]
    compilers = [os.environ[name]] if (name := "CC" if gpu else "CXX") in os.environ else compilers
    if not any(map(shutil.which, compilers)):
        language, place = ("C", "GPU") if gpu else ("C++", "CPU")
        return f"there is no {language} compiler ({' or '.join(compilers)}), which torch.compile needs on a {place}"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return f"there is no {header} (python3-dev), which torch.compile needs on a GPU" if gpu and not header.exists() else None


def eagerly(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Run a model's layers uncompiled: decoding takes many shapes, each of which would be compiled anew."""
    compiled = any(is_compiled(layer) for layer in list_layers(model))
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
