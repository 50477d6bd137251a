"""Generators of random numbers that seed themselves once per process: each forked replica gets other numbers.

A zygote notes them while it imports (`noting_seeds`, `note_generators`); its child gives them other seeds (`reseed`).

Three kinds get another seed:

- `random.Random`: the module's own, and those that libraries keep, as sympy, Faker, hypothesis and trio do;
- NumPy's bit generators: the one behind `numpy.random.random()` and its like, which SciPy, scikit-learn, pandas and
  networkx use, and those behind a `Generator` or `RandomState` that a module keeps;
- torch's default generator of the CPU.

A seed that an import has given on purpose stays. For `random.Random` that is known. NumPy draws 128 bits and torch 64
where nobody gives a seed, so a seed of at most 64 bits, or of at most 32 for torch, counts as given.

The others need nothing, as tests with forked children have shown for most of them:

- `secrets`, `uuid`, `tempfile`, a new `default_rng()` and Numba ask the system each time, or look at their process.
- torch's generators of CUDA and other devices, CuPy, TensorFlow, Keras, Paddle, Polars, PyArrow, DuckDB, Optuna and
  ONNX Runtime draw a seed when they are first used, which is after the fork.
- JAX keeps no generator. `torch.Generator()` and OpenCV's start with a constant in every process.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import weakref
from collections.abc import Iterator
from typing import Any, Final

GIVEN_BITS: Final = 64
"""A seed of NumPy's with no more than these was given; it draws 128."""
GIVEN_BITS_TORCH: Final = 32
"""A seed of torch's with no more than these was given; it draws 64."""

_seed, _setstate = random.Random.seed, random.Random.setstate
_module: Final[random.Random] = random._inst
_drawn: Final[dict[int, weakref.ref[random.Random]]] = {id(_module): weakref.ref(_module)}
_given: tuple[Any, ...] | None = None  # the state of the module's own, if somebody has given its seed
_bit_generators: Final[list[Any]] = []


@contextlib.contextmanager
def noting_seeds() -> Iterator[None]:
    """While it lasts, it is noted which `random.Random` draws its seed and which is given one."""
    random.Random.seed = _noted_seed  # type: ignore[method-assign, assignment]
    random.Random.setstate = _noted_setstate  # type: ignore[method-assign, assignment]
    random.seed, random.setstate = _module.seed, _module.setstate
    try:
        yield
    finally:
        random.Random.seed, random.Random.setstate = _seed, _setstate  # type: ignore[method-assign]
        random.seed, random.setstate = _module.seed, _module.setstate


def _noted_seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
    if a is None:
        _drawn[id(generator)] = weakref.ref(generator)
    else:
        _drawn.pop(id(generator), None)
    _seed(generator, a, version)


def _noted_setstate(generator: random.Random, state: Any) -> None:
    _drawn.pop(id(generator), None)
    _setstate(generator, state)


def note_generators() -> None:
    """Find what the imports have left. Before the collector is told to forget it (`gc.freeze`)."""
    global _given  # noqa: PLW0603
    _given = None if id(_module) in _drawn else random.getstate()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        kinds = (numpy.BitGenerator, numpy.RandomState)
        # Its type and not `isinstance`, which asks the object itself: one that stands for a module imports it then.
        _bit_generators.extend(each for each in gc.get_objects() if issubclass(type(each), kinds) and _drew(each))


def _drew(generator: Any) -> bool:
    """Whether this bit generator of NumPy's, or this `RandomState`, has drawn its seed."""
    bits = getattr(generator, "_bit_generator", generator)
    sequence = getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)  # the latter before NumPy 1.24
    entropy = getattr(sequence, "entropy", None)
    return isinstance(entropy, int) and entropy.bit_length() > GIVEN_BITS


def reseed() -> None:
    """In a child, before anybody's code: other seeds for all that drew theirs before the fork."""
    for reference in _drawn.values():
        generator = reference()
        if generator is not None:
            with contextlib.suppress(Exception):  # a class of a library's own may want arguments
                generator.seed()
    if _given is not None:  # Python gives it another one after each fork
        random.setstate(_given)
    for each in _bit_generators:
        with contextlib.suppress(Exception):
            _reseed_numpy(each)
    _bit_generators.clear()
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):  # where its import has failed, there may be a part of it
        # Not `torch.seed()`, which leaves a seed for devices that are not in use yet, too: they draw their own.
        if torch is not None and torch.default_generator.initial_seed().bit_length() > GIVEN_BITS_TORCH:
            torch.default_generator.seed()


def _reseed_numpy(generator: Any) -> None:
    if hasattr(generator, "_bit_generator"):
        generator.seed()  # also forgets the number that it may have in reserve; its bits are another of these
        return
    fresh = type(generator)()
    try:
        generator.__setstate__((fresh.state, fresh.seed_seq))  # with what `spawn` goes by
    except Exception:  # before NumPy 2
        generator.state = fresh.state
