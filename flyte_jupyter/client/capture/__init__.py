"""What a task takes along from its notebook. `captured` finds it, `values` pickles it, `watch` notices changes."""

from .captured import Captured
from .scope import Scope

__all__ = ["Captured", "Scope"]
