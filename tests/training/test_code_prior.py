"""The second stage: broken off and continued it is the same, and its figures are what they say."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from training_toys import Images, assert_equal_tensors

from omnivae import VAE, conv_vae, residual_vq_vae
from omnivae.cli.main import main
from omnivae.data import DataConfig
from omnivae.jobs.config import RunConfig
from omnivae.jobs.prior import CodeDataset, PriorConfig, code_likelihood, encode_codes, train_prior, unigram_bits
from omnivae.jobs.train import train
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


@pytest.fixture(scope="module")
def quantised_run(tmp_path_factory):
    """A quantised run of two steps on the digits."""
    model = {"recipe": "residual_vq_vae", "latent_dim": 2, "channels": [4, 4], "num_codes": 4, "num_books": 2}
    settings = TrainingConfig(batch_size=8, max_steps=2, precision="32", val_images=8)
    config = RunConfig(model, DataConfig("digits", limit=40), {"nll": {}, "commitment": {}}, settings)
    directory = tmp_path_factory.mktemp("quantised") / "run"
    train(config, directory, progress=False, report=False)
    return directory


def test_a_second_stage_from_a_run_to_images_that_continues_and_refuses_another(quantised_run, tmp_path):
    settings = TrainingConfig(batch_size=8, max_steps=3, precision="32", val_images=8)
    small = PriorConfig(width=8, depth=1, num_heads=2)
    output = tmp_path / "prior"

    def second_stage(**changed):
        return train_prior(quantised_run, output, prior=small, training=replace(settings, **changed), progress=False)

    result, likelihood = second_stage()
    assert (result.step, result.complete) == (3, True)
    # Four codes, barely trained: hardly better than two bits, and each image has its positions' two books.
    assert likelihood.bits_per_code == pytest.approx(2, abs=0.3)
    assert likelihood.low <= likelihood.bits_per_code <= likelihood.high
    assert json.loads((output / "likelihood.json").read_text()) == asdict(likelihood)
    joint, first = VAE.from_pretrained(output / "model"), VAE.from_pretrained(quantised_run / "model")
    x = 2 * torch.rand(3, 1, 8, 8) - 1
    assert torch.equal(joint.encode(x).indices, first.encode(x).indices)
    assert likelihood.codes == first.encode(x[:1]).indices.numel()
    assert main(["sample", str(output), "--n", "2", "--output", str(tmp_path / "s.png")]) == 0
    assert (tmp_path / "s.png").stat().st_size
    result, _ = second_stage(max_steps=5)
    assert result.step == 5
    with pytest.raises(FileExistsError, match=r"holds another prior \(training differ\)"):
        second_stage(learning_rate=0.5)


def test_a_second_stage_is_of_one_process_and_of_a_model_with_codes(quantised_run, tmp_path):
    with pytest.raises(ValueError, match=r"training.devices=2.*by one process: leave training.devices out"):
        train_prior(quantised_run, tmp_path / "a", training=TrainingConfig(devices=2), progress=False)
    torch.manual_seed(0)
    conv_vae(in_channels=1, image_size=8, channels=(4,), latent_dim=2).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has no codes \(GaussianPosterior\): train vq_vae"):
        train_prior(tmp_path / "plain", tmp_path / "b", path="digits", progress=False)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
