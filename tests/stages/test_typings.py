"""What the type checker reads of a library in place of its own `__init__.py` is what the library has."""

import ast
import importlib
from pathlib import Path

import pytest

STUB = Path(__file__).parents[1] / "typings" / "transformers" / "__init__.pyi"
IMPORTS = [node for node in ast.walk(ast.parse(STUB.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("imported", IMPORTS, ids=lambda node: node.names[0].name)
def test_a_name_for_the_type_checker_is_the_one_that_transformers_gives(imported):
    (name,) = imported.names
    assert name.name == name.asname  # what a stub passes on
    module = importlib.import_module(imported.module)
    assert getattr(module, name.name) is getattr(importlib.import_module("transformers"), name.name)
