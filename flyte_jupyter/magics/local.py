"""A task cell with `--local`: run here, as a local cell."""

from __future__ import annotations

import ast
import inspect
from types import TracebackType
from typing import Any

from IPython.core.error import UsageError

from .present import presentable


def run_here(shell: Any, body: str, filename: str, first_line: int) -> None:
    """Run `body` among the notebook's names; its last expression is displayed.

    Raises: What it raises, with the user's frames only.
    """
    try:
        code = shell.transform_cell(body)
        tree = ast.parse("\n" * (first_line - 1) + code, filename)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body:
            exec(_compiled(tree, filename, "exec"), shell.user_ns)
        if isinstance(last, ast.Expr):
            value = eval(_compiled(ast.Expression(last.value), filename, "eval"), shell.user_ns)
            if not shell.displayhook.semicolon_at_end_of_expression(code):
                shell.displayhook(value)
    except UsageError:
        raise
    except BaseException as error:
        raise presentable(shell, error, _in_cell(error.__traceback__, filename)) from None


def _compiled(tree: ast.Module | ast.Expression, filename: str, mode: str) -> Any:
    code = compile(tree, filename, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        raise UsageError("--local cannot await at top level: a magic runs while the notebook's loop stands still")
    return code


def _in_cell(tb: TracebackType | None, filename: str) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename != filename:
        tb = tb.tb_next
    return tb
