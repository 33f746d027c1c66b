"""The import rules between the packages, read from the import statements."""

import ast
import functools
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent.parent
OURS = {"data", "stages", "pipeline"}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "deepspeed"}
TORCH_FREE_STAGES = {
    "stages.track_spec",
    "stages.adapter_base",
    "stages.spec",
    "stages.settings",
    "stages.evaluate_settings",
    "stages.sample_settings",
    "stages.events",
    "stages.blocks",
    "stages.deepspeed_config",
    "stages.result",
    "stages.rules",
    "stages.trainer_args",
    "stages.trainer_values",
    "stages.result_intervals",
    "stages.lines",
    "data.system.death",
    "data.system.limits",
    "stages.process.need",
    "stages.process.output",
    "stages.process.places",
    "stages.responses.chat_api",
    "stages.responses.chat_http",
    "stages.responses.llm_judge",
    "stages.statistics.arms",
    "stages.statistics.agreement",
    "stages.evaluate.card",
    "stages.evaluate.results",
    "stages.tracing.report",
    "stages.tracing.resident",
    "stages.statistics.best_of_n",
    "stages.statistics.bootstrap",
    "stages.statistics.comparison",
    "stages.statistics.frontier",
    "stages.statistics.intervals",
    "stages.statistics.kl",
    "stages.statistics.length_control",
    "stages.statistics.overoptimisation",
    "stages.statistics.reward_card",
    "stages.statistics.variety",
    "stages.warnings.ppo",
    "stages.warnings.rm",
    "stages.warnings.told",
    "stages.warnings.watch",
}
PURE_MATHS = {"stages.ppo.advantages", "stages.ppo.losses", "stages.responses.kl"}


def modules_of(package):
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def nodes_of(path):
    """All parts of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports_of(path, *, top_level_only=False):
    """Names of the modules that a file imports; not those under TYPE_CHECKING."""
    nodes = nodes_of(path)
    skipped = {
        id(inner)
        for node in nodes
        if (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        or (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names = set()
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            # `import data` binds a name that a user's own data.py takes just as well.
            assert not {alias.name for alias in node.names} & OURS, f"{path}:{node.lineno}: write `from {node.names[0].name}.x import y`"
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def packages_of(names):
    return {name.partition(".")[0] for name in names}


def modules_in(names, package):
    """The modules of ours among imported names, which may be names inside of modules."""
    inside = {name for name in names if name.startswith(package + ".")}
    return {name if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() else name.rpartition(".")[0] for name in inside}


def each(*packages):
    return pytest.mark.parametrize(
        "path", [path for package in packages for path in modules_of(package)], ids=lambda path: str(path.relative_to(ROOT))
    )


@each("data")
def test_data_imports_nothing_of_ours_and_no_torch(path):
    assert packages_of(imports_of(path)) & (OURS - {"data"}) == set()
    # A function may need a tokenizer's library; at the top of a file it would slow every command down.
    assert packages_of(imports_of(path)) & (HEAVY - {"transformers"}) == set()
    assert packages_of(imports_of(path, top_level_only=True)) & HEAVY == set()


@each("stages")
def test_stages_never_import_the_pipeline(path):
    assert "pipeline" not in packages_of(imports_of(path))


@each("pipeline")
def test_the_pipeline_imports_only_the_torch_free_parts_of_stages(path):
    names = imports_of(path)
    assert packages_of(names) & HEAVY == set()
    assert modules_in(names, "stages") <= TORCH_FREE_STAGES
    assert "stages" not in names


@pytest.mark.parametrize("name", sorted(TORCH_FREE_STAGES))
def test_the_torch_free_parts_of_stages_are_torch_free(name):
    names = imports_of(ROOT / (name.replace(".", "/") + ".py"))
    assert packages_of(names) & HEAVY == set()
    assert modules_in(names, "stages") <= TORCH_FREE_STAGES
    for package in Path(name.replace(".", "/")).parents[:-1]:
        assert imports_of(ROOT / package / "__init__.py") == set()


def test_the_stages_never_import_one_another():
    owners = {f"stages/{name}.py": f"stages.{name}" for name in ("pretrain", "sft", "rm")} | {
        str(path.relative_to(ROOT)): f"stages.{room}" for room in ("ppo", "evaluate") for path in modules_of(f"stages/{room}")
    }
    for path, own in owners.items():
        for other in {"stages.pretrain", "stages.sft", "stages.rm", "stages.ppo", "stages.evaluate"} - {own}:
            assert not any(name == other or name.startswith(other + ".") for name in imports_of(ROOT / path)), f"{path} imports {other}"


@pytest.mark.parametrize("name", sorted(PURE_MATHS))
def test_the_pure_maths_imports_torch_and_nothing_else(name):
    names = imports_of((ROOT / name.replace(".", "/")).with_suffix(".py"))
    assert packages_of(names) - {"torch", "math", "dataclasses", "typing", "collections", "__future__"} <= {"stages"}
    assert modules_in(names, "stages") <= PURE_MATHS


def test_only_one_module_touches_private_parts_of_the_libraries():
    """Names that begin with one underscore, DeepSpeed's marks on weights, and modules inside of transformers."""
    for path in modules_of("stages"):
        if path == ROOT / "stages" / "internals.py":
            continue
        for node in nodes_of(path):
            if isinstance(node, ast.Attribute):
                private = node.attr.startswith(("_", "ds_")) and not node.attr.startswith("__")
                ours = isinstance(node.value, ast.Name) and (node.value.id == "self" or (node.value.id, node.attr) == ("os", "_exit"))
                assert ours or not private, f"{path}:{node.lineno}: {ast.unparse(node)}; say it in stages/internals.py"
        inside = {name for name in imports_of(path) if name.startswith("transformers.")}
        assert all(name.count(".") == 1 and name.split(".")[1][0].isupper() for name in inside), f"{path} imports {inside}"


def test_only_one_package_touches_trl():
    touching = {str(path.relative_to(ROOT)) for package in OURS for path in modules_of(package) if "trl" in packages_of(imports_of(path))}
    assert {Path(path).parent.as_posix() for path in touching} == {"stages/trl"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name):
    return ".".join(name.split(".")[:2])


def find_circle(arrows):
    """A list of modules each of which imports the next, the last the first; None where there is none."""
    done = set()

    def follow(name, trail):
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return None
        circle = next(filter(None, (follow(other, [*trail, name]) for other in sorted(arrows[name]))), None)
        done.add(name)
        return circle

    return next(filter(None, (follow(name, []) for name in sorted(arrows))), None)


PACKAGES = ["data", "stages", "pipeline"]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package):
    """What functions import counts too."""
    paths = {module_name(path): path for path in modules_of(package)}
    assert find_circle({name: imports_of(path) & paths.keys() - {name} for name, path in paths.items()}) is None


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_itself_by_way_of_others(package):
    paths = {module_name(path): path for path in modules_of(package)}
    arrows = {room_of(name): set() for name in paths}
    for name, path in paths.items():
        arrows[room_of(name)] |= {room_of(other) for other in imports_of(path) & paths.keys()} - {room_of(name)}
    assert find_circle(arrows) is None


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
