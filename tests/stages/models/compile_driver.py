"""Run by test_compiling.py in a process of its own: compile_driver.py SPEC.json BASE_MODEL.

Code that was just compiled can end the process; a test worker would take its other tests along.
"""

import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from stages.models.compiling import compile_layers
from stages.models.forward import compute_hidden_states
from stages.models.packing import pack
from stages.models.policy import load_policy
from stages.process.context import StageContext
from stages.responses.generation import generate_responses
from stages.spec import read_spec


def check(context, base_model_dir):
    hardware = context.spec.hardware
    plain, compiled = (load_policy(base_model_dir, hardware) for _ in range(2))
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


if __name__ == "__main__":
    check(StageContext(read_spec(Path(sys.argv[1]))), sys.argv[2])
