"""Times, sizes and other people's texts as every view writes them; `arguments` reads what people write."""

from __future__ import annotations

import unicodedata
from typing import Final

_HIDDEN: Final = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str, *, keep: str = "") -> str:
    """Show what would steer a terminal or turn text around: control characters and bidi overrides as escapes.

    Args:
        text: Anything.
        keep: Characters that stay as they are, such as line ends in a log.

    Example:
        >>> visible("a\\x1b[2Jb\\u202ec")
        'a\\\\x1b[2Jb\\\\u202ec'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN and character not in keep
        else character
        for character in text
    )


def countdown(seconds: float) -> str:
    """A time that runs, as a clock shows it.

    Example:
        >>> countdown(7), countdown(1780.2), countdown(7200)
        ('0:07', '29:40', '2:00:00')
    """
    left = max(0, int(seconds))
    hours, rest = divmod(left, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def duration(seconds: float) -> str:
    """A time that stands still, roughly.

    Example:
        >>> duration(12), duration(1800), duration(5400), duration(86400 * 3)
        ('12s', '30m', '1h30m', '3d')
    """
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m" + (f"{left % 60}s" if left < 600 and left % 60 else "")
    if left < 86400:
        return f"{left // 3600}h" + (f"{left % 3600 // 60}m" if left % 3600 >= 60 else "")
    return f"{left // 86400}d"


def roughly(seconds: float) -> str:
    """An estimate, for people.

    Example:
        >>> roughly(0.3), roughly(42), roughly(130), roughly(9000)
        ('1 s', '42 s', '2 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def measured(seconds: float) -> str:
    """A time that was measured, however short.

    Example:
        >>> measured(0.012), measured(3.21), measured(90)
        ('12 ms', '3.2 s', '1m30s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def last_line(traceback: str) -> str:
    """The line that says what happened, the last one.

    Example:
        >>> last_line("Traceback:\\n  ...\\nValueError: no"), last_line("")
        ('ValueError: no', 'unknown')
    """
    text = traceback.strip()
    return text.splitlines()[-1] if text else "unknown"


def size(count: int) -> str:
    """Bytes, as people say them.

    Example:
        >>> size(50_000_000), size(24 * 2**30), size(9000)
        ('48 MiB', '24.0 GiB', '9 KiB')
    """
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
