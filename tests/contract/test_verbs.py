"""Card, side panel and pages use verbs of the table, and use all of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import flyte_jupyter
from flyte_jupyter.core.verbs import LEASE, POOL, REPLICA, NoSuchVerb, Verbs
from flyte_jupyter.magics.pools import VERBS

ROOT = Path(flyte_jupyter.__file__).parents[1]
KINDS = {"pools": POOL, "replicas": REPLICA, "leases": LEASE}
ORDERS = [(path, name) for path, verbs in KINDS.items() for name in verbs]


def test_the_panel_has_a_type_for_each_order_and_for_no_other() -> None:
    models = (ROOT / "labextension" / "src" / "models.ts").read_text("utf-8")
    typed = re.findall(r"\{ on: '(\w+)'; id: string; verb: '(\w+)';", models)
    assert sorted(typed) == sorted(ORDERS)


def test_the_buttons_of_the_card_are_verbs_of_the_table() -> None:
    card, rows = (
        (ROOT / "flyte_jupyter" / "widgets" / f"{name}.js").read_text("utf-8") for name in ("card", "replicas")
    )
    assert set(re.findall(r"#act\(\"(\w+)\"", card)) <= set(POOL)
    assert set(re.findall(r"#order\(\"(\w+)\"", rows)) <= set(REPLICA)


@pytest.mark.parametrize(("path", "name"), ORDERS)
def test_each_order_is_documented(path: str, name: str) -> None:
    shape = {"pools": "KEY", "replicas": "ID", "leases": "ID"}[path]
    assert f"| `{path}/{shape}/{name}` |" in (ROOT / "docs" / "server-api.md").read_text("utf-8")
    assert path == "leases" or f"| {name} |" in (ROOT / "docs" / "verbs.md").read_text("utf-8")


@pytest.mark.parametrize("name", dict.fromkeys((*POOL, *REPLICA)))
def test_a_handle_has_a_method_for_each_verb_and_the_magic_has_a_word(name: str) -> None:
    assert inspect.isfunction(getattr(flyte_jupyter.PoolHandle, name))
    assert name in VERBS


@pytest.mark.parametrize("verbs", KINDS.values(), ids=KINDS)
def test_a_verb_that_is_not_there_is_answered_with_those_that_are(verbs: Verbs[object]) -> None:
    with pytest.raises(NoSuchVerb, match=f"A {verbs.noun} has no verb explode; it has {next(iter(verbs))}"):
        verbs["explode"]


@pytest.mark.parametrize("verb", [verb for verbs in KINDS.values() for verb in verbs.values()])
def test_the_example_of_a_word_is_one(verb: type) -> None:
    word = verb.word  # type: ignore[attr-defined]
    if word is not None:
        verb.of(**word.fields(word.example))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("keep", {"seconds": -1}, "keep: seconds: Input should be greater than or equal to 0"),
        ("keep", {"seconds": float("inf")}, "keep: seconds: Input should be a finite number"),
        ("scale", {"minimum": 2, "maximum": 1}, "scale: maximum: Value error, maximum is less than minimum"),
        ("scale", {"minimum": 0, "maximum": 0}, "scale: maximum: Input should be greater than or equal to 1"),
        ("warm", {"replicas": 0}, "warm: replicas: Input should be greater than or equal to 1"),
        ("stop", {"now": True}, "stop: now: Extra inputs are not permitted"),
    ],
)
def test_an_argument_that_does_not_fit_is_named_in_one_line(name: str, fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        POOL[name].of(**fields)
