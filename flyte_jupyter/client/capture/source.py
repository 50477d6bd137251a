"""Where a notebook's functions and classes are written, and which names their source refers to.

`inspect.getsource` does not do: it finds no class of a notebook, and nothing that a decorator replaced.
Whole cells are parsed instead, and a definition is accepted only where it begins on the very line that the
code object tells, so that an edited file or a reused cell name never yields the wrong text.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import io
import linecache
import symtable
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from ...core.definitions import Text
from .. import seams

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definable = Function | ast.ClassDef

FUTURE_FLAGS = __future__.annotations.compiler_flag  # every other future is either past or a joke
OUR_DECORATORS = frozenset({"task", "preload"})


@dataclass(frozen=True, slots=True)
class Source:
    """One top-level `def` or `class` as it stands in its file; the line numbers of `node` are the file's."""

    node: Definable
    lines: str
    filename: str
    first_line: int
    flags: int

    @property
    def decorated(self) -> bool:
        return bool(self.node.decorator_list)

    def line_of(self, name: str) -> int | None:
        """The first line that mentions the global `name`."""
        lines = (n.lineno for n in ast.walk(self.node) if isinstance(n, ast.Name) and n.id == name)
        return min(lines, default=None)

    def constants(self) -> dict[str, object]:
        """The names that a class body binds to a constant."""
        found: dict[str, object] = {}
        for statement in self.node.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                    found[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                    found[name] = value
        return found

    def bound(self) -> set[str]:
        """The names that a class body binds to values."""
        return set().union(*map(_bound_by, self.node.body))

    def without_decorators(
        self, ours: Callable[[object], bool], names: Mapping[str, Any], *, certain: bool = False
    ) -> Source:
        """Cut the decorators from the top down to the last that is `ours`; those below it stay.

        `certain` says that one of them is: then one that cannot be evaluated safely (`pool(env).preload`) goes by its
        last name.
        """
        decorators = self.node.decorator_list
        last = max((i for i, d in enumerate(decorators) if ours(_evaluate(d, names))), default=-1)
        if last < 0 and certain:
            last = max((i for i, d in enumerate(decorators) if _last_name(d) in OUR_DECORATORS), default=-1)
        if last < 0:
            return self
        kept = decorators[last + 1 :]
        return self.from_line(kept[0].lineno if kept else self.node.lineno)

    def from_line(self, first_line: int) -> Source:
        """The definition less the decorators above that line."""
        if first_line == self.first_line:
            return self
        lines = "".join(io.StringIO(self.lines).readlines()[first_line - self.first_line :])
        source = replace(self, lines=lines, first_line=first_line)
        parsed = _parse_one(lines, first_line)
        assert parsed is not None, "a definition less its upper decorators is a definition"
        return replace(source, node=parsed)


class Position(NamedTuple):
    """A place in a text: a line, and how many bytes of it are before."""

    line: int
    column: int


class Binding(NamedTuple):
    """A statement of a cell that binds names, and where it has done so."""

    end: Position
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class References:
    """The globals that a definition mentions.

    `early` ones must exist when it is executed: decorators, defaults, bases, a class body. Those of them in
    `shaping` make it what it is, so that it changes with them; an annotation of a function does not. `late`
    ones are looked up when it runs. `modules` are submodules reached by attribute (`xml.dom.minidom`).
    """

    early: frozenset[str]
    shaping: frozenset[str]
    late: frozenset[str]
    modules: frozenset[str] = frozenset()


def function_source(function: FunctionType) -> Source | None:
    """A top-level function's own text, with its decorators; None for a lambda or an inner function."""
    code = function.__code__
    if "." in code.co_qualname or not code.co_name.isidentifier():
        return None
    lines = linecache.getlines(code.co_filename, function.__globals__)
    tree = _parse("".join(lines))
    if tree is None:  # one unfinished or indented piece must not hide the others
        block = _parse_block(lines, code.co_firstlineno)
        nodes: list[ast.stmt] = [] if block is None else [block]
    else:
        nodes = list(_top_level(tree.body))
    for node in nodes:
        if (
            isinstance(node, Function)
            and node.name == code.co_name
            and _start(node) <= code.co_firstlineno <= node.lineno
        ):
            source = _source(node, lines, code.co_filename, code.co_flags & FUTURE_FLAGS)
            # On a replica that can read a script's file, the function lacks the decorators that were cut.
            return source.from_line(code.co_firstlineno)
    return None


def class_source(cls: type) -> Source | None:
    """A top-level class's own text: by the line of a method, else what bound its name last, if that can have made it.

    None too where the text would make another class today: one of its bases has been made anew since.
    """
    if "." in cls.__qualname__:
        return None
    names = vars(sys.modules.get(cls.__module__, ModuleType("")))
    for code in _method_codes(cls):
        lines = linecache.getlines(code.co_filename)
        tree = _parse("".join(lines))
        for node in _top_level(tree.body if tree else []):
            if (
                isinstance(node, ast.ClassDef)
                and node.name == cls.__name__
                and node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)
            ):
                source = _source(node, lines, code.co_filename, code.co_flags & FUTURE_FLAGS)
                return source if _has_bases(node, cls, names) else None
    for node, lines, filename, flags in _bindings(cls.__name__, sys.modules.get(cls.__module__)):
        if isinstance(node, ast.ClassDef):
            if _describes(node, cls) and _has_bases(node, cls, names):
                return _source(node, lines, filename, flags)
        elif cls.__name__ not in _loads(node):  # `T = create_model("T")`; but `T = registered(T)`
            return None
    return None


