"""How a task is run: reuse, retries, time limits, caching, secrets. Declared by a user, read by the client.

Names, positional order, defaults and refusals are Flyte's, so that the same source runs on a cluster.
"""

from __future__ import annotations

import hashlib
import logging  # the one thing here that is not pure: Flyte's starvation warning goes to Flyte's own logger
import math
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from .spec import Scaling

logger = logging.getLogger("flyte")

INTERACTIVE_IDLE_TTL_S = 1800.0
INTERACTIVE_SCALEDOWN_TTL_S = 300.0
_MINIMUM_TTL = timedelta(seconds=30)
_SINGLE_USE_TTL_S = 30.0
MAX_FRESH_VARIABLE = "FLYTE_JUPYTER_MAX_FRESH_KERNELS"
MAX_FRESH_KERNELS = 64
"""The most fresh kernels of an environment that run at once where nobody says another number."""


def single_use_scaling(max_replicas: int) -> Scaling:
    """Return what a pool gets that reuses nothing: a replica for each call, at most `max_replicas` at a time."""
    return Scaling(
        min_replicas=0,
        max_replicas=max_replicas,
        concurrency=1,
        idle_ttl=_SINGLE_USE_TTL_S,
        scaledown_ttl=_SINGLE_USE_TTL_S,
    )


class _UnstatedSeconds(int):
    """The default of a ttl: shows as 30 in signatures, yet differs from a 30 that the user wrote."""


class _UnstatedTtl(timedelta):
    """What it becomes: a type, not a flag beside the field, so that copies and `replace` keep it."""

    def __repr__(self) -> str:
        return repr(timedelta(seconds=self.total_seconds()))


_UNSTATED = _UnstatedSeconds(30)


@dataclass
class ReusePolicy:
    """How many warm replicas an environment keeps, and for how long.

    Args:
        replicas: A fixed count, or `(minimum, maximum)` with `maximum >= 1`; afterwards always the pair.
        idle_ttl: How long the **whole** environment may idle before every replica stops, those of the minimum
            included; seconds (int) or `timedelta`, at least 30 s; afterwards always a `timedelta`.
        concurrency: Slots per replica, at least 1; more than 1 needs `async` tasks.
        scaledown_ttl: How long **one** replica above the minimum may idle; as `idle_ttl`; it may exceed it.
        scope: `"global"`, one pool for all runs, or `"run"`, each run its own.

    Raises:
        ValueError: An argument is of another type or out of range, minimum > maximum, or maximum == 0.

    Source: flyte.ReusePolicy, whose names, order and defaults these are. Flyte lets a maximum of 0 pass here,
    and its platform refuses it later.

    Example:
        >>> policy = ReusePolicy(replicas=(1, 4), concurrency=10)
        >>> policy.max_replicas, policy.idle_ttl.total_seconds()
        (4, 30.0)
        >>> policy.scaling().idle_ttl  # nobody stated one, and a person sits in front of it
        1800.0
    """

    replicas: int | tuple[int, int] = 2
    idle_ttl: int | timedelta = _UNSTATED
    concurrency: int = 1
    scaledown_ttl: int | timedelta = _UNSTATED
    scope: Literal["global", "run"] = "global"

    def __post_init__(self) -> None:
        self.replicas = _replica_range(self.replicas)
        self.idle_ttl = _ttl("idle_ttl", self.idle_ttl)
        self.scaledown_ttl = _ttl("scaledown_ttl", self.scaledown_ttl)
        if not isinstance(self.concurrency, int):
            raise ValueError(f"concurrency must be an int, got {self.concurrency!r}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.scope not in ("global", "run"):
            raise ValueError(f'scope must be "global" or "run", got {self.scope!r}')
        if self.max_replicas == 1 and self.concurrency == 1:
            logger.warning(
                "It is recommended to use a minimum of 2 replicas, to avoid starvation. Starvation can occur"
                " if a task is running and no other replicas are available to handle new tasks. Options:"
                " increase concurrency, increase replicas, or turn off reuse for the parent task that runs"
                " child tasks."
            )

    @property
    def min_replicas(self) -> int:
        """The replicas that stay while the environment is in use."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas[0]

    @property
    def max_replicas(self) -> int:
        """The most replicas there ever are."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas[1]

    def get_scaledown_ttl(self) -> timedelta:
        """Return `scaledown_ttl` as a `timedelta`."""
        return _seconds(self.scaledown_ttl)

    def states(self, name: Literal["idle_ttl", "scaledown_ttl"]) -> bool:
        """Return whether the user stated this ttl, so that a view can say which ones are defaults."""
        return not isinstance(getattr(self, name), _UnstatedTtl)

    def scaling(self) -> Scaling:
        """Return what the broker is told: stated times as they are, unstated ones as fits a notebook.

        An unstated `idle_ttl` becomes 1800 s and an unstated `scaledown_ttl` 300 s: Flyte's 30 s suit a
        cluster that many share, and would unload the model while its user reads the result.
        """
        idle = _seconds(self.idle_ttl).total_seconds()
        scaledown = _seconds(self.scaledown_ttl).total_seconds()
        return Scaling(
            min_replicas=int(self.min_replicas),
            max_replicas=int(self.max_replicas),
            concurrency=int(self.concurrency),
            idle_ttl=idle if self.states("idle_ttl") else INTERACTIVE_IDLE_TTL_S,
            scaledown_ttl=scaledown if self.states("scaledown_ttl") else INTERACTIVE_SCALEDOWN_TTL_S,
        )


def _seconds(ttl: int | timedelta) -> timedelta:
    return ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl)


