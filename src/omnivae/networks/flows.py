"""Normalising flows of vectors: invertible maps with the logarithm of their Jacobian determinant, conditioned on a context.

RealNVP (Dinh et al., 2017), Glow's steps (Kingma & Dhariwal, 2018), neural splines (Durkan et al., 2019), masked and inverse
autoregressive flows (Papamakarios et al., 2017; Kingma et al., 2016) from zuko; planar flows (Rezende & Mohamed, 2015) here.

Shapes: ``[..., D]`` points, ``[..., E]`` context, ``[...]`` log-determinants.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from omnivae.component import suggestion

FlowName = Literal["realnvp", "glow", "nsf", "maf", "iaf", "planar"]
#: Names of the flows.
FLOWS: tuple[FlowName, ...] = ("realnvp", "glow", "nsf", "maf", "iaf", "planar")


class Flow(nn.Module):
    """An invertible map of vectors, ``z = f(x; context)``, built from layers of one kind.

    It starts as the identity (IAF: near it), so that whatever it is put after is at first what it would be without it.
    Which direction is fast: "iaf" maps x to z in one pass and back in D; "maf" the other way round; the couplings
    ("realnvp", "glow", "nsf") take one pass each way. "planar" has no inverse in closed form: it is found by bisection of a
    scalar equation for each layer.

    - "realnvp": affine couplings that take turns in which half they move.
    - "glow": each step a fixed permutation, an LU-factorised linear map with a shift, and an affine coupling: Glow for vectors,
      where the linear map stands for the 1x1 convolution and, by its diagonal and its shift, for the normalisation.
    - "nsf": couplings of rational-quadratic splines on [-5, 5]; the identity outside.
    - "maf": ``x_d = (z_d - m(z_<d)) / s(z_<d)``, orders reversed from layer to layer.
    - "iaf": ``z_d = s x_d + (1 - s) m`` with the gate ``s(x_<d)`` in (0, 1), orders reversed from layer to layer.
    - "planar": ``z = x + u tanh(w x + b)``.

    Args:
        flow: one of ``FLOWS``.
        features: D.
        num_layers: number of layers, >= 1.
        context: E, the size of the context; 0 for none.
        hidden: widths of the hidden layers of every network inside; "planar" has none.

    Raises:
        ValueError: for an unknown name or sizes out of range.
        ImportError: when zuko is not installed and the flow needs it.

    Example:
        >>> flow = Flow("realnvp", 3, num_layers=2)
        >>> z, log_det = flow(torch.randn(5, 3))
        >>> z.shape, log_det.shape, flow.inverse(z)[0].shape
        (torch.Size([5, 3]), torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        flow: FlowName,
        features: int,
        *,
        num_layers: int = 4,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if flow not in FLOWS:
            raise ValueError(f"unknown flow {flow!r}{suggestion(flow, FLOWS)}; expected one of {', '.join(FLOWS)}")
        if min(features, num_layers) < 1 or context < 0 or min(hidden, default=1) < 1:
            raise ValueError(
                f"got a flow of {features} dimensions, {num_layers} layers, a context of {context} and hidden={tuple(hidden)}; "
                "expected positive numbers, and a context of 0 or more"
            )
        self.features, self.context = features, context
        make = _PlanarLayer if flow == "planar" else _LAYERS[flow]
        # zuko looks at the values of its masks while it builds, which the meta device does not have.
        device = torch.get_default_device()
        with torch.device("cpu"):
            layers = nn.ModuleList(make(features, context, tuple(hidden), number) for number in range(num_layers))
        self.layers = layers.to(device)
        self._backwards = flow == "maf"
        for layer in self.layers.modules():
            _start_as_identity(layer)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x to z.

        Args:
            x: ``[..., D]``.
            context: ``[..., E]``, broadcast over leading axes; needed where the flow was built with one.

        Returns:
            z ``[..., D]`` and log |det dz/dx| ``[...]``.

        Raises:
            ValueError: for a context that is missing, of another size, or not asked for.
        """
        return self._run(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z to x.

        Args:
            z: ``[..., D]``.
            context: as for the way forth.

        Returns:
            x ``[..., D]`` and log |det dx/dz| ``[...]``.
        """
        return self._run(z, context, inverse=True)

    def _run(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        got = 0 if context is None else context.shape[-1]
        if got != self.context:
            raise ValueError(f"got a context of {got} numbers for a flow that was built for {self.context}")
        log_det = torch.zeros((), dtype=x.dtype, device=x.device)
        # Not below float32, whatever the caller's autocast: rounding would not cancel between a map and its determinant.
        with torch.autocast(device_type=x.device.type, enabled=False):
            for layer in reversed(self.layers) if inverse else self.layers:
                transform = layer(context)
                transform = transform.inv if inverse != self._backwards else transform
                x, ladj = transform.call_and_ladj(x)
                log_det = log_det + ladj
        return x, log_det

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # For the same reason a model that is cast to half precision as a whole keeps its flows in float32.
        super()._apply(fn, recurse)
        return super()._apply(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t, recurse)


def import_zuko() -> Any:
    """Import zuko without what it does to torch.distributions.

    On import zuko switches the validation of arguments off for every distribution in the process and empties the base
    class's table of constraints. Both are put back, unless the program had imported zuko already. What is left is one more
    method of ``torch.distributions.Transform``, ``call_and_ladj``, which zuko calls, and a shorter name in the repr of inverses.

    Returns:
        The package.

    Raises:
        ImportError: when it is not installed; says how to.
    """
    if sys.modules.get("zuko") is not None:
        return sys.modules["zuko"]
    before = {name: Distribution.__dict__[name] for name in ("_validate_args", "arg_constraints")}
    try:
        import zuko
    except ImportError as error:
        raise ImportError("this flow needs zuko: pip install omnivae[flows]") from error
    finally:
        for name, value in before.items():
            setattr(Distribution, name, value)
    return zuko


# -- layers: modules from a context to a transform


def _realnvp(features: int, context: int, hidden: tuple[int, ...], number: int) -> nn.Module:
    mask = torch.arange(features) % 2 == number % 2
    return import_zuko().flows.GeneralCouplingTransform(features, context, mask=mask, hidden_features=hidden)


def _nsf(features: int, context: int, hidden: tuple[int, ...], number: int) -> nn.Module:
    zuko, bins = import_zuko(), 8
    return zuko.flows.GeneralCouplingTransform(
        features,
        context,
        mask=torch.arange(features) % 2 == number % 2,
        univariate=zuko.transforms.MonotonicRQSTransform,
        shapes=[(bins,), (bins,), (bins - 1,)],
        hidden_features=hidden,
    )


def _autoregressive(
    features: int, context: int, hidden: tuple[int, ...], number: int, univariate: type[Transform] | None = None
) -> nn.Module:
    zuko = import_zuko()
    order = torch.arange(features)
    return zuko.flows.MaskedAutoregressiveTransform(
        features,
        context,
        order=order.flip(0) if number % 2 else order,
        univariate=univariate or zuko.transforms.MonotonicAffineTransform,
        hidden_features=hidden,
    )


class _GlowLayer(nn.Module):
    """A step of Glow on vectors: permutation, LU-factorised linear map, shift, affine coupling."""

    def __init__(self, features: int, context: int, hidden: tuple[int, ...], number: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(features))
        self.lu = nn.Parameter(torch.eye(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.coupling = _realnvp(features, context, hidden, number)

    def forward(self, context: Tensor | None) -> Transform:
        transforms = import_zuko().transforms
        return transforms.ComposedTransform(
            transforms.PermutationTransform(self.order),
            transforms.LULinearTransform(self.lu),
            transforms.DependentTransform(transforms.AdditiveTransform(self.shift), 1),
            self.coupling(context),
        )


class _PlanarLayer(nn.Module):
    """A planar layer; w, u and b are a linear function of the context, as in the paper, or parameters without one."""

    def __init__(self, features: int, context: int, hidden: tuple[int, ...], number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.scale = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(()))
        self.amortised = nn.Linear(context, 2 * features + 1) if context else None
        if self.amortised is not None:
            nn.init.zeros_(self.amortised.weight)
            nn.init.zeros_(self.amortised.bias)

    def forward(self, context: Tensor | None) -> _Planar:
        if self.amortised is None:
            return _Planar(self.weight, self.scale, self.bias)
        assert context is not None
        n = len(self.weight)
        w, u, b = self.amortised(context).split([n, n, 1], dim=-1)
        return _Planar(self.weight + w, self.scale + u, self.bias + b.squeeze(-1))


_LAYERS: dict[str, Callable[[int, int, tuple[int, ...], int], nn.Module]] = {
    "realnvp": _realnvp,
    "glow": _GlowLayer,
    "nsf": _nsf,
    "maf": _autoregressive,
    "iaf": lambda features, context, hidden, number: _autoregressive(features, context, hidden, number, _Gate),
}


def _start_as_identity(layer: nn.Module) -> None:
    # What moves a coordinate is the last layer of a network, or a parameter where there is nothing to depend on.
    hyper = getattr(layer, "hyper", None)
    if hyper is not None:
        nn.init.zeros_(hyper[-1].weight)
        nn.init.zeros_(hyper[-1].bias)
    for parameter in getattr(layer, "phi", ()):
        nn.init.zeros_(parameter)


# -- transforms that zuko does not have


class _Gate(Transform):
    """``y = s x + (1 - s) m``, ``s = sigmoid(gate + 2)`` (Kingma et al., 2016, eqs. 13 and 14: gates that start open)."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, m: Tensor, gate: Tensor) -> None:
        super().__init__()
        self.m, self.gate = m, gate + 2.0

    def _call(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate) * x + torch.sigmoid(-self.gate) * self.m

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - torch.sigmoid(-self.gate) * self.m) / torch.sigmoid(self.gate)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return F.logsigmoid(self.gate).expand(x.shape)


class _Planar:
    """``z = x + û tanh(w x + b)`` with ``w û > -1``, which makes it invertible (Rezende & Mohamed, 2015, eq. 10, appendix A.1)."""

    def __init__(self, w: Tensor, u: Tensor, b: Tensor) -> None:
        product = (w * u).sum(-1, keepdim=True)
        # The paper's m(x) = -1 + softplus(x), moved so that m(0) = 0: a layer with u = 0 is the identity.
        slope = F.softplus(product + math.log(math.e - 1)) - 1
        self.w, self.b, self.slope = w, b, slope.squeeze(-1)
        self.u = u + (slope - product) * w / w.square().sum(-1, keepdim=True)

    @property
    def inv(self) -> Any:
        """The inverse, with the same method."""
        return _PlanarInverse(self)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log |det dz/dx|."""
        bend = torch.tanh((x * self.w).sum(-1) + self.b)
        return x + self.u * bend.unsqueeze(-1), torch.log1p(self.slope * (1 - bend.square()))

    def solve(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |det dx/dz|: ``a + w û tanh(a + b) = w z`` has one root a = w x, and x follows from it."""
        target = (z * self.w).sum(-1)
        with torch.no_grad():
            reach = self.slope.abs()
            low, high = target - reach, target + reach
            # To the last bit: each step halves the interval.
            for _ in range(60 if z.dtype == torch.float64 else 30):
                middle = 0.5 * (low + high)
                above = middle + self.slope * torch.tanh(middle + self.b) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            root = 0.5 * (low + high)
        # One step of Newton's method from the root: its gradient is the implicit function's.
        bend = torch.tanh(root + self.b)
        steepness = (1 + self.slope * (1 - bend.square())).detach()
        root = root - (root + self.slope * bend - target) / steepness
        bend = torch.tanh(root + self.b)
        return z - self.u * bend.unsqueeze(-1), -torch.log1p(self.slope * (1 - bend.square()))


class _PlanarInverse:
    def __init__(self, forward: _Planar) -> None:
        self.inv = forward

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.inv.solve(z)