def decorated_source(name: str, module: str | None) -> Source | None:
    """The `def` or `class` of this name, if that is what bound it last and it is decorated.

    For what a decorator made without `functools.wraps`: nothing leads from such an object to its source.
    """
    for node, lines, filename, flags in _bindings(name, sys.modules.get(module or "")):
        if isinstance(node, Definable) and node.decorator_list:
            return _source(node, lines, filename, flags)
        return None
    return None


def text_of(code: CodeType) -> Text | None:
    """The statement of a cell or file in which this code stands; None if it has no text."""
    lines = linecache.getlines(code.co_filename)
    line = code.co_firstlineno
    tree = _parse("".join(lines)) if 0 < line <= len(lines) else None
    around = [node for node in _top_level(tree.body if tree else []) if _first(node) <= line <= (node.end_lineno or 0)]
    if around:
        first = _first(around[-1])
        return Text(code.co_filename, first, "".join(lines[first - 1 : around[-1].end_lineno]))
    block = _parse_block(lines, line) if lines else None  # one unfinished piece must not hide the others
    return None if block is None else Text(code.co_filename, line, "".join(lines[line - 1 : block.end_lineno]))


def references(source: Source, names: Mapping[str, Any]) -> References:
    """What the source refers to; `names` tells modules from other objects."""
    text = _indentable(source.lines)
    early: set[str] = set()
    late: set[str] = set()
    _collect(symtable.symtable(text, source.filename, "exec"), early, late, executed=True)
    node = source.node
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef):
            (early if isinstance(node, ast.ClassDef) else late).update(_read_before_bound(part))
    early.discard(node.name)
    if isinstance(node, Function):
        arguments = node.args
        shaping = _loads(*node.decorator_list, *arguments.defaults, *filter(None, arguments.kw_defaults))
        if source.flags & FUTURE_FLAGS:  # annotations are never evaluated, but something may ask for them
            late |= early - shaping
            early &= shaping
        shaping &= early
    else:
        shaping = set(early)
    late |= _in_strings(node)
    return References(frozenset(early), frozenset(shaping), frozenset(late - early), _submodules(node, names))


def _collect(table: symtable.SymbolTable, early: set[str], late: set[str], *, executed: bool) -> None:
    """`executed`: this scope runs when the definition does: a class body, or a comprehension in one."""
    kind = table.get_type()
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or kind == "module"):
            (early if executed else late).add(symbol.get_name())
        elif symbol.is_declared_global():
            late.add(symbol.get_name())
    for child in table.get_children():
        is_body = child.get_type() != "function" or child.get_name() in _COMPREHENSIONS
        _collect(child, early, late, executed=executed and is_body)


_COMPREHENSIONS = frozenset({"listcomp", "setcomp", "dictcomp", "genexpr"})


def _loads(*nodes: ast.AST, context: type[ast.expr_context] = ast.Load) -> set[str]:
    names = (n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, context)}


def _read_before_bound(node: ast.ClassDef) -> set[str]:
    """A class body may read a global before it binds the same name: `epochs = epochs`.

    The order matters: `@size.setter` means the property above it, not a global `size`.
    """
    read: set[str] = set()
    bound: set[str] = set()
    for statement in node.body:
        parts = statement.decorator_list if isinstance(statement, Definable) else [statement]
        read |= _loads(*parts) - bound
        bound |= _bound_by(statement)
    return read & bound