def _replica_range(replicas: Any) -> tuple[int, int]:
    if replicas is None:
        raise ValueError("replicas cannot be None")
    if isinstance(replicas, int):
        replicas = (replicas, replicas)
    if not isinstance(replicas, tuple) or len(replicas) != 2:
        raise ValueError(f"replicas must be an int or a tuple of two ints, got {replicas!r}")
    for name, count in zip(("min", "max"), replicas, strict=True):
        if not isinstance(count, int):
            raise ValueError(f"replicas {name} must be an int, got {count!r}")
        if count < 0:
            raise ValueError(f"replicas {name} must be greater than or equal to 0, got {count}")
    low, high = replicas
    if low > high:
        raise ValueError(f"replicas min ({low}) must be less than or equal to max ({high})")
    if high == 0:
        raise ValueError(
            f"replicas max must be at least 1, got {high}: the platform demands at least 1 replica."
            " To reuse nothing, leave `reusable` out; to start nothing before the first call, use"
            " replicas=(0, n)"
        )
    return low, high


def _ttl(name: str, ttl: Any) -> timedelta:
    if isinstance(ttl, _UnstatedSeconds):
        return _UnstatedTtl(seconds=int(ttl))
    if isinstance(ttl, int):
        ttl = timedelta(seconds=int(ttl))
    if not isinstance(ttl, timedelta):
        raise ValueError(f"{name} must be an int (seconds) or a timedelta, got {ttl!r}")
    if ttl < _MINIMUM_TTL:
        raise ValueError(f"{name} must be at least 30 seconds, got {ttl.total_seconds():g} s")
    return ttl


