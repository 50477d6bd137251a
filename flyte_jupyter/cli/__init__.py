"""`flyte-jupyter`: what runs, and the verbs for it, from a terminal.

Exit codes: 0 done (also when there was nothing to do), 1 it did not work, 2 the command line names something
that does not exist, 130 interrupted. Everything printed goes through `text.visible`.
"""

from .commands import main

__all__ = ["main"]
