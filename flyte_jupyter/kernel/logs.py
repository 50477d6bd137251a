"""Log records that say whose they are: those made inside a task carry its `run_name` and `action_name`."""

from __future__ import annotations

import logging
from typing import Any, Final

from ..core.context import current

_plain: Final = logging.getLogRecordFactory()


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _plain(*args, **kwargs)
    task = current.get()
    record.run_name = None if task is None else task.action.run_name
    record.action_name = None if task is None else task.action.name
    return record


def install() -> None:
    """Once per replica, before any user code. Both fields are None outside a task.

    Source: flyte's own log records.
    """
    logging.setLogRecordFactory(_record)
