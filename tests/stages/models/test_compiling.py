"""hardware.compile: layers are really compiled, numbers stay, decoding is left alone, and a missing compiler is said."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from stages.models.compiling import compile_layers
from stages.models.forward import compute_hidden_states
from stages.models.packing import pack
from stages.models.policy import load_policy
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.generation import generate_responses
from stages.settings import HardwareSettings

HARDWARE = HardwareSettings(device="cpu", precision="float32", compile=True)


@pytest.fixture
def context(make_stage):
    return StageContext(make_stage("sft", hardware=HARDWARE).spec)


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_states_and_gradients_for_rows_of_any_length(context, base_model_dir):
    plain, compiled = (load_policy(str(base_model_dir), HARDWARE) for _ in range(2))
    compile_layers(context, compiled)
    counters.clear()
    for documents in ([[5, 6, 7], [8, 9]], [list(range(4, 60)), list(range(9, 80))], [[3] * 30, [4] * 7, [5]]):
        row = pack(documents)
        states = []
        for model in (plain, compiled):
            model.zero_grad()
            states.append(compute_hidden_states(model.base_model, row)[: sum(map(len, documents))])
            states[-1].square().mean().backward()
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    num_graphs = counters["stats"]["unique_graphs"]
    assert 0 < num_graphs <= 12, "compiled anew for each length"

    arguments = {"max_new_tokens": 6, "stop_token_ids": {1}, "seed": 0, "max_rows": 4}
    responses = [generate_responses(model, [[5, 6, 7], [8, 9, 3, 4]], **arguments) for model in (plain, compiled)]
    assert [response.ids for response in responses[0]] == [response.ids for response in responses[1]]
    assert counters["stats"]["unique_graphs"] == num_graphs, "decoding was compiled"


def test_without_a_compiler_the_switch_is_refused(context, base_model_dir, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(StageError, match=r"no-such-compiler.*hardware\.compile: false") as caught:
        compile_layers(context, load_policy(str(base_model_dir), HARDWARE))
    assert caught.value.exit_code == 2
