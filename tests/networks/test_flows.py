"""Flows: log-determinants against autograd's Jacobian, inverses, and what importing zuko must not do."""

import subprocess
import sys

import pytest
import torch
from torch.distributions import Distribution

from omnivae.networks.flows import FLOWS, Flow, import_zuko

SHARED = {"num_layers": 3, "hidden": (16,)}


def moved(flow, features, context=0, seed=0):
    """A flow with weights far from where it starts."""
    torch.manual_seed(seed)
    made = Flow(flow, features, context=context, **SHARED).double()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith(".lu"):
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.normal_(std=0.5)
    return made


def point_and_context(features, context, n=3):
    x = torch.randn(n, features, dtype=torch.float64)
    return x, torch.randn(n, context, dtype=torch.float64) if context else None


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_log_determinant_is_that_of_autograds_jacobian(name, features, context):
    flow = moved(name, features, context)
    x, c = point_and_context(features, context)
    _, log_det = flow(x, c)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=i: flow(v, None if c is None else c[i])[0], x[i])
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_det.expand(3)[i].detach()), abs=1e-7)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("name", FLOWS)
def test_inverse_undoes_the_flow(name, features, context):
    flow = moved(name, features, context)
    x, c = point_and_context(features, context)
    z, log_det = flow(x, c)
    again, inverse_log_det = flow.inverse(z, c)
    torch.testing.assert_close(again, x, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_gradient_of_the_inverse_is_the_inverse_of_the_gradient(name):
    # By the implicit function theorem dx/dtheta = -(dz/dx)^-1 dz/dtheta, whatever the inverse is computed with.
    flow = moved(name, 3, 2)
    x, c = point_and_context(3, 2, n=1)
    c.requires_grad_()
    z = flow(x, c)[0].detach()
    of_inverse = torch.autograd.functional.jacobian(lambda v: flow.inverse(z, v)[0][0], c)[:, 0]
    dz_dx = torch.autograd.functional.jacobian(lambda v: flow(v, c)[0][0], x)[:, 0]
    dz_dc = torch.autograd.functional.jacobian(lambda v: flow(x, v)[0][0], c)[:, 0]
    torch.testing.assert_close(of_inverse, -torch.linalg.solve(dz_dx, dz_dc), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_samples_share_the_context(name):
    flow = moved(name, 3, 2)
    x, c = point_and_context(3, 2)
    z, log_det = flow(x, c)
    both, both_log_det = flow(torch.stack([x, x.flip(0)]), c)
    torch.testing.assert_close(both[0], z)
    torch.testing.assert_close(both_log_det.expand(2, 3)[0], log_det.expand(3))


@pytest.mark.parametrize("name", [name for name in FLOWS if name not in ("iaf", "glow")])
def test_a_new_flow_is_the_identity(name):
    flow = Flow(name, 4, **SHARED).double()
    x, _ = point_and_context(4, 0)
    z, log_det = flow(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det.expand(3), torch.zeros(3, dtype=torch.float64))


def test_a_new_glow_only_permutes():
    x, _ = point_and_context(4, 0)
    z, log_det = Flow("glow", 4, **SHARED).double()(x)
    torch.testing.assert_close(z.sort(-1)[0], x.sort(-1)[0])
    torch.testing.assert_close(log_det, torch.zeros(3, dtype=torch.float64))


def test_iaf_depends_on_earlier_dimensions_only():
    flow = Flow("iaf", 4, num_layers=1, hidden=(16,)).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.normal_()
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v)[0], torch.randn(4, dtype=torch.float64))
    assert torch.equal(jacobian, jacobian.tril())
    assert bool(jacobian.tril(-1).any())
    # The gate (Kingma et al., 2016, eq. 14).
    assert bool((jacobian.diagonal() > 0).all())
    assert bool((jacobian.diagonal() < 1).all())


def test_maf_and_iaf_are_fast_in_opposite_directions():
    # What depends on the first dimension only, and not on the rest, is the map that takes one pass.
    iaf, maf = moved("iaf", 3), moved("maf", 3)
    calls = []
    for flow in (iaf, maf):
        flow.layers[0].hyper.register_forward_hook(lambda *_, flow=flow: calls.append(flow))
    x, _ = point_and_context(3, 0)
    counts = []
    for run in (iaf.forward, iaf.inverse, maf.forward, maf.inverse):
        calls.clear()
        run(x)
        counts.append(len(calls))
    assert counts[0] == counts[3] == 1
    assert counts[1] >= 3
    assert counts[2] >= 3


def test_stays_in_float32_when_a_model_is_cast_to_half_precision():
    flow = Flow("maf", 3, **SHARED).to(torch.bfloat16)
    assert {p.dtype for p in flow.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = flow(torch.randn(2, 3))
    assert z.dtype == log_det.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow": "real_nvp", "features": 2}, "unknown flow 'real_nvp'; did you mean 'realnvp'"),
        ({"flow": "maf", "features": 0}, "0 dimensions"),
        ({"flow": "maf", "features": 2, "num_layers": 0}, "0 layers"),
    ],
)
def test_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Flow(**arguments)


def test_refuses_a_context_that_it_was_not_built_for():
    x, c = point_and_context(3, 2)
    with pytest.raises(ValueError, match="context of 2 numbers for a flow that was built for 0"):
        moved("realnvp", 3)(x, c)
    with pytest.raises(ValueError, match="context of 0 numbers for a flow that was built for 2"):
        moved("realnvp", 3, 2)(x)


def test_importing_zuko_leaves_torch_distributions_as_they_were():
    code = """
import sys, torch
from torch.distributions import Distribution, Normal
before = Distribution.__dict__["_validate_args"], Distribution.__dict__["arg_constraints"]
import omnivae
assert "zuko" not in sys.modules
from omnivae.networks.flows import Flow
for name in ("realnvp", "glow", "nsf", "maf", "iaf"):
    Flow(name, 2)(torch.zeros(1, 2))
assert "zuko" in sys.modules
assert (Distribution.__dict__["_validate_args"], Distribution.__dict__["arg_constraints"]) == before
try:
    Normal(0.0, -1.0)
except ValueError:
    print("validated")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "validated", done.stderr


def test_a_program_that_wants_zukos_setting_keeps_it(monkeypatch):
    import_zuko()
    monkeypatch.setattr(Distribution, "_validate_args", False)
    Flow("maf", 2)(torch.zeros(1, 2))
    assert Distribution._validate_args is False


def test_without_zuko_the_extra_is_named_and_planar_flows_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    for name in FLOWS:
        if name == "planar":
            Flow(name, 2)(torch.zeros(1, 2))
            continue
        with pytest.raises(ImportError, match=r"this flow needs zuko: pip install omnivae\[flows\]"):
            Flow(name, 2)
    assert Distribution._validate_args