def _in_strings(node: Definable) -> set[str]:
    """Names in annotations that are written as strings: `def make() -> "Config"`."""
    names: set[str] = set()
    for part in ast.walk(node):
        annotation = getattr(part, "annotation", None) or getattr(part, "returns", None)
        for constant in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                try:
                    names |= _loads(ast.parse(constant.value, mode="eval"))
                except SyntaxError:  # Literal["not a type"]
                    continue
    return names


def _submodules(node: Definable, names: Mapping[str, Any]) -> frozenset[str]:
    found = set()
    for part in ast.walk(node):
        dotted = _dotted(part) if isinstance(part, ast.Attribute) else None
        module = names.get(dotted[0]) if dotted else None
        if dotted is None or not isinstance(module, ModuleType):
            continue
        path = module.__name__
        for attribute in dotted[1:]:
            path = f"{path}.{attribute}"
            if path not in sys.modules:
                break
            found.add(path)
    return frozenset(found)


def _dotted(node: ast.expr) -> list[str] | None:
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    return [node.id, *path] if isinstance(node, ast.Name) else None


def _last_name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.attr if isinstance(called, ast.Attribute) else ""


def _evaluate(decorator: ast.expr, names: Mapping[str, Any]) -> object:
    """What a decorator refers to. Names and attributes only: evaluating more could have effects."""
    dotted = _dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
    found = names.get(dotted[0]) if dotted else None
    for attribute in dotted[1:] if dotted else ():
        try:
            found = getattr(found, attribute)
        except Exception:  # a property may raise anything
            return None
    return found


def _tree(text: str) -> ast.Module:
    """`ast.parse`, once more if the garbage collector has run code that parses too (CPython gh-106905)."""
    try:
        return ast.parse(text)
    except SystemError:
        return ast.parse(text)


@lru_cache(maxsize=64)
def _parse(text: str) -> ast.Module | None:
    try:
        return _tree(text)
    except (SyntaxError, ValueError):
        return None


def _parse_one(lines: str, first_line: int) -> Definable | None:
    text = _indentable(lines)
    tree = _parse(text)
    if tree is None:
        return None
    # Cached trees are shared, so this one is parsed again before its line numbers are changed.
    [node] = _tree(text).body
    ast.increment_lineno(node, first_line - 1 - (text is not lines))
    inner = node.body[0] if isinstance(node, ast.If) else node
    return inner if isinstance(inner, Definable) else None


def _parse_block(lines: list[str], first_line: int) -> Definable | None:
    try:
        block = "".join(inspect.getblock(lines[first_line - 1 :]))
    except Exception:  # the tokenizer meets arbitrary text
        return None
    return _parse_one(block, first_line) if block.strip() else None


def _indentable(lines: str) -> str:
    """Text that compiles although it was written inside an `if` or `with`, with every line as it was."""
    return f"if 1:\n{lines}" if lines[:1] in " \t" else lines


def _source(node: Definable, lines: list[str], filename: str, flags: int) -> Source:
    start = _start(node)
    return Source(node, "".join(lines[start - 1 : node.end_lineno]), filename, start, flags)


def _start(node: Definable) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _first(node: ast.stmt) -> int:
    return _start(node) if isinstance(node, Definable) else node.lineno


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that bind names at the top level, also inside `if`, `try`, `with` and loops."""
    for node in body:
        yield node
        if not isinstance(node, Definable):
            for name in ("body", "orelse", "handlers", "finalbody", "cases"):
                for inner in getattr(node, name, ()):
                    yield from _top_level([inner] if isinstance(inner, ast.stmt) else inner.body)


def _method_codes(cls: type) -> Iterator[CodeType]:
    for value in vars(cls).values():
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        try:
            function = inspect.unwrap(function)
        except ValueError:
            continue
        if isinstance(function, FunctionType) and function.__code__.co_qualname.startswith(f"{cls.__qualname__}."):
            yield function.__code__


def _describes(node: ast.ClassDef, cls: type) -> bool:
    """Whether this text can have made the class: cells keep many generations of one."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found = vars(cls).get(name, _NOTHING)
                if found is _NOTHING and "_member_map_" not in vars(cls) and not node.decorator_list:
                    return False
                if isinstance(value, ast.Constant):
                    found = getattr(found, "_value_", found)  # an enum's member
                    if type(found) is type(value.value) and found != value.value:
                        return False
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                if name not in vars(cls).get("__annotations__", {name: None}):
                    return False
                field = getattr(cls, "__pydantic_fields__", {}).get(name)  # what a model's metaclass took from it
                default = vars(cls).get(name, getattr(field, "default", _NOTHING))
                if isinstance(value, ast.Constant) and type(default) is type(value.value) and default != value.value:
                    return False
    return True


