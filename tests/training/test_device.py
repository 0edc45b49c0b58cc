"""Settings for inference do not change what volumes are."""

import copy

import torch

from omnivae import MaisiVAE
from omnivae.training.device import for_inference


def test_volumes_on_a_cpu_keep_the_digits_of_float32():
    torch.manual_seed(0)
    model = MaisiVAE(num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2).eval()
    x = torch.rand(1, 1, 96, 96, 48) + 0.5  # a mean far from zero, over which sums lose digits
    with torch.no_grad():
        exact = copy.deepcopy(model).double().encode(x.double()).mean
        fast = for_inference(model, precision="32").encode(x).mean
    assert float((fast - exact).abs().max()) < 1e-5 * float(exact.std())
