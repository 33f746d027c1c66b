"""How a stage ends before its end: it cannot go on, it was asked to stop, its memory ran out."""

import re

from stages.spec import EXIT_FAILED

# How it is said where torch's allocators do not ask: by a GPU that is full before they begin, for cuBLAS, by NCCL.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure.*out of memory"
)


class StageError(Exception):
    """A stage cannot go on; the message says found + needed + do, the exit code says of which kind (stages.spec)."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(BaseException):
    """A stop signal was honoured; what could be saved is saved. Not an Exception: no `except Exception` may swallow it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the machine or of the GPU did not suffice."""
    said = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
