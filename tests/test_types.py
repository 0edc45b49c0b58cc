"""What a forward pass returns."""

import dataclasses

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from omnivae.distributions import DiagonalGaussian
from omnivae.types import Latent, Network, VAEOutput


@pytest.fixture
def output():
    q = DiagonalGaussian(torch.randn(2, 3), torch.randn(2, 3))
    z, log_q = q.rsample(4)
    likelihood = Independent(Normal(torch.randn(4, 2, 1, 5, 5), 1.0), 3)
    other = DiagonalGaussian(torch.randn(2, 7), torch.randn(2, 7))
    return VAEOutput((Latent(q, None, z, log_q), Latent(other, None, *other.rsample(4))), likelihood)


def test_the_output_unpacks_as_reconstruction_mean_logvar(output):
    reconstruction, mean, logvar = output
    assert torch.equal(reconstruction, output.likelihood.mean[0])
    assert torch.equal(mean, output.latents[0].posterior.mean)
    assert torch.equal(logvar, output.latents[0].posterior.logvar)


def test_names_and_shapes(output):
    assert output.reconstruction.shape == (2, 1, 5, 5)
    assert output.recon_x is output.reconstruction
    assert output.mean.shape == output.logvar.shape == output.z.shape == (2, 3)
    assert torch.equal(output.z, output.latents[0].z[0])


def test_the_reconstruction_is_the_mean_of_the_likelihood(output):
    likelihood = Independent(Bernoulli(logits=torch.randn(1, 2, 1, 5, 5)), 3)
    reconstruction, *_ = VAEOutput(output.latents, likelihood)
    torch.testing.assert_close(reconstruction, torch.sigmoid(likelihood.base_dist.logits[0]))


def test_outputs_and_latents_are_frozen(output):
    for frozen, name in ((output, "likelihood"), (output.latents[0], "z")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, None)


def test_the_network_protocol_asks_for_channels_and_stride():
    class Right:
        in_channels, out_channels, stride = 1, 2, 4

        def __call__(self, x, cond=None):
            return x

    assert isinstance(Right(), Network)
    assert not isinstance(torch.nn.Identity(), Network)
