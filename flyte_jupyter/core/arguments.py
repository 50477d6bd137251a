"""What people write on a command line or after a magic, as values: durations, counts, sizes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable


def parse_duration(value: str) -> float:
    """Seconds in "90", "45s", "30m", "2h", "1h30m" or "1d".

    Example:
        >>> parse_duration("1h30m")
        5400.0
    """
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a duration; write 30m, 2h or 1h30m")
    return math.fsum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", value))


def parse_replicas(value: str) -> tuple[int, int]:
    """A minimum and a maximum in "2" or "1:4".

    Example:
        >>> parse_replicas("1:4"), parse_replicas("2")
        ((1, 4), (2, 2))
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", value)
    if match is None:
        raise argparse.ArgumentTypeError(f"{value!r} is not MIN:MAX; write 2 or 1:4")
    lowest, highest = int(match[1]), int(match[2] or match[1])
    if highest < max(lowest, 1):
        raise argparse.ArgumentTypeError(f"{value!r}: the maximum must be at least 1 and at least the minimum")
    return lowest, highest


def parse_replica(value: str) -> tuple[str, int | None]:
    """A pool and the number of one of its replicas in "gpu" or "gpu[1]".

    Example:
        >>> parse_replica("gpu[1]"), parse_replica("gpu")
        (('gpu', 1), ('gpu', None))
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)\])?", value.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME or NAME[1]")
    return match[1], None if match[2] is None else int(match[2])


def parse_count(least: int) -> Callable[[str], int]:
    """What parses a whole number of at least `least`."""

    def count(value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least {least}")
        return int(value)

    return count


def parse_size(value: str) -> int:
    """Bytes in "2MiB", "500KB", "1G" or "4096".

    Example:
        >>> parse_size("2MiB"), parse_size("500 KB")
        (2097152, 500000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", value.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{value!r} is not a size; write 2MiB or 500KB")
    power = " KMG".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
