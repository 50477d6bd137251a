"""How many fresh kernels of an environment may run at once, as the user has set it."""

from __future__ import annotations

import os

from ..core.policy import MAX_FRESH_KERNELS, MAX_FRESH_VARIABLE, single_use_scaling
from ..core.spec import Scaling


def fresh_scaling() -> Scaling:
    """Return the scaling of a pool that gives each call a kernel of its own.

    Raises:
        ValueError: The environment variable is set to something else than a number, at least 1.
    """
    stated = os.environ.get(MAX_FRESH_VARIABLE) or str(MAX_FRESH_KERNELS)
    if not (stated.isdecimal() and int(stated)):
        raise ValueError(f"{MAX_FRESH_VARIABLE} must be a whole number, at least 1, got {stated!r}")
    return single_use_scaling(int(stated))
