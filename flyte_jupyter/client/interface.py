"""A task's inputs and outputs, from its annotations."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from types import NoneType
from typing import Any


@dataclass(frozen=True)
class NativeInterface:
    """A task's inputs and outputs as Python types.

    `inputs` is (type, default) by name, with `inspect.Parameter.empty` for what is missing; `outputs` is the
    type by name: `o0`, `o1` for a tuple or a tuple of types, the field names for a NamedTuple, nothing for None.
    """

    inputs: dict[str, tuple[Any, Any]]
    outputs: dict[str, Any]

    def required_inputs(self) -> list[str]:
        """Return the names of the inputs without a default."""
        return [name for name, (_, default) in self.inputs.items() if default is inspect.Parameter.empty]

    def num_required_inputs(self) -> int:
        """Return how many inputs have no default."""
        return len(self.required_inputs())

    def has_outputs(self) -> bool:
        """Return whether the task returns something other than None."""
        return bool(self.outputs)

    def get_input_types(self) -> dict[str, Any]:
        """Return the type of each input by name."""
        return {name: annotation for name, (annotation, _) in self.inputs.items()}


def outputs(annotation: Any) -> dict[str, Any]:
    if annotation in (inspect.Parameter.empty, None, NoneType):
        return {}
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return dict(typing.get_type_hints(annotation))
    if typing.get_origin(annotation) is tuple:
        types = typing.get_args(annotation)
        if Ellipsis in types:
            raise TypeError("Variable length tuples are not supported as return types.")
        return {f"o{position}": each for position, each in enumerate(types)}
    if isinstance(annotation, tuple):
        if len(annotation) == 1:  # Flyte's words
            raise TypeError("Please don't use a tuple if you're just returning one thing.")
        return {f"o{position}": each for position, each in enumerate(annotation)}
    return {"o0": annotation}
