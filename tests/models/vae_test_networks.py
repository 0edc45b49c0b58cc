"""A strided pair of convolutions and a linear pair, for the tests of this folder."""

import torch
from torch import nn

from omnivae.component import Component
from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class VAETestEncoder(nn.Module, Component):
    """One patch convolution; keeps its last input for the tests to look at."""

    def __init__(self, in_channels=3, out_channels=8, stride=4, dim=2, conditional=False):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dim = in_channels, out_channels, stride, dim
        self.patches = CONV[dim](in_channels, out_channels, stride, stride)
        self.embed = nn.Linear(2, out_channels) if conditional else None

    def forward(self, x, cond=None):
        self.seen = x
        h = torch.tanh(self.patches(x))
        return h if self.embed is None else h + self.embed(cond)[(..., *[None] * self.dim)]


class VAETestDecoder(nn.Module, Component):
    def __init__(self, in_channels=5, out_channels=3, stride=4, dim=2, conditional=False):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dim = in_channels, out_channels, stride, dim
        self.patches = CONV_TRANSPOSE[dim](in_channels, out_channels, stride, stride)
        self.embed = nn.Linear(2, in_channels) if conditional else None

    def forward(self, z, cond=None):
        h = z if self.embed is None else z + self.embed(cond)[(..., *[None] * self.dim)]
        return self.patches(h)


class VAETestVectorEncoder(nn.Module, Component):
    def __init__(self, size=(8, 8), stride=4):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dim = 3, 6, stride, 2
        self.layer = nn.Linear(3 * size[0] * size[1], 6)

    def forward(self, x, cond=None):
        self.seen = x
        return self.layer(x.flatten(1))


class VAETestVectorDecoder(nn.Module, Component):
    def __init__(self, size=(8, 8), stride=4):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dim, self.size = 5, 3, stride, 2, tuple(size)
        self.layer = nn.Linear(5, 3 * size[0] * size[1])

    def forward(self, z, cond=None):
        return self.layer(z).unflatten(1, (3, *self.size))


class VAETestOther(VAE):
    """Another model class."""


def build(cls=VAE, likelihood=None, *, dim=2, conditional=False, latent=5, **kwargs):
    likelihood = likelihood or GaussianLikelihood(0.5)
    return cls(
        VAETestEncoder(dim=dim, conditional=conditional),
        GaussianPosterior(8, latent, dim=dim),
        VAETestDecoder(latent, likelihood.num_parameters(3), dim=dim, conditional=conditional),
        likelihood,
        StandardNormal(),
        **kwargs,
    )


def build_vector(image_size=(8, 8), padded=(8, 8)):
    return VAE(
        VAETestVectorEncoder(padded),
        GaussianPosterior(6, 5, dim=0),
        VAETestVectorDecoder(padded),
        GaussianLikelihood(0.5),
        StandardNormal(),
        image_size=image_size,
    )


def images(*size, n=2):
    return torch.rand(n, 3, *size) * 2 - 1
