"""YAML -> values and lines: what is read, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipe.yaml_lines import parse_document, parse_value, read_document


def read(text):
    document = parse_document(text, "recipe.yaml")
    assert document.problems == []
    return document.values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5e-06", 5e-6),
        ("3E+2", 300),
        ("1e5", 100_000),
        ("1E-05", 1e-5),
        ("1.0e3", 1000.0),
        ("1e400", "1e400"),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2", -2),
        ("10_000", 10000),
        ("010", 10),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        (".nan", ".nan"),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("[1, a]", [1, "a"]),
        ("{a: 1, b: {c: 2}}", {"a": 1, "b": {"c": 2}}),
        ("9" * 400, "9" * 400),
    ],
)
def test_values_are_read_as_a_person_means_them(text, value):
    found = read(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_each_key_knows_its_line():
    document = parse_document("# a comment\nname: x\n\nppo:\n  kl_coef: 1\n  lora:\n    rank: 4\n", "recipe.yaml")
    assert document.place(("name",)) == "recipe.yaml:2"
    assert document.place(("ppo", "kl_coef")) == "recipe.yaml:5"
    assert document.place(("ppo", "lora", "rank")) == "recipe.yaml:7"
    assert document.place(("ppo", "missing")) == "recipe.yaml:4"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system [id]\n", "recipe.yaml:1: found the tag"),
        ("a: !!int 3\n", "recipe.yaml:1: found the tag"),
        ("a: 1\nb: &x [1]\nc: *x\n", "recipe.yaml:2: found an anchor or alias"),
        ("a: *x\n", "recipe.yaml:1: found an anchor or alias"),
        ("a: 1\nb: 2\na: 3\n", "recipe.yaml:3: a: duplicate key, first at recipe.yaml:1; keep one"),
        ("ppo:\n  x: 1\n  x: 1\n", "recipe.yaml:3: ppo.x: duplicate key, first at recipe.yaml:2; keep one"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: found a second document"),
        ("- 1\n- 2\n", "recipe.yaml:1: found a list, needed a block of keys"),
        ("just text\n", "recipe.yaml:1: found 'just text', needed a block of keys"),
        ("a: [1, 2\nb: 3\n", "recipe.yaml:2: "),
        ("a: 1\n\tb: 2\n", "recipe.yaml:2: "),
        ("a: \x00\n", "recipe.yaml:1: "),
        ("[1]: 2\n", "recipe.yaml:1: found a key that is not plain text"),
        ("a: " + "[" * 50 + "]" * 50 + "\n", "recipe.yaml:1: found more than 20 levels"),
    ],
)
def test_what_a_recipe_never_needs_is_refused_with_its_line(text, problem):
    problems = parse_document(text, "recipe.yaml").problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_an_alias_bomb_is_refused_before_it_grows():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{name}: &{name} [*{before}, *{before}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    document = parse_document(bomb, "recipe.yaml")
    assert document.broken
    assert "anchor or alias" in document.problems[0]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    assert "No such file" in read_document(tmp_path / "missing.yaml").problems[0]
    (tmp_path / "latin.yaml").write_bytes(b"name: ok\nnote: caf\xe9\n")
    assert (
        read_document(tmp_path / "latin.yaml").problems[0].endswith("latin.yaml:2: found a byte that is not UTF-8; save the file as UTF-8")
    )
    (tmp_path / "big.yaml").write_bytes(b"# " + b"x" * 1_000_001)
    assert "needed at most 1000000" in read_document(tmp_path / "big.yaml").problems[0]


def test_a_value_of_set_is_yaml():
    assert parse_value("1e-3") == 1e-3
    assert parse_value("{rank: 8}") == {"rank": 8}
    with pytest.raises(ValueError, match="anchor or alias"):
        parse_value("*x")


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("abc:-#&*!|>%@`'\"{}[]?, \n\t\x00é0.e"), max_size=60))
def test_no_text_makes_the_reader_raise(text):
    document = parse_document(text, "recipe.yaml")
    assert isinstance(document.values, dict)
