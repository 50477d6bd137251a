"""A call's arguments and its outcome as bytes and out-of-band buffers; an exception is `failure`'s part.

Both sides use plain pickle protocol 5 where it will do, which is a microsecond, and cloudpickle where it will
not. `__main__` is the notebook's module on both sides, so what a notebook defines goes by its name.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import io
import operator
import pickle
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

from .definitions import ORIGIN
from .frames import LIMIT_BUFFERS, Buffer

OUT_OF_BAND_BYTES: Final = 64 * 1024
"""A buffer of at least this size travels beside the pickle; below it a copy is cheaper than another piece."""
SHORTEST_NAME: Final = 20
"""Bytes of the shortest pickle in which anything goes by its name."""
MAX_DEPTH: Final = 20
"""How far `find_unpicklable` goes down; a list nested a thousand times fails at no part in particular."""

Find = Callable[[str, str], Any]
"""`find_class` of an unpickler: module, name -> object."""


@dataclass(slots=True)
class Pickled:
    data: bytes
    buffers: list[Buffer]
    names: frozenset[str] = frozenset()
    """Notebook names inside that the other side must know before it can load this."""


def dump_arguments(arguments: object) -> Pickled:
    """What a client sends. Classes, functions and tasks of the notebook go by name, and are listed in `names`.

    Raises:
        Exception: Whatever the pickling of an object raises; the caller knows which argument it was.
    """
    keep = _BufferSink()
    try:
        data = _dumps(arguments, keep)
    except Exception:  # a lambda, a local class, a thing that only cloudpickle knows
        pass
    else:
        # `__mp_main__` is the notebook, too.
        if len(data) < SHORTEST_NAME or (b"main__" not in data and _BARE_OBJECT not in data):
            return Pickled(data, keep.views)
    return _dump_by_name(arguments)


def dump_result(value: object) -> Pickled:
    """What a replica sends back."""
    keep = _BufferSink()
    try:
        data = _dumps(value, keep)
    except Exception:
        pass
    else:
        if len(data) < SHORTEST_NAME or (_BARE_OBJECT not in data and b"__mp_main__" not in data):
            return Pickled(data, keep.views)
    return _dump_by_name(value)


def _dump_by_name(value: object) -> Pickled:
    keep = _BufferSink()
    file = io.BytesIO()
    pickler = notebook_pickler()(file, protocol=5, buffer_callback=keep)
    pickler.dump(value)
    return Pickled(file.getvalue(), keep.views, frozenset(pickler.names))


def load(data: Buffer, buffers: Sequence[Buffer]) -> Any:
    """The object again."""
    return pickle.loads(data, buffers=buffers)


def follow(names: Mapping[str, Any], path: str) -> object:
    """The object at a dotted path ("Outer.Inner"), or None."""
    root, *rest = path.split(".")
    found = names.get(root)
    for name in rest:  # "<locals>" is nobody's attribute
        found = getattr(found, name, None)
    return found


def named(path: str) -> Any:
    """What the notebook calls `path` ("Config", "Outer.Inner"): a pickle's reference to it.

    Raises: AttributeError if there is no such name.
    """
    return operator.attrgetter(path)(sys.modules["__main__"])


def _dumps(value: object, keep: _BufferSink) -> bytes:
    torch = sys.modules.get("torch")
    if torch is None:
        return pickle.dumps(value, 5, buffer_callback=keep)
    tensor = getattr(torch, "Tensor", None)  # None while another thread imports it
    if tensor is None or tensor in copyreg.dispatch_table:
        return pickle.dumps(value, 5, buffer_callback=keep)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=keep)
    pickler.dispatch_table = {**copyreg.dispatch_table, tensor: reduce_tensor}
    pickler.dump(value)
    return file.getvalue()


def is_tensor(kind: type) -> bool:
    """Whether it is torch's own class of tensors."""
    return kind is getattr(sys.modules.get("torch"), "Tensor", None)


def reduce_tensor(tensor: Any) -> Any:
    """A plain tensor in main memory as a buffer: torch itself copies its bytes into the pickle, more than once."""
    torch = sys.modules["torch"]
    plain = (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.numel()
        and tensor.grad_fn is None
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.__dict__
        and not tensor._backward_hooks
    )
    if plain:
        try:
            content = tensor.detach().reshape(-1).view(torch.uint8).numpy()
        except (RuntimeError, TypeError):  # no numpy; a dtype that has no bytes
            return tensor.__reduce_ex__(5)
        return _rebuild_tensor, (pickle.PickleBuffer(content), tensor.dtype, tuple(tensor.shape), tensor.requires_grad)
    return tensor.__reduce_ex__(5)


