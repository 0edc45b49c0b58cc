import copy
import sys

import pytest
import torch

from omnivae.models import VAE
from omnivae.networks.swin import PatchExpanding, PatchMerging, SwinDecoder, SwinEncoder
from omnivae.recipes.convolutional import swin_vae

SHARED = {"window_size": 2, "head_dim": 8, "patch_size": 2}


def small(**arguments):
    torch.manual_seed(0)
    return swin_vae(**({"in_channels": 2, "depths": (2, 2), "dims": (8, 16), "latent_dim": 3} | SHARED | arguments))


@pytest.mark.parametrize(
    ("variant", "millions"), [("tiny", 43.8), ("base", 141.0), ("large", 546.6), ("huge", 1294), ("giant", 2316)]
)
def test_sizes_are_those_of_transvae(variant, millions):
    with torch.device("meta"):
        model = swin_vae(variant)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.03)
    assert (model.encoder.stride, model.decoder.stride, model.latent_dim) == (16, 16, 32)


def test_networks_mirror_each_other_on_grids_that_the_window_does_not_divide():
    encoder, decoder = SwinEncoder(2, (8, 16), (2, 1), **SHARED), SwinDecoder(3, 5, (16, 8), (1, 2), **SHARED)
    for height, width in [(4, 4), (8, 12), (20, 4)]:
        assert encoder(torch.randn(2, 2, height, width)).shape == (2, 16, height // 4, width // 4)
        assert decoder(torch.randn(2, 3, height // 4, width // 4)).shape == (2, 5, height, width)
    assert (encoder.in_channels, encoder.out_channels, encoder.stride, encoder.dim) == (2, 16, 4, 2)
    assert (decoder.in_channels, decoder.out_channels, decoder.stride, decoder.dim) == (3, 5, 4, 2)


def test_every_size_comes_back():
    model = small().eval()
    for size in range(1, 21):
        x = torch.randn(1, 2, size, 21 - size)
        assert model.decode(model.encode(x)).shape == x.shape


def test_attention_stays_in_its_window_and_shifting_joins_windows():
    x = torch.randn(1, 1, 8, 8)
    changed = x.clone()
    changed[..., 0, 0] += 1
    shared = {"window_size": 4, "head_dim": 8, "patch_size": 1}
    reach = []
    for depth in (1, 2):
        torch.manual_seed(0)
        encoder = SwinEncoder(1, (8,), (depth,), **shared).eval()
        reach.append(((encoder(x) - encoder(changed)).abs().amax(1)[0] > 0).nonzero().amax(0).tolist())
    # Windows are positions 0-3 and 4-7; shifted by two they are 2-5, and 6-7 alone at the end.
    assert reach == [[3, 3], [5, 5]]


def test_fused_attention_is_timms_own():
    model = small(window_size=4).eval()
    x = torch.randn(2, 2, 24, 16)
    fused = model(x).reconstruction
    blocks = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert len(blocks) == 8
    for block in blocks:
        block.fused_attn = False
    torch.testing.assert_close(fused, model(x).reconstruction, atol=1e-5, rtol=1e-5)


def test_resampling_keeps_positions():
    merge, expand = PatchMerging(3, 6).double(), PatchExpanding(6, 3).double()
    x = torch.randn(1, 4, 6, 3, dtype=torch.float64)
    changed = x.clone()
    changed[0, 3, 2] += 1
    assert (merge(x) - merge(changed)).abs().amax(-1)[0].nonzero().tolist() == [[1, 1]]
    y = torch.randn(1, 2, 3, 6, dtype=torch.float64)
    changed = y.clone()
    changed[0, 1, 2, 0] += 1
    touched = (expand(y) - expand(changed)).abs().amax(-1)[0].nonzero().tolist()
    assert touched == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_gradients_reach_every_parameter_also_when_recomputed():
    model, x = small(), torch.randn(2, 2, 16, 16)
    gradients = []
    for checkpointed in (False, True):
        model.enable_gradient_checkpointing(checkpointed).zero_grad()
        torch.manual_seed(1)
        output = model.train()(x)
        (output.latents[0].posterior.kl().mean() - output.likelihood.log_prob(x).mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert [name for name, gradient in gradients[0].items() if not gradient.abs().sum() > 0] == []
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_evaluation_is_deterministic_and_files_are_exact(tmp_path):
    model = small().eval()
    x = torch.randn(2, 2, 7, 12)
    first = model(x)
    assert torch.equal(first.reconstruction, model(x).reconstruction)
    model.save_pretrained(tmp_path)
    loaded = VAE.from_pretrained(tmp_path)
    assert torch.equal(first.reconstruction, loaded(x).reconstruction)
    assert torch.equal(first.logvar, loaded(x).logvar)
    # Only parameters are in the file: masks and indices are made from sizes, and a second run must not change them.
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_bfloat16_and_channels_last():
    model = small().eval()
    x = torch.randn(2, 2, 16, 12)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.mean.dtype == output.logvar.dtype == output.reconstruction.dtype == torch.float32
    for got, want in zip(output, exact, strict=True):
        assert (got - want).square().mean().sqrt() < 0.03 * want.square().mean().sqrt()
    half = copy.deepcopy(model).bfloat16().encode(x.bfloat16())
    assert (half.mean - exact.mean).square().mean().sqrt() < 0.05 * exact.mean.square().mean().sqrt()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)).reconstruction, exact.reconstruction)


def test_mistakes_are_explained(monkeypatch):
    with pytest.raises(ValueError, match=r"did you mean 'large'.*tiny, base, large, huge, giant"):
        swin_vae("larg")
    with pytest.raises(ValueError, match="as many of each"):
        small(depths=(2, 2, 2))
    with pytest.raises(ValueError, match="multiples of head_dim"):
        small(dims=(12, 16))
    with pytest.raises(ValueError, match="window_size=1"):
        small(window_size=1)
    model, cond = small(), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="built without"):
        model.encoder(torch.zeros(1, 2, 8, 8), cond)
    with pytest.raises(ValueError, match="built without"):
        model.decoder(torch.zeros(1, 3, 8, 8), cond)
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encoder(torch.zeros(1, 2, 6, 8))
    monkeypatch.setitem(sys.modules, "timm.models.swin_transformer", None)
    with pytest.raises(ImportError, match="pip install timm"):
        small()
