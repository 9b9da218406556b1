"""The one table of reconstruction methods."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mpi_jax._spelling import expect_one_of
from mpi_jax.methods.settings import Settings

if TYPE_CHECKING:
    from mpi_jax.methods.problem import Problem, Solve


@dataclasses.dataclass(frozen=True)
class Method:
    """A way from voltages to images.

    settings: every setting that it takes, with its default. build(problem, **settings)
    gives what solves. physics: whether a network starts from classical images and a
    singular basis of the system matrix; other methods know the physics or nothing.
    """

    name: str
    label: str
    kind: Literal["classical", "learned", "control"]
    settings: Mapping[str, Any]
    build: Callable[..., Solve]
    physics: bool = False

    def prepare(
        self, problem: Problem, settings: Settings | Mapping[str, Any] | None = None
    ) -> Solve:
        """What turns signals u [B, ...] into a Reconstruction.

        settings: those that differ from the defaults. Raises ValueError for a setting
        that the method doesn't have, for values out of range and for problems that lack
        what the method needs.
        """
        return self.build(problem, **self.complete(settings))

    def complete(
        self, settings: Settings | Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """All settings, the given ones in place of the defaults."""
        if isinstance(settings, Settings):
            settings = {
                name: value
                for name, value in dataclasses.asdict(settings).items()
                if value is not None
            }
        changes = dict(settings or {})
        unknown = [name for name in changes if name not in self.settings]
        if unknown:
            option = f"--{unknown[0].replace('_', '-')}"
            raise ValueError(
                f"{unknown[0]} ({option}): not a setting of method {self.name}; expected "
                f"some of {', '.join(self.settings) or 'none at all'}"
            )
        return {**self.settings, **changes}


def _from(module: str, function: str) -> Callable[..., Solve]:
    """A builder that is imported when it is first used."""

    def build(problem: Problem, **settings: Any) -> Solve:
        home = importlib.import_module(f"mpi_jax.methods.{module}")
        return getattr(home, function)(problem, **settings)

    return build


def _classical(name: str, label: str, **settings: Any) -> Method:
    build = _from("classical", f"{name}_solver")
    return Method(name, label, "classical", settings, build)


def _control(name: str, label: str, **settings: Any) -> Method:
    build = _from("controls", f"{name}_solver")
    return Method(name, label, "control", settings, build)


# In the order of tables: controls first, each beside what it controls.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _control("zero", "All-zero image"),
        _control("mean", "Mean training image"),
        _control("nearest", "Nearest training signal"),
        _control("ridge", "Linear ridge", lam=1e-3),
        _control("xspace_max", "x-space, over its maximum", width=None),
        _classical("xspace", "x-space", width=None, gain=1.0),
        _classical(
            "xspace_tensor",
            "x-space (tensor, deconvolved)",
            width=None,
            rho=3e-3,
            iterations=50,
        ),
        _control(
            "kaczmarz_max",
            "System matrix (Kaczmarz), over its maximum",
            lam=1e-2,
            lam_unit="energy",
            iterations=10,
        ),
        _classical(
            "kaczmarz",
            "System matrix (Kaczmarz)",
            lam=1e-2,
            lam_unit="energy",
            iterations=10,
        ),
        _classical(
            "cgnr",
            "System matrix (conjugate gradients)",
            lam=0.0,
            lam_unit="energy",
            iterations=10,
        ),
        _classical("tikhonov", "System matrix (Tikhonov)", lam=1e-2, lam_unit="energy"),
        _classical(
            "elastic_net",
            "System matrix (elastic net)",
            lam=1e-3,
            lam_unit="energy",
            l1=0.0,
            iterations=200,
        ),
        _classical(
            "nonnegative", "System matrix (non-negative)", rho="noise", iterations=20
        ),
        _classical(
            "tv",
            "System matrix (non-negative, TV)",
            lam_tv="noise",
            factor=3.0,
            rho="noise",
            iterations=100,
        ),
    )
}


def get(name: str, further: Mapping[str, Method] | None = None) -> Method:
    """A method by its name, of METHODS or of `further`; ValueError for any other."""
    methods = {**METHODS, **(further or {})}
    expect_one_of("method", name, methods)
    return methods[name]