def _rebuild_tensor(content: Buffer, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    torch: Any = importlib.import_module("torch")
    tensor = torch.frombuffer(content, dtype=torch.uint8).view(dtype).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor


class _BufferSink:
    """A pickler's `buffer_callback`: keeps large buffers out of the pickle. A true return value means in band."""

    __slots__ = ("views",)

    def __init__(self) -> None:
        self.views: list[Buffer] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND_BYTES or len(self.views) >= LIMIT_BUFFERS - 1:
            return True
        self.views.append(view)
        return False


class Finder(pickle.Unpickler):
    """An unpickler that asks `find` for what goes by name."""

    def __init__(self, pickled: bytes, find: Find) -> None:
        super().__init__(io.BytesIO(pickled))
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)


@functools.cache
def notebook_pickler() -> Any:
    """cloudpickle's pickler, except that what the notebook defines goes by name, and tensors as buffers.

    Made late: the import is slow.
    """
    import cloudpickle

    class NotebookPickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO, **kwargs: Any) -> None:
            super().__init__(file, **kwargs)
            self.names: set[str] = set()
            self._names: dict[str, Any] = vars(sys.modules["__main__"])

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if is_tensor(kind):
                return reduce_tensor(obj)
            if isinstance(obj, _BY_REFERENCE) or kind is object or hasattr(kind, "__flyte_capture__"):
                path = self._path(obj)
                if path is not None:
                    self.names.add(path.partition(".")[0])
                    return named, (path,)
            if (place := stream(obj)) is not None:
                return getattr, (sys.modules[place[0]], place[1])
            if isinstance(obj, enum.Enum) and kind._member_map_.get(obj._name_) is obj and _is_found_by_value(kind):
                return getattr, (kind, obj._name_)
            return super().reducer_override(obj)

        def _path(self, obj: Any) -> str | None:
            if type(obj) is object:
                return next(filter(functools.partial(self._is_of_caller, obj), self._found(obj)), None)
            if obj.__module__ != "__main__":
                return None
            main = sys.modules["__main__"]
            path: str = getattr(obj, "__qualname__", None) or obj.__name__
            if _attribute(main, path) is obj:
                return path
            return next((name for name in self._found(obj) if _attribute(main, name) is obj), None)

        def _found(self, obj: Any) -> Iterator[str]:
            return (name for name, value in list(self._names.items()) if value is obj and _is_own(name))

        def _is_of_caller(self, obj: Any, name: str) -> bool:
            """Whether the caller has it, too: on a replica the preload may have made it."""
            origin = self._names.get(ORIGIN)
            received = None if origin is None else origin.received(name, obj)
            return origin is None or (received is not None and received[0].epoch != "")

    return NotebookPickler


def _attribute(main: Any, path: str) -> object:
    """What the notebook calls so now, on a replica, too; None if it has no such name."""
    try:
        return operator.attrgetter(path)(main)
    except AttributeError:
        return None


VARIABLES: Final = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.NewType)
"""Types of what code refers to by identity, as it does to a class."""
_BY_REFERENCE: Final = (FunctionType, type, type(functools.lru_cache(len)), *VARIABLES)
_BARE_OBJECT: Final = b"\x8c\x06object\x94\x93"
"""Stands in the pickle of `object()`: what code compares by identity, and may have by name."""


def _is_own(name: str) -> bool:
    """Whether the name is the user's: IPython's are `_`, `_1`, `_i` and the like."""
    return name[:1] != "_" or name.isupper()


def _is_found_by_value(kind: type[enum.Enum]) -> bool:
    """Whether Python would look for a member by its value, which may be equal to nothing but itself."""
    return kind.__reduce_ex__ is enum.Enum.__reduce_ex__


def stream(obj: object) -> tuple[str, str] | None:
    """Where the object is found if it is a standard stream, as whatever stands for one, too."""
    if obj is sys.stdout:
        return "sys", "stdout"
    return ("sys", "stderr") if obj is sys.stderr else None


def find_unpicklable(value: object, path: str) -> tuple[str, object]:
    """The innermost part of `value` that cannot be pickled, and where it is: `result["a"][0]`."""
    seen: set[int] = set()  # it may contain itself
    while id(value) not in seen and len(seen) < MAX_DEPTH:
        seen.add(id(value))
        for step, part in _parts(value):
            if id(part) in seen:
                continue
            try:
                dump_result(part)
            except Exception:
                path, value = path + step, part
                break
    return path, value


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items())[:1000])
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value[:1000]))
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type | FunctionType):
        yield from ((f".{name}", part) for name, part in list(vars(value).items())[:1000])


def plain_find(module: str, name: str) -> Any:
    """`find_class` without translation; `name` may be dotted."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))
