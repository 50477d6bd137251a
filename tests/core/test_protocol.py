"""Messages are one line each, come back as they were, and hide what is secret from people."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.core.spec import EnvironmentSpec, Scaling
from flyte_jupyter.core.timeline import RecentView, SpanView, TimelineView

SCALING = Scaling(min_replicas=0, max_replicas=2, idle_ttl=60, scaledown_ttl=30)
DECLARATION = p.Declaration(
    spec=EnvironmentSpec(name="gpu\nü\u2028", interpreter="/python", env_vars=(("A", "1\n2"),), secrets=("TOKEN",)),
    scaling=SCALING,
    preload=p.Preload(generation="g", names=("model",), payload=b"AAECCg=="),
    secret_values={"TOKEN": "hunter2"},
    inherited_env={"PATH": "/bin"},
)
SPAN = SpanView(
    id=1, replica="r", kind="running", task="t\n", client="a.ipynb", began=1, ended=2, outcome="failed", calls=1
)
RECENT = RecentView(**dict(SPAN), pool="0123")

TO_BROKER = [
    p.Hello(version="1", label="a.ipynb", kind="notebook", pid=1),
    p.Declare(declaration=DECLARATION),
    p.Acquire(lease="l", pool="0123", task="t", parent="m", session="s"),
    p.Attach(lease="5e1f", replica="0123abcd-1", task="attached console", shared=True),
    p.Kept(lease="l", session=""),
    p.Release(lease="l"),
    p.Revoke(lease="l", why="it does not stop"),
    p.Cancel(lease="l"),
    p.Warm(pool="0123", replicas=2),
    p.Scale(pool="0123", scaling=SCALING),
    p.Keep(pool="0123", seconds=1.5),
    p.StopPool(pool="0123", force=True),
    p.RestartPool(pool="0123"),
    p.RestartReplica(replica="0123-1", force=True),
    p.Interrupt(replica="0123-1"),
    p.InterruptPool(pool="0123"),
    p.Watch(once=True),
    p.Unwatch(),
    p.AskTimeline(pool="0123", since="9f3a61c2.57", question=3),
    p.Shutdown(),
]
FROM_BROKER = [
    p.Welcome(version="1", pid=1),
    p.Rejected(version="1", protocol=2, pid=1),
    p.Granted(lease="l", replica="r", name="gpu[0]", address="/run/task.sock"),
    p.Refused(lease="l", reason="no-gpu", detail={"wanted": "1"}),
    p.Recalled(lease="l"),
    p.Lost(lease="l", replica="r", name="gpu[0]", cause="signal SIGKILL", signal="SIGKILL"),
    p.Snapped(epoch_offset=1.5, log_dir="/logs", recent=(RECENT,), snapshot=Scheduler().snapshot()),
    p.ToldTimeline(
        pool="0123",
        timeline=TimelineView(
            now=1.5, epoch_offset=1, mark="9f3a61c2.58", whole=False, window_s=600, lanes=(), spans=(SPAN,), changes=()
        ),
    ),
    p.Goodbye(why="stopped"),
    p.Failed(why="?", question=3),
]


@pytest.mark.parametrize("message", TO_BROKER, ids=lambda message: type(message).__name__)
def test_a_request_is_one_line_and_comes_back_as_it_was(message: Any) -> None:
    line = p.to_line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert p.to_broker.validate_json(line) == message


@pytest.mark.parametrize("message", FROM_BROKER, ids=lambda message: type(message).__name__)
def test_an_answer_is_one_line_and_comes_back_as_it_was(message: Any) -> None:
    line = p.to_line(message)
    assert line.count(b"\n") == 1
    assert p.from_broker.validate_json(line) == message


def test_every_message_is_in_these_tests() -> None:
    for union, messages in ((p.ToBroker, TO_BROKER), (p.FromBroker, FROM_BROKER)):
        assert {type(message) for message in messages} == set(get_args(get_args(union)[0]))


def test_a_preload_arrives_as_the_bytes_it_was() -> None:
    message: Any = p.to_broker.validate_json(p.to_line(p.Declare(declaration=DECLARATION)))
    assert message.declaration.preload.payload == b"\x00\x01\x02\n"


def test_a_secret_crosses_the_socket_and_shows_nowhere_else() -> None:
    message: Any = p.to_broker.validate_json(p.to_line(p.Declare(declaration=DECLARATION)))
    assert message.declaration.secret_values["TOKEN"].get_secret_value() == "hunter2"
    assert "hunter2" not in repr(message)
    assert "hunter2" not in str(message.model_dump())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"junk",
        b"[]",
        b"null",
        b'{"type": "dance"}',
        b'{"type": "release"}',
        b'{"type": "release", "lease": "l", "more": 1}',
        b'{"type": "keep", "pool": "p", "seconds": -1}',
        b'{"type": "welcome", "version": "1", "pid": 1}',
        b'{"type": "release", "lease": "\xff"}',
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(ValidationError):
        p.to_broker.validate_json(line)


def test_a_snapshot_holds_neither_secrets_nor_environment() -> None:
    text = json.dumps(p.Snapped.model_json_schema())
    assert "secret" not in text
    assert "inherited_env" not in text


def test_a_pools_key_is_its_identity_and_not_its_scaling() -> None:
    spec = DECLARATION.spec
    assert spec.key == EnvironmentSpec.model_validate_json(spec.model_dump_json()).key
    assert spec.key != EnvironmentSpec(name="other", interpreter="/python").key
    assert set(spec.key) <= set("0123456789abcdef")
