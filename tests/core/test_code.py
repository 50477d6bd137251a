"""Code objects as bytes: equal for equal code, and code again at any place."""

from __future__ import annotations

import subprocess
import sys
import traceback
from types import CodeType
from typing import Any

import pytest

from flyte_jupyter.core.code import canonical, placed

TEXT = """\
@keep
def train(x, *, kind="a"):
    def inner(y):
        return [y / z for z in x if kind in {"a", "b", "c"}]
    return inner(1)
"""


def code_of(text: str, filename: str = "<cell>", line: int = 1) -> CodeType:
    """The code of the function in the text, which begins at that line of the file."""
    module = compile("\n" * (line - 1) + text, filename, "exec")
    return next(const for const in module.co_consts if isinstance(const, CodeType))


@pytest.mark.parametrize(("filename", "line"), [("<cell>", 40), ("/tmp/ipykernel_1/x.py", 1), ("<another>", 3)])
def test_equal_code_has_equal_bytes_wherever_it_stands(filename: str, line: int) -> None:
    assert canonical(code_of(TEXT, filename, line)) == canonical(code_of(TEXT))


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("[y /", "[y //"),
        TEXT.replace("inner(1)", "inner(1.0)"),
        TEXT.replace("inner(1)", "inner(True)"),
        TEXT.replace("(x,", "(x, /,"),
        TEXT.replace('"c"', '"d"'),
        TEXT.replace("    return inner", "\n    return inner"),  # a traceback would show another line
        TEXT.replace("return inner", "return  inner"),  # or another column
    ],
)
def test_other_code_has_other_bytes(text: str) -> None:
    assert canonical(code_of(text)) != canonical(code_of(TEXT))


def test_code_that_has_run_often_is_still_the_same() -> None:
    names: dict[str, Any] = {"keep": lambda function: function}
    exec(TEXT, names)
    for _ in range(1000):  # Python rewrites its instructions meanwhile
        names["train"]([1, 2])
    assert canonical(names["train"].__code__) == canonical(code_of(TEXT))


def test_code_is_the_same_in_every_process() -> None:
    script = f"from {__name__} import *; print(canonical(code_of(TEXT)).hex())"
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment)
        assert done.stdout.decode().strip() == canonical(code_of(TEXT)).hex()


def test_code_that_is_placed_again_is_as_it_was() -> None:
    original = code_of(TEXT, "<cell 7>", 12)
    assert placed(canonical(original), "<cell 7>", 12) == original
    assert canonical(placed(canonical(original), "<elsewhere>", 1)) == canonical(original)


def test_code_that_is_placed_elsewhere_points_there() -> None:
    code = placed(canonical(code_of(TEXT)), "<cell 9>", 21)
    names: dict[str, Any] = {}
    function = type(code_of)(code, names)
    function.__kwdefaults__ = {"kind": "a"}
    with pytest.raises(ZeroDivisionError) as caught:
        function([0])
    frames = [(f.filename, f.name, f.lineno) for f in traceback.extract_tb(caught.tb)[1:]]
    assert frames[0] == ("<cell 9>", "train", 25)
    assert frames[1] == ("<cell 9>", "inner", 24)
