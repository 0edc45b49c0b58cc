"""Corruptions: their statistics, their targets and masks, and what the trainer makes of them."""

from __future__ import annotations

import pytest
import torch

import omnivae
from omnivae.losses import KL, NLL
from omnivae.training import TrainingConfig, VAEModule
from omnivae.training.corruption import Corruption

X = torch.full((40, 2, 16, 16), 0.25)


def test_gaussian_noise_has_its_size_and_stays_in_range():
    torch.manual_seed(0)
    noisy, known = Corruption("gaussian", 0.1).corrupt(X, (-1.0, 1.0))
    assert float((noisy - X).std()) == pytest.approx(0.2, rel=0.02)
    assert not known.any()
    strong, _ = Corruption("gaussian", 2.0).corrupt(X, (-1.0, 1.0))
    assert strong.min() == -1
    assert strong.max() == 1


def test_salt_and_pepper_sets_its_share_of_pixels():
    torch.manual_seed(0)
    noisy, known = Corruption("salt_and_pepper", 0.3).corrupt(X, (0.0, 1.0))
    changed = (noisy != X).any(1, keepdim=True)
    assert torch.equal(changed, known == 0)
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.02)
    values = noisy[changed.expand_as(noisy)]
    assert set(values.tolist()) == {0.0, 1.0}
    assert float(values.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", ["mask", "missing"])
def test_masked_pixels_are_zero_and_targets_clean(kind):
    torch.manual_seed(0)
    batch = Corruption(kind, 0.5)({"x": X, "key": ["a"]}, (-1.0, 1.0))
    hidden = batch["x"] == 0
    assert float(hidden.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(batch["target"], X)
    assert batch["key"] == ["a"]
    if kind == "missing":
        assert torch.equal(batch["mask"] == 0, hidden.all(1, keepdim=True))
    else:
        assert "mask" not in batch


def test_a_target_and_a_mask_of_the_data_are_kept():
    mask = torch.ones(40, 1, 16, 16)
    mask[..., :8] = 0
    target = torch.zeros_like(X)
    batch = Corruption("missing", 0.5)({"x": X, "target": target, "mask": mask}, (-1.0, 1.0))
    assert batch["target"] is target
    assert not batch["mask"][..., :8].any()


def test_the_module_compares_with_the_clean_image():
    torch.manual_seed(0)
    model = omnivae.conv_vae(in_channels=1, image_size=8, latent_dim=2, channels=[4, 8])
    config = TrainingConfig(corrupt="gaussian", corrupt_strength=0.5)
    module = VAEModule(model, {"nll": NLL(), "kl": KL()}, config, total_steps=10, steps_per_epoch=5)
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    torch.manual_seed(3)
    _, output, terms = module._losses({"x": x}, 0, sample=False)
    torch.manual_seed(3)
    noisy, _ = Corruption("gaussian", 0.5).corrupt(x, model.value_range)
    expected = model(noisy, sample=False)
    torch.testing.assert_close(output.mean, expected.mean)
    torch.testing.assert_close(terms["nll"], -expected.likelihood.log_prob(x).mean())


def test_missing_pixels_teach_nothing():
    """The gradient of the decoder's output is zero where a pixel is missing."""
    torch.manual_seed(0)
    model = omnivae.conv_vae(in_channels=1, image_size=8, latent_dim=2, channels=[4, 8])
    batch = Corruption("missing", 0.5)({"x": torch.rand(3, 1, 8, 8) * 2 - 1}, model.value_range)
    output = model(batch["x"], sample=True)
    mean = output.likelihood.mean
    (gradient,) = torch.autograd.grad(NLL()(output, batch), mean)
    assert not gradient[0][batch["mask"] == 0].any()
    assert gradient[0][batch["mask"] == 1].any()


def test_strengths_out_of_range_are_refused():
    for kind, strength in (("gaussian", 0.0), ("mask", 1.0), ("salt_and_pepper", -0.1), ("missing", float("nan"))):
        with pytest.raises(ValueError, match="corrupt_strength"):
            TrainingConfig(corrupt=kind, corrupt_strength=strength)
    with pytest.raises(ValueError, match="corrupt='fog'"):
        TrainingConfig(corrupt="fog", corrupt_strength=0.1)
    with pytest.raises(ValueError, match="without a corruption"):
        TrainingConfig(corrupt_strength=0.1)
