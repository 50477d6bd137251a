"""Checks of what a user writes: notebooks are not type-checked, so what arrives is anything."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

logger = logging.getLogger("flyte")

# Spelled so in places of Flyte's own documentation; too far from `reusable` for a similarity search.
_KNOWN_TYPOS = {"reuse_policy": "reusable", "reuse": "reusable", "policy": "reusable"}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = [_KNOWN_TYPOS[name]] if name in _KNOWN_TYPOS else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}=?" if close else ""


def expect(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, types):
        raise TypeError(f"Expected {name} to be of type {expected}, got {type(value)}")


def check_env_vars(env_vars: object) -> None:
    if env_vars is None:
        return
    if not isinstance(env_vars, dict):
        raise TypeError(f"Expected env_vars to be of type Dict[str, str], got {type(env_vars)}")
    for name, value in env_vars.items():
        if not isinstance(value, str):
            logger.warning("env_vars[%r] is of type %s; its str() is used.", name, type(value).__name__)


def check_pod_template(pod_template: object) -> None:
    # By name: Flyte's own class is accepted without importing it.
    if pod_template is not None and not (isinstance(pod_template, str) or type(pod_template).__name__ == "PodTemplate"):
        raise TypeError(f"Expected pod_template to be of type str or PodTemplate, got {type(pod_template)}")