def _has_bases(node: ast.ClassDef, cls: type, names: Mapping[str, Any]) -> bool:
    """Whether the bases in the text mean those of the class, as far as names and attributes tell."""
    if not (node.bases or node.keywords or node.decorator_list) and type(cls) is not type:
        return False
    found = (_evaluate(base, names) for base in node.bases if not isinstance(base, ast.Call))
    return all(base in cls.__mro__ for base in found if isinstance(base, type))


_NOTHING = object()


def _bindings(name: str, module: ModuleType | None) -> Iterator[tuple[ast.stmt, list[str], str, int]]:
    """The statements that bound the global `name`, from the newest cell to the oldest, then the script."""
    shell = _shell()
    numbers = seams.cell_numbers(shell)
    flags: int = getattr(getattr(shell, "compile", None), "flags", 0) & FUTURE_FLAGS
    # A cell has no file, so that its lines are never checked against one: its mtime is None. A cell that
    # ran twice keeps its old place in linecache; IPython knows its latest number.
    cells = [f for f, entry in list(linecache.cache.items()) if len(entry) == 4 and entry[1] is None]
    cells = sorted(cells, key=lambda filename: numbers.get(filename, 0))[::-1]
    script = getattr(module, "__file__", None)
    for filename in [*cells, *([script] if script and script not in cells else [])]:
        lines = linecache.getlines(filename)
        text = "".join(lines)
        tree = _parse(text) if name in text else None
        for node in reversed(list(_top_level(tree.body)) if tree else []):
            if name in _bound_by(node):
                yield node, lines, filename, flags | _future(tree)


def _bound_by(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
        case ast.Assign(targets=targets):
            return _loads(*targets, context=ast.Store)
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target) | ast.For(target=target):
            return _loads(target, context=ast.Store)
        case ast.With(items=items):
            return _loads(*(i.optional_vars for i in items if i.optional_vars), context=ast.Store)
    return set()


def bindings_of(cell: str) -> list[Binding]:
    """What a cell binds at its top level, as far as its text says."""
    shell: Any = _shell()
    try:
        tree = _parse(cell if shell is None else shell.transform_cell(cell))
    except Exception:  # an input transformer of somebody's
        return []
    found: list[Binding] = []
    for node in _top_level(tree.body if tree else []):
        names = _bound_by(node)
        if isinstance(node, ast.Expr | ast.Assign | ast.If | ast.While):
            names |= {each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr)}
        match node:
            case ast.Expr(ast.Call(ast.Attribute(attr=kind), [ast.Constant(name), *_, ast.Constant(text)])):
                if kind in ("run_line_magic", "run_cell_magic") and name in _RUNS_CODE and isinstance(text, str):
                    names |= {each for inner in bindings_of(text) for each in inner.names}
        if names:
            found.append(Binding(_end_of_binding(node), frozenset(names)))
    return found


_RUNS_CODE = frozenset({"time", "capture", "prun"})
"""Magics that run the code after them among the notebook's names."""


def _end_of_binding(node: ast.stmt) -> Position:
    last: ast.AST = node
    match node:
        case ast.For(target=part) | ast.If(test=part) | ast.While(test=part):
            last = part
        case ast.With(items=[*_, ast.withitem(context_expr=part, optional_vars=target)]):
            last = part if target is None else target
    return Position(getattr(last, "end_lineno", None) or 0, getattr(last, "end_col_offset", None) or 0)


def _future(tree: ast.Module | None) -> int:
    imports = (node for node in (tree.body if tree else []) if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports if node.module == "__future__" for alias in node.names}
    return FUTURE_FLAGS if "annotations" in names else 0


def _shell() -> object:
    ipython = sys.modules.get("IPython")  # not imported: no shell
    return None if ipython is None else ipython.get_ipython()
