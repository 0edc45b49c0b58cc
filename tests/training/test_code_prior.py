"""The second stage: broken off and continued it is the same, and its figures are what they say."""

import json
import math

import pytest
import torch
from training_toys import Images, assert_equal_tensors

from omnivae import residual_vq_vae
from omnivae.jobs.prior import CodeDataset, code_likelihood, encode_codes, unigram_bits
from omnivae.losses.codes import CodeNLL
from omnivae.models.codes import CodeModel
from omnivae.priors import AutoregressivePrior
from omnivae.training import TrainingConfig, fit


def network():
    torch.manual_seed(1)
    return AutoregressivePrior(5, (3,), width=8, depth=1, num_heads=2, dropout=0.1)


def stage(directory, steps):
    model = CodeModel(network())
    codes = torch.randint(5, (24, 3), generator=torch.Generator().manual_seed(0))
    data = CodeDataset(codes, [str(i) for i in range(24)])
    directory.mkdir(exist_ok=True)
    saved = []
    fit(
        model,
        {"code_nll": CodeNLL()},
        data,
        data,
        config=TrainingConfig(batch_size=4, max_steps=steps, precision="32", warmup_steps=0, schedule="constant"),
        directory=directory,
        save_model=lambda m: saved.append({k: v.clone() for k, v in m.state_dict().items()}),
        progress=False,
    )
    return saved[-1]


def test_a_second_stage_continues_bit_for_bit(tmp_path):
    whole = stage(tmp_path / "whole", 6)
    stage(tmp_path / "parts", 3)
    assert_equal_tensors(stage(tmp_path / "parts", 6), whole)


def test_figures_of_an_untrained_prior_are_those_of_the_uniform():
    codes = torch.randint(5, (40, 3))
    found = code_likelihood(network(), codes, codes, 12)
    assert found.bits_per_code == pytest.approx(math.log2(5), abs=1e-5)
    assert found.uniform_bits == math.log2(5)
    assert found.bits_per_dim == pytest.approx(3 * math.log2(5) / 12, abs=1e-5)
    json.dumps(found.lines())


def test_unigram_bits_equal_the_computation_by_hand():
    train, held_out = torch.tensor([[0, 0], [0, 1]]), torch.tensor([[0, 1], [0, 1]])
    # (count + 1) / (4 + 2): 4/6 and 2/6.
    expected = -(0.5 * math.log2(4 / 6) + 0.5 * math.log2(2 / 6))
    assert unigram_bits(train, held_out, 2, 1) == pytest.approx(expected)


def test_codes_are_those_of_the_model():
    torch.manual_seed(0)
    vae = residual_vq_vae(in_channels=1, image_size=8, latent_dim=2, channels=(8, 8), num_codes=6, num_books=2).eval()
    images = Images(5)
    data = [{"x": images.x[i], "key": str(i)} for i in range(5)]
    found = encode_codes(vae, data, progress=False)
    assert torch.equal(found.codes, vae.encode(images.x).indices)
