import math

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from omnivae.networks.attention import AbsolutePositions, GridAttention, attend, axial_rope, rotate

SIZES = {1: (7,), 2: (4, 5), 3: (2, 3, 4)}


def randomized(module):
    """Give the normalisation weights and biases values that matter: at their defaults a mistake would go unseen."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def positions(size):
    return torch.cartesian_prod(*[torch.arange(n) for n in size]).reshape(-1, len(size))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("head_dim", [12, 16])
def test_rotated_dot_products_depend_on_differences_of_positions_only(dim, head_dim):
    size = SIZES[dim]
    cos, sin = (table.double() for table in axial_rope(size, head_dim))
    q, k = torch.randn(2, head_dim, dtype=torch.float64)
    n = math.prod(size)
    q_N, k_N = (rotate(v.expand(1, n, 1, head_dim), cos, sin)[0, :, 0] for v in (q, k))
    logits = q_N @ k_N.T
    by_difference = {}
    where = positions(size)
    for i in range(n):
        for j in range(n):
            by_difference.setdefault(tuple((where[i] - where[j]).tolist()), []).append(logits[i, j])
    for values in by_difference.values():
        assert torch.stack(values).std(correction=0) < 1e-6  # the tables are float32
    means = torch.stack([torch.stack(v).mean() for v in by_difference.values()])
    assert means.unique().numel() == len(by_difference)  # and every difference is told apart


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rotation_preserves_norms_and_leaves_the_origin_alone(dim):
    size = SIZES[dim]
    cos, sin = axial_rope(size, 16)
    assert cos.shape == sin.shape == (math.prod(size), 8)
    x = torch.randn(2, math.prod(size), 3, 16)
    y = rotate(x, cos, sin)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(y[:, 0], x[:, 0])
    assert (y[:, 1:] - x[:, 1:]).abs().amax() > 0.1


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_each_axis_turns_its_own_channel_pairs(dim):
    size = SIZES[dim]
    share = 12 // dim // 2
    cos, sin = axial_rope(size, 12)
    where = positions(size)
    angle = torch.atan2(sin, cos)
    for axis in range(dim):
        for pair in range(share):
            want = where[:, axis] * 10_000.0 ** (-pair / share)
            got = angle[:, axis * share + pair]
            assert torch.allclose(torch.cos(got - want), torch.ones(len(want)), atol=1e-6)


def explicit(module, x):
    """Attention written out: complex rotation, softmax of all logits."""
    b, channels, *size = x.shape
    n, d = math.prod(size), module.head_dim
    heads = channels // d
    tokens = x.reshape(b, channels, n).mT
    q, k, v = (tokens @ module.qkv.weight.T + module.qkv.bias).split(channels, dim=-1)
    q, k, v = (t.reshape(b, n, heads, d).permute(0, 2, 1, 3) for t in (q, k, v))
    q = q / (q.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.q_norm.weight
    k = k / (k.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.k_norm.weight
    if module.use_rope:
        share = d // 2 // len(size)
        angles = torch.zeros(n, d // 2)
        for axis in range(len(size)):
            frequency = 10_000.0 ** (-torch.arange(share) / share)
            angles[:, axis * share : (axis + 1) * share] = positions(size)[:, axis : axis + 1].float() * frequency
        turn = torch.complex(angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        q, k = (torch.complex(t[..., : d // 2], t[..., d // 2 :]) * turn for t in (q, k))
        q, k = torch.cat([q.real, q.imag], -1), torch.cat([k.real, k.imag], -1)
    out = (q @ k.mT / d**0.5).softmax(-1) @ v
    out = out.permute(0, 2, 1, 3).reshape(b, n, channels)
    return (out @ module.projection.weight.T + module.projection.bias).mT.reshape(x.shape)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("use_rope", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_attention_is_softmax_over_all_positions(dim, use_rope, dtype, tolerance):
    module = randomized(GridAttention(36, head_dim=12, use_rope=use_rope)).to(dtype)
    x = torch.randn(2, 36, *SIZES[dim], dtype=dtype)
    want = explicit(module, x)
    assert (module(x) - want).abs().max() < tolerance * want.abs().max()


def test_gradients_are_those_of_the_explicit_form():
    module = randomized(GridAttention(24, head_dim=12)).double()
    x = torch.randn(2, 24, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    inputs = [x, *module.parameters()]
    got = torch.autograd.grad((module(x) * weight).sum(), inputs)
    want = torch.autograd.grad((explicit(module, x) * weight).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_heads_reach_the_kernel_contiguous(layout, dtype, autocast, monkeypatch):
    # With a strided last axis the kernel silently falls back to one that holds all N^2 logits and is 6 to 18 times slower.
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v, *args, **kwargs):
        seen.extend((q, k, v))
        return real(q, k, v, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    module = GridAttention(32, head_dim=16).to(dtype)
    x = torch.randn(1, 32, 4, 6, dtype=dtype).to(memory_format=layout)
    low = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.no_grad(), low, profile(activities=[ProfilerActivity.CPU]) as record:
        module(x)
    assert [t.shape for t in seen] == [(1, 2, 24, 16)] * 3
    assert [t.stride(-1) for t in seen] == [1, 1, 1]
    assert len({t.dtype for t in seen}) == 1
    if autocast:
        assert seen[0].dtype == torch.bfloat16
    called = {event.key for event in record.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
    assert "aten::_scaled_dot_product_attention_math" not in called


@pytest.mark.parametrize("positions", [512, 700])
@pytest.mark.parametrize("has_amx", [False, True])
def test_rows_at_a_time_are_the_same_function(positions, has_amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: (calls.append(1), real(*a))[1])
    q, k, v = (t.transpose(1, 2) for t in torch.randn(2, positions, 3, 2, 16).bfloat16().unbind(2))
    got = attend(q, k, v)
    assert got.shape == q.shape
    assert got.transpose(1, 2).is_contiguous()  # what the projection reads as rows
    assert bool(calls) == has_amx  # with AMX torch's kernel is the faster one
    want = real(q.float(), k.float(), v.float())
    assert (got.float() - want).norm() < 0.01 * want.norm()
    calls.clear()
    attend(q.requires_grad_(), k, v).sum().backward()  # gradients come from torch's kernel
    assert calls == [1]
    assert q.grad.abs().sum() > 0


def test_channels_last_goes_through():
    module = GridAttention(32, head_dim=16)
    x = torch.randn(2, 32, 4, 6).to(memory_format=torch.channels_last)
    y = module(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, module(x.contiguous()))


def test_one_module_serves_any_size_and_precision():
    module = randomized(GridAttention(24, head_dim=12)).eval()
    for size in [(4, 5), (8, 3), (4, 5)]:  # tables are kept: a change and a return must both be right
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            x = torch.randn(1, 24, *size, dtype=dtype)
            want = explicit(module.float(), x.float())
            got = module.to(dtype)(x)
            assert got.dtype == dtype
            assert (got.float() - want).abs().max() < (1e-5 if dtype == torch.float32 else 0.05) * want.abs().max()
            module.float()


def test_tables_are_neither_saved_nor_trained():
    module = GridAttention(24, head_dim=12)
    module(torch.randn(1, 24, 4, 5))
    assert sorted(module.state_dict()) == [
        "k_norm.weight",
        "projection.bias",
        "projection.weight",
        "q_norm.weight",
        "qkv.bias",
        "qkv.weight",
    ]


def test_tables_made_without_gradients_serve_training():
    module = GridAttention(24, head_dim=12)
    x = torch.randn(1, 24, 4, 5)
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(("channels", "head_dim"), [(30, 16), (15, 5)])
def test_heads_that_do_not_fit_are_refused(channels, head_dim):
    with pytest.raises(ValueError, match=f"got {channels} channels and head_dim={head_dim}; expected an even head_dim"):
        GridAttention(channels, head_dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_absolute_positions_are_added_and_resized(dim):
    module = AbsolutePositions(3, [4] * dim)
    x = torch.randn(2, 3, *[4] * dim)
    torch.testing.assert_close(module(x), x + module.table)
    module.table.data.fill_(0.5)  # a constant table stays constant at any size
    x = torch.randn(2, 3, *[6, 3, 5][:dim])
    torch.testing.assert_close(module(x), x + 0.5)
