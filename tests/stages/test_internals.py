"""What the libraries are spared that we build on."""

from importlib.metadata import PathDistribution

import pytest
from accelerate.utils import is_deepspeed_available

from stages.internals import skip_inference_kernel  # whose module spares it


def test_what_is_installed_is_read_once(monkeypatch):
    read, read_text = [], PathDistribution.read_text

    def read_and_count(distribution, name):
        read.append(name)
        return read_text(distribution, name)

    monkeypatch.setattr(PathDistribution, "read_text", read_and_count)
    assert is_deepspeed_available() and is_deepspeed_available()
    assert len(read) <= 1


@pytest.mark.slow
def test_deepspeed_neither_compiles_its_kernel_for_inference_nor_looks_which_others_it_could():
    import deepspeed
    from deepspeed.comm.torch import build_shm_op

    vars(deepspeed.ops).pop("__compatible_ops__", None)  # as when it is imported
    skip_inference_kernel()
    assert build_shm_op() is None
    assert deepspeed.ops.__compatible_ops__ == {"deepspeed_shm_comm": False}
