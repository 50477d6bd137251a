"""Container images, recorded and never built: replicas run in this machine's Python.

A cluster needs the record; here it only has to be accepted, shown and carried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = tuple[str, tuple[Any, ...], dict[str, Any]]


def _records(name: str) -> bool:
    # Not every name: pickle, copy and IPython ask objects for methods that must be seen to be missing.
    return name.startswith("with_") or name == "clone"


class _Recorder(type):
    def __getattr__(cls, name: str) -> Callable[..., Image]:
        if not name.startswith("from_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")

        def start(*args: Any, **kwargs: Any) -> Image:
            return Image(((name, args, kwargs),))

        return start


@dataclass(frozen=True, eq=False, repr=False)
class Image(metaclass=_Recorder):
    """What a container should contain: any chain of Flyte's `from_...` and `with_...` calls.

    Nothing is built or checked here. `record` holds the calls, in order, as (name, args, kwargs).

    Source: flyte.Image.

    Example:
        >>> image = Image.from_debian_base().with_pip_packages("torch", pre=True)
        >>> image
        Image.from_debian_base().with_pip_packages('torch', pre=True)
        >>> image.record[1]
        ('with_pip_packages', ('torch',), {'pre': True})
    """

    record: tuple[Step, ...] = ()

    def __getattr__(self, name: str) -> Callable[..., Image]:
        if not _records(name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def add(*args: Any, **kwargs: Any) -> Image:
            return Image((*self.record, (name, args, kwargs)))

        return add

    def replay(self, target: Any) -> Any:
        """Return what the same calls make of `target`, usually the real `flyte.Image`."""
        for name, args, kwargs in self.record:
            target = getattr(target, name)(*args, **kwargs)
        return target

    def __eq__(self, other: object) -> bool:
        return self.record == other.record if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        # The names alone: arguments may be lists or dictionaries.
        return hash(tuple(name for name, _, _ in self.record))

    def __repr__(self) -> str:
        calls = (
            f"{name}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in kwargs.items())])})"
            for name, args, kwargs in self.record
        )
        return ".".join(["Image", *calls]) if self.record else "Image()"
