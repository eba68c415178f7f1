"""What documentation says is held against what the code does: parameters, shapes, the README's examples."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest
import recollect as rc
from recollect._core import core

README = Path(__file__).parents[2] / "README.md"
OPS = [rc.hopfield.energy, rc.hopfield.retrieve, rc.hopfield.nearest, rc.attention.attend]
OPS += [rc.fastweight.linear_attention, rc.fastweight.delta_rule, rc.fastweight.fast_weight]
OPS += [rc.attention.sample, rc.attention.point, rc.attention.attend_structured]
PUBLIC = [
    *OPS,
    rc.attention.Bilinear,
    rc.attention.Additive,
    rc.vjp,
    rc.set_num_threads,
    rc.get_num_threads,
    rc.show_config,
    rc.hopfield.HopfieldMemory,
]


def described(function):
    """Name -> first line of description, from the Parameters section of a docstring."""
    section = re.search(r"Parameters\n-+\n(.*?)(?=\n\n\w[\w ]*\n-+\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    lines = re.findall(r"^([*\w, ]+) : (.*)$", section.group(1), re.MULTILINE) if section else []
    return {name.strip().lstrip("*"): text for names, text in lines for name in names.split(",")}


@pytest.mark.parametrize("function", OPS, ids=lambda f: f.__name__)
def test_every_parameter_is_described(function):
    assert list(described(function)) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("function", OPS, ids=lambda f: f.__name__)
def test_shapes_are_those_that_are_checked(function):
    table = core.shapes()[function.__module__.removeprefix("recollect.").lstrip("_")]
    for name, text in described(function).items():
        if name not in table:
            continue
        letters = table[name].replace("...", "").split()
        if letters:
            assert "(" + ", ".join(["...", *letters]) + ")" in text, name
        else:
            assert "leading axes" in text, name


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_docstrings_have_an_example(function):
    doc = inspect.getdoc(function) or ""
    assert ">>> " in doc or not inspect.signature(function).parameters


@pytest.mark.skipif(not README.exists(), reason="no README beside the tests")
def test_the_python_of_the_readme_runs_and_says_what_it_claims():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, {})
        assert "True" in printed.getvalue() and "False" not in printed.getvalue()