@dataclass(frozen=True)
class Backoff:
    """How long to wait before each retry.

    Args:
        base: The wait before the first retry, not negative.
        factor: Each wait is this many times the one before; finite, at least 1.0.
        cap: The longest wait, not negative; required when `factor > 1`.

    Raises:
        ValueError: One of them is out of range.
        TypeError: `base` or `cap` is not a `timedelta`.

    Source: flyte.Backoff.

    Example:
        >>> backoff = Backoff(timedelta(seconds=1), factor=2, cap=timedelta(seconds=3))
        >>> [backoff.compute_delay(n).total_seconds() for n in range(3)]
        [1.0, 2.0, 3.0]
    """

    base: timedelta
    factor: float = 1.0
    cap: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("base", "cap"):
            value = getattr(self, name)
            if value is None and name == "cap":
                continue
            if not isinstance(value, timedelta):
                raise TypeError(f"Backoff.{name} must be a timedelta, got {value!r}")
            if value < timedelta(0):
                raise ValueError(f"Backoff.{name} must be >= 0, got {value}")
        if not isinstance(self.factor, (int, float)) or not math.isfinite(self.factor):
            raise ValueError(f"Backoff.factor must be a finite number, got {self.factor!r}")
        if self.factor < 1.0:
            raise ValueError(f"Backoff.factor must be >= 1.0, got {self.factor}")
        if self.factor > 1.0 and self.cap is None:
            raise ValueError("Backoff.cap is required when factor > 1.0 to prevent unbounded growth")

    def compute_delay(self, n: int) -> timedelta:
        """Return the wait before retry `n`, counted from 0: `base * factor**n`, never above `cap`.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"Retry index n must be >= 0, got {n}")
        try:
            delay = self.base * (self.factor**n)
        except OverflowError:
            # Only a factor above 1 overflows, and that one has a cap.
            return self.cap if self.cap is not None else self.base
        return delay if self.cap is None else min(delay, self.cap)


@dataclass
class RetryStrategy:
    """How often a failed task is run again.

    Args:
        count: Attempts beyond the first, at least 0.
        backoff: The waits between them; None retries at once.

    Raises:
        ValueError: `count` is not an int, or negative.

    Source: flyte.RetryStrategy.
    """

    count: int
    backoff: Backoff | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, int):
            raise ValueError(f"RetryStrategy.count must be an int (a retry count), got {self.count!r}")
        if self.count < 0:
            raise ValueError(f"RetryStrategy.count must be greater than or equal to 0, got {self.count}")

    def delay(self, n: int) -> float:
        """Return the seconds to wait before retry `n`, counted from 0; 0.0 without a backoff."""
        return 0.0 if self.backoff is None else self.backoff.compute_delay(n).total_seconds()


def retries_from_request(retries: Any) -> RetryStrategy:
    """Return the RetryStrategy for what a user wrote: an int, at least 0, or a RetryStrategy.

    Raises:
        ValueError: It is something else, or negative.
    """
    if isinstance(retries, RetryStrategy):
        return retries
    if not isinstance(retries, int):
        raise ValueError(f"retries must be an int (a retry count) or a flyte.RetryStrategy, got {retries!r}")
    return RetryStrategy(count=retries)


@dataclass
class Timeout:
    """How long a task may take. Each is seconds (int) or a `timedelta`; 0 or None is no limit.

    Args:
        max_runtime: One attempt, from its start in a slot.
        max_queued_time: One attempt's wait for a slot.
        deadline: All attempts together, from the first queueing; beats `retries`.

    Raises:
        ValueError: One of them is negative or of another type. Flyte finds that out on its platform only.

    Source: flyte.Timeout.
    """

    max_runtime: timedelta | int | None = None
    max_queued_time: timedelta | int | None = None
    deadline: timedelta | int | None = None

    def __post_init__(self) -> None:
        for name in ("max_runtime", "max_queued_time", "deadline"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, timedelta)):
                raise ValueError(f"Timeout.{name} must be an int (seconds), a timedelta or None, got {value!r}")
            if value is not None and _seconds(value) < timedelta(0):
                raise ValueError(f"Timeout.{name} must be greater than or equal to 0, got {value}")

    def seconds(self, name: Literal["max_runtime", "max_queued_time", "deadline"]) -> float | None:
        """Return one limit in seconds, None where there is none (also for 0)."""
        value: timedelta | int | None = getattr(self, name)
        return _seconds(value).total_seconds() or None if value is not None else None


def timeout_from_request(timeout: Any) -> Timeout:
    """Return the Timeout for what a user wrote: a Timeout, or seconds or a `timedelta` of `max_runtime`.

    Raises:
        ValueError: It is something else, or negative.

    Source: flyte's function of that name.
    """
    if isinstance(timeout, Timeout):
        return timeout
    if isinstance(timeout, timedelta):
        return Timeout(max_runtime=timeout)
    if isinstance(timeout, int):
        return Timeout(max_runtime=timedelta(seconds=timeout))
    raise ValueError(f"Timeout must be an instance of Timeout, int, or timedelta, got {timeout!r}")


CACHE_BEHAVIORS = ("auto", "override", "disable")
CACHE_ALIASES = {
    "enable": "auto",
    "enabled": "auto",
    "on": "auto",
    "true": "auto",
    "yes": "auto",
    "off": "disable",
    "false": "disable",
    "no": "disable",
    "none": "disable",
}


@dataclass
class Cache:
    """Whether a task's result may be taken from an earlier call with the same arguments.

    Args:
        behavior: `"auto"` reads and writes, `"override"` always runs and writes, `"disable"` does neither.
            Also accepted, in any case: enable, enabled, on, true, yes; off, false, no, none.
        version_override: The version to use instead of a digest of the task's source.
        serialize: Equal calls at the same time wait for the first instead of all running.
        ignored_inputs: Names of parameters that do not matter.
        salt: Text that goes into the version.
        policies: What else goes into the version; kept for the cluster.
        max_age: An older result is not used: seconds or a `timedelta`, at least 0.

    Raises:
        ValueError: The behavior is unknown, or `max_age` negative.
        TypeError: `max_age` is of another type.

    Source: flyte.Cache.
    """

    behavior: str
    version_override: str | None = None
    serialize: bool = False
    ignored_inputs: tuple[str, ...] | str = ()
    salt: str = ""
    policies: Any = None
    max_age: timedelta | int | None = None

    def __post_init__(self) -> None:
        asked = self.behavior
        known = asked.lower() if isinstance(asked, str) else asked
        known = CACHE_ALIASES.get(known, known) if isinstance(known, str) else known
        if known not in CACHE_BEHAVIORS:
            raise ValueError(
                f"Invalid cache behavior: {asked!r}. Must be one of {list(CACHE_BEHAVIORS)}"
                f" (aliases accepted: {sorted(CACHE_ALIASES)})."
            )
        self.behavior = known
        if isinstance(self.ignored_inputs, str):
            self.ignored_inputs = (self.ignored_inputs,)
        if isinstance(self.max_age, int):
            self.max_age = timedelta(seconds=self.max_age)
        if self.max_age is not None and not isinstance(self.max_age, timedelta):
            raise TypeError(f"max_age must be an int (seconds), timedelta, or None, got {self.max_age!r}")
        if self.max_age is not None and self.max_age < timedelta(0):
            raise ValueError(f"max_age must be nonnegative, got {self.max_age}")

    def is_enabled(self) -> bool:
        """Return whether results are kept at all."""
        return self.behavior != "disable"

    def get_ignored_inputs(self) -> tuple[str, ...]:
        """Return the names of the parameters that do not matter."""
        ignored = self.ignored_inputs
        return (ignored,) if isinstance(ignored, str) else tuple(ignored)

    def get_version(self, source: str = "") -> str:
        """Return the version of a task whose code is `source`: equal versions may share results."""
        return self.version_override or hashlib.sha256(f"{self.salt}\0{source}".encode()).hexdigest()


CacheRequest = str | Cache


def cache_from_request(cache: Any) -> Cache:
    """Return the Cache for what a user wrote: a Cache, or the text of a behavior.

    Raises:
        ValueError: It is something else.
    """
    return cache if isinstance(cache, Cache) else Cache(behavior=cache)


_ENV_VAR = re.compile(r"[A-Z_][A-Z0-9_]*")
_SECRET_MOUNT = PurePosixPath("/etc/flyte/secrets")


@dataclass
class Secret:
    """A secret, by name only: here, the environment variable `as_env_var` is copied from this machine.

    Args:
        key: Its name.
        group: What it belongs to.
        mount: Where a cluster puts it as a file: only `/etc/flyte/secrets`.
        as_env_var: The variable a task finds it in: upper-case letters, digits and `_`. By default the group
            and key in upper case, with `-` as `_`; none if there is a mount.

    Raises:
        ValueError: The variable's name or the mount is not allowed.

    Source: flyte.Secret.

    Example:
        >>> Secret("api-key", group="openai").as_env_var
        'OPENAI_API_KEY'
    """

    key: str
    group: str | None = None
    mount: Path | None = None
    as_env_var: str | None = None

    def __post_init__(self) -> None:
        if self.mount is not None and PurePosixPath(self.mount) != _SECRET_MOUNT:
            raise ValueError(f"Only {_SECRET_MOUNT} is supported as secret mount path today.")
        if self.as_env_var is None and self.mount is None:
            parts = [part for part in (self.group, self.key) if part is not None]
            self.as_env_var = "_".join(parts).replace("-", "_").upper()
        if self.as_env_var is not None and not _ENV_VAR.fullmatch(self.as_env_var):
            raise ValueError(f"Invalid environment variable name: {self.as_env_var}, must match ^{_ENV_VAR.pattern}$")

    def __hash__(self) -> int:
        return hash((self.key, self.group, self.mount, self.as_env_var))

    def stable_hash(self) -> str:
        """Return a digest of the declaration that is the same in every process."""
        facts = (self.key, self.group, str(self.mount) if self.mount else None, self.as_env_var)
        return hashlib.sha256(repr(facts).encode()).hexdigest()


SecretRequest = str | Secret | list[str] | list[Secret] | list[str | Secret]  # list is invariant


def secret_names(secrets: SecretRequest | None) -> tuple[str, ...]:
    """Return the environment variables that a secret request names, sorted, each once.

    A secret that is only mounted has none, so nothing of it reaches a local replica.

    Raises:
        ValueError: A name cannot be an environment variable.
        TypeError: An element is neither str nor Secret.
    """
    if secrets is None:
        return ()
    names: set[str] = set()
    for secret in secrets if isinstance(secrets, (list, tuple)) else [secrets]:
        if isinstance(secret, str):
            secret = Secret(key=secret)  # noqa: PLW2901
        if not isinstance(secret, Secret):
            raise TypeError(f"Expected secrets to be of type str or Secret, got {type(secret)}")
        if secret.as_env_var is not None:
            names.add(secret.as_env_var)
    return tuple(sorted(names))
