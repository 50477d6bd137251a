"""What a policy accepts and refuses: the tables 1.1 and 1.6 of Flyte's semantics, row by row."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flyte_jupyter.core.policy import (
    Backoff,
    Cache,
    RetryStrategy,
    ReusePolicy,
    Secret,
    Timeout,
    cache_from_request,
    retries_from_request,
    secret_names,
    timeout_from_request,
)

SECOND = timedelta(seconds=1)
ACCEPTED_POLICIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"replicas": (2, 2), "idle_ttl": 30 * SECOND, "concurrency": 1, "scaledown_ttl": 30 * SECOND}),
    ({"replicas": 3}, {"replicas": (3, 3)}),
    ({"replicas": (0, 3)}, {"replicas": (0, 3)}),
    ({"replicas": True, "concurrency": 2}, {"replicas": (1, 1)}),
    ({"replicas": 10**6}, {"replicas": (10**6, 10**6)}),
    ({"idle_ttl": 30}, {"idle_ttl": 30 * SECOND}),
    ({"idle_ttl": timedelta(minutes=2)}, {"idle_ttl": 120 * SECOND}),
    ({"scaledown_ttl": 60, "idle_ttl": 30}, {"scaledown_ttl": 60 * SECOND}),
    ({"concurrency": True}, {"concurrency": 1}),
    ({"scope": "run"}, {"scope": "run"}),
]
REFUSED_POLICIES: list[tuple[dict[str, Any], str]] = [
    ({"replicas": None}, "cannot be None"),
    *(({"replicas": value}, "must be an int or a tuple of two ints") for value in (1.0, "2", [1, 2], (1,), (1, 2, 3))),
    ({"replicas": (1.0, 2)}, "replicas min must be an int"),
    ({"replicas": (1, "2")}, "replicas max must be an int"),
    ({"replicas": -1}, "greater than or equal to 0"),
    ({"replicas": (-1, 2)}, "greater than or equal to 0"),
    ({"replicas": (3, 1)}, "must be less than or equal to max"),
    *(
        ({name: value}, f"{name} must be an int .seconds. or a timedelta")
        for name in ("idle_ttl", "scaledown_ttl")
        for value in (30.0, "30", None)
    ),
    *(
        ({name: value}, f"{name} must be at least 30 seconds")
        for name in ("idle_ttl", "scaledown_ttl")
        for value in (29, 0, -1, True, timedelta(seconds=29.999))
    ),
    *(({"concurrency": value}, "concurrency must be an int") for value in (1.0, "2", None)),
    *(({"concurrency": value}, "at least 1") for value in (0, -2)),
    *(({"scope": value}, 'scope must be "global" or "run"') for value in (None, "", "GLOBAL", 1)),
]


@pytest.mark.parametrize(("given", "becomes"), ACCEPTED_POLICIES)
def test_a_policy_accepts(given: dict[str, Any], becomes: dict[str, Any]) -> None:
    policy = ReusePolicy(**given)
    assert {name: getattr(policy, name) for name in becomes} == becomes


@pytest.mark.parametrize(("given", "phrase"), REFUSED_POLICIES)
def test_a_policy_refuses(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        ReusePolicy(**given)


@pytest.mark.parametrize("replicas", [0, (0, 0), False])
def test_a_policy_without_any_replica_is_refused_as_the_platform_would(replicas: Any) -> None:
    with pytest.raises(ValueError, match="platform demands at least 1"):
        ReusePolicy(replicas)


def test_flyte_accepts_and_refuses_the_same_policies() -> None:
    flyte = pytest.importorskip("flyte")
    for given, becomes in ACCEPTED_POLICIES:
        theirs = flyte.ReusePolicy(**given)
        assert {name: getattr(theirs, name) for name in becomes} == becomes
        assert repr(theirs) == repr(ReusePolicy(**given))
    for given, phrase in REFUSED_POLICIES:
        with pytest.raises(ValueError, match=phrase):
            flyte.ReusePolicy(**given)
    ours, theirs = inspect.signature(ReusePolicy), inspect.signature(flyte.ReusePolicy)
    assert {name: each.default for name, each in ours.parameters.items()} == {
        name: each.default for name, each in theirs.parameters.items()
    }


def test_a_policy_takes_positional_arguments_is_equal_by_value_and_unhashable() -> None:
    assert ReusePolicy((1, 2), 40, 3, 50, "run") == ReusePolicy(
        replicas=(1, 2), idle_ttl=40, concurrency=3, scaledown_ttl=50, scope="run"
    )
    assert ReusePolicy() == ReusePolicy((2, 2), 30, 1, 30)
    assert repr(ReusePolicy()) == repr(ReusePolicy(2, 30))
    with pytest.raises(TypeError):
        hash(ReusePolicy())


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({"replicas": 1}, True),
        ({"replicas": (0, 1)}, True),
        ({"replicas": (0, 3)}, False),
        ({"replicas": 1, "concurrency": 2}, False),
        ({}, False),
    ],
)
def test_starvation_is_warned_of_exactly_when_there_is_one_slot(
    given: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        ReusePolicy(**given)
    found = [record for record in caplog.records if "minimum of 2 replicas" in record.getMessage()]
    assert len(found) == (2 if warns else 0)
    assert all((record.name, record.levelno) == ("flyte", logging.WARNING) for record in found)


def test_unstated_times_are_interactive_and_stated_ones_are_obeyed() -> None:
    unstated = ReusePolicy((1, 4), concurrency=10).scaling()
    assert (unstated.idle_ttl, unstated.scaledown_ttl) == (1800, 300)
    assert (unstated.min_replicas, unstated.max_replicas, unstated.concurrency) == (1, 4, 10)
    stated = ReusePolicy(idle_ttl=30, scaledown_ttl=timedelta(seconds=30)).scaling()
    assert (stated.idle_ttl, stated.scaledown_ttl) == (30, 30)
    assert ReusePolicy(idle_ttl=60).scaling().scaledown_ttl == 300


@pytest.mark.parametrize(
    "same", [copy.copy, copy.deepcopy, dataclasses.replace, lambda policy: pickle.loads(pickle.dumps(policy))]
)
def test_a_copy_remembers_which_times_were_stated(same: Any) -> None:
    policy = same(ReusePolicy(idle_ttl=30))
    assert policy.states("idle_ttl")
    assert not policy.states("scaledown_ttl")
    policy.scaledown_ttl = 45
    assert policy.scaling().scaledown_ttl == 45


@pytest.mark.parametrize("count", [-1, "1", 1.5, None])
def test_retries_refuse(count: Any) -> None:
    with pytest.raises(ValueError, match=r"RetryStrategy\.count must be"):
        RetryStrategy(count)
    with pytest.raises(ValueError, match="must be"):
        retries_from_request(count)


def test_retries_without_a_backoff_follow_at_once() -> None:
    assert retries_from_request(2) == RetryStrategy(2)
    assert RetryStrategy(2).delay(1) == 0
    assert RetryStrategy(2, Backoff(SECOND)).delay(1) == 1


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"base": -SECOND}, "base must be >= 0"),
        ({"base": SECOND, "factor": 0.5}, "factor must be >= 1"),
        ({"base": SECOND, "factor": 2}, "cap is required"),
        ({"base": SECOND, "factor": float("inf"), "cap": SECOND}, "finite"),
        ({"base": SECOND, "factor": "2", "cap": SECOND}, "finite"),
        ({"base": SECOND, "factor": 2, "cap": -SECOND}, "cap must be >= 0"),
    ],
)
def test_a_backoff_refuses(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        Backoff(**given)


def test_a_backoff_grows_up_to_its_cap() -> None:
    backoff = Backoff(SECOND, 2, 10 * SECOND)
    assert [backoff.compute_delay(n) / SECOND for n in (0, 1, 2, 3, 4, 100_000)] == [1, 2, 4, 8, 10, 10]
    assert hash(backoff) == hash(Backoff(SECOND, 2, 10 * SECOND))
    with pytest.raises(ValueError, match=">= 0"):
        backoff.compute_delay(-1)
    with pytest.raises(TypeError, match="timedelta"):
        Backoff(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "seconds"), [(0, None), (5, 5), (3 * SECOND, 3), (Timeout(7), 7), (Timeout(None), None)]
)
def test_a_timeout_is_the_runtime_of_an_attempt(request_: Any, seconds: float | None) -> None:
    timeout = timeout_from_request(request_)
    assert timeout.seconds("max_runtime") == seconds
    assert timeout.seconds("deadline") is None


@pytest.mark.parametrize("request_", ["x", 1.5, None, -1])
def test_a_timeout_refuses(request_: Any) -> None:
    with pytest.raises(ValueError, match="imeout"):
        timeout_from_request(request_)
    if request_ is not None:
        with pytest.raises(ValueError, match="deadline"):
            Timeout(deadline=request_)


@pytest.mark.parametrize(
    ("behavior", "becomes"),
    [
        *((name, name) for name in ("auto", "override", "disable")),
        *((name, "auto") for name in ("enable", "enabled", "on", "true", "yes", "ON")),
        *((name, "disable") for name in ("off", "false", "no", "none")),
    ],
)
def test_a_cache_has_aliases(behavior: str, becomes: str) -> None:
    cache = cache_from_request(behavior)
    assert cache.behavior == becomes
    assert cache.is_enabled() == (becomes != "disable")
    assert cache_from_request(cache) is cache


@pytest.mark.parametrize("behavior", ["x", "", None, 1, True])
def test_a_cache_refuses(behavior: Any) -> None:
    with pytest.raises(ValueError, match="Invalid cache behavior"):
        cache_from_request(behavior)


def test_a_cache_normalises_the_rest() -> None:
    cache = Cache("auto", ignored_inputs="x", max_age=60)
    assert (cache.get_ignored_inputs(), cache.max_age) == (("x",), 60 * SECOND)
    with pytest.raises(ValueError, match="nonnegative"):
        Cache("auto", max_age=-1)
    with pytest.raises(TypeError, match="max_age"):
        Cache("auto", max_age="s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({"key": "a"}, "A"),
        ({"key": "my-key", "group": "g-r"}, "G_R_MY_KEY"),
        ({"key": "a", "as_env_var": "X_1"}, "X_1"),
        ({"key": "a", "mount": Path("/etc/flyte/secrets")}, None),
    ],
)
def test_a_secret_is_an_environment_variable(given: dict[str, Any], variable: str | None) -> None:
    assert Secret(**given).as_env_var == variable
    assert secret_names([Secret(**given)]) == ((variable,) if variable else ())


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        *(({"key": key}, "Invalid environment variable name") for key in ("1a", "a.b", "", "é")),
        ({"key": "a", "as_env_var": "x"}, "Invalid environment variable name"),
        ({"key": "a", "mount": Path("/x")}, "Only /etc/flyte/secrets"),
    ],
)
def test_a_secret_refuses(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        Secret(**given)


def test_secret_names_are_sorted_and_appear_once() -> None:
    assert secret_names(None) == ()
    assert secret_names("token") == ("TOKEN",)
    assert secret_names(["b", Secret("a"), "b"]) == ("A", "B")
    with pytest.raises(TypeError, match="secrets"):
        secret_names([5])  # type: ignore[list-item]
