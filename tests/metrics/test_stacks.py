"""The metric of stack boundaries: against the two reconstructions by hand, and refused where there is no boundary."""

import pytest
import torch

import omnivae
from omnivae.metrics import evaluate
from omnivae.metrics.registry import measurable
from omnivae.models.stacked import stack_boundary, stacked


def model_and_clips():
    torch.manual_seed(0)
    whole = omnivae.kl_autoencoder(
        in_channels=1, channels=(4, 4, 4), num_res_blocks=1, num_groups=2, dim=3, mid_attention=False
    ).eval()
    clips = torch.rand(3, 1, 12, 8, 8) * 2 - 1
    return whole, stacked(whole, stack_size=4), clips


def items(clips):
    return [{"x": clip, "key": str(i)} for i, clip in enumerate(clips)]


def test_it_is_the_difference_at_the_boundaries():
    whole, model, clips = model_and_clips()
    result = evaluate(model, items(clips), ["stack_boundary"], progress=False).metrics["stack_boundary"].mean
    with torch.no_grad():
        parts = torch.cat([whole(part).reconstruction for part in clips.split(4, 2)], 2).clamp(-1, 1)
        difference = (parts - whole(clips).reconstruction.clamp(-1, 1))[:, :, [3, 4, 7, 8]] / 2
    assert result == pytest.approx(difference.square().flatten(1).mean(1).sqrt().mean().item(), rel=1e-3)
    assert result == pytest.approx(stack_boundary(model, clips).rmse_at_boundaries, rel=0.3)


def test_without_boundaries_it_is_refused_or_left_out():
    whole, model, clips = model_and_clips()
    with pytest.raises(ValueError, match="leave it out for a VAE"):
        evaluate(whole, items(clips), ["stack_boundary"], progress=False)
    with pytest.raises(ValueError, match="4 frames at once"):
        evaluate(model, items(clips[:, :, :4]), ["stack_boundary"], progress=False)
    assert measurable(["psnr", "stack_boundary"], whole) == ["psnr"]
    model.statistics = {"image_size": [12, 8, 8]}
    assert measurable(["psnr", "stack_boundary"], model) == ["psnr", "stack_boundary"]
    model.statistics = {"image_size": [4, 8, 8]}
    assert measurable(["psnr", "stack_boundary"], model) == ["psnr"]
