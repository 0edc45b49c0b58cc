"""The VAE's wiring, on small networks of our own."""

import pytest
import torch
from torch import nn
from vae_test_networks import VAETestDecoder, VAETestEncoder, build, build_vector, images

from omnivae.distributions import DiagonalGaussian
from omnivae.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
)
from omnivae.types import Network


@pytest.fixture
def model():
    return build().eval()


# -- what comes out


def test_the_networks_of_this_file_keep_the_protocol():
    assert isinstance(VAETestEncoder(), Network)
    assert isinstance(VAETestDecoder(), Network)


def test_the_output_unpacks_and_has_its_names(model):
    x = images(8, 12)
    output = model(x)
    reconstruction, mean, logvar = output
    assert reconstruction.shape == x.shape
    assert mean.shape == logvar.shape == output.z.shape == (2, 5, 2, 3)
    assert output.recon_x is reconstruction
    assert output.reconstruction is reconstruction
    assert len(output.latents) == 1
    assert output.likelihood.event_shape == (3, 8, 12)


def test_the_kind_of_every_part(model):
    output = model.train()(images(8, 8), num_samples=3)
    latent = output.latents[0]
    assert isinstance(latent.posterior, DiagonalGaussian)
    assert latent.z.shape == (3, 2, 5, 2, 2)
    assert latent.log_q.shape == (3, 2)
    assert latent.prior.batch_shape == (2,)
    assert latent.prior.event_shape == (5, 2, 2)
    torch.testing.assert_close(latent.log_q, latent.posterior.log_prob(latent.z))


def test_encode_is_deterministic_and_leaves_the_random_state_alone(model):
    x = images(8, 8)
    for mode in (True, False):
        model.train(mode)
        state = torch.get_rng_state()
        one, two = model.encode(x), model.encode(x)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.logvar, two.logvar)


def test_the_forward_pass_is_deterministic_in_evaluation_and_random_in_training(model):
    x = images(8, 8)
    state = torch.get_rng_state()
    assert torch.equal(model(x).reconstruction, model(x).reconstruction)
    assert torch.equal(model(x).z, model.encode(x).mode())
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model(x).z, model(x).z)


def test_sampling_can_be_asked_for_and_refused(model):
    x = images(8, 8)
    assert not torch.equal(model(x, sample=True).z, model(x, sample=True).z)
    model.train()
    assert torch.equal(model(x, sample=False).z, model.encode(x).mean)


def test_the_seed_decides_the_samples(model):
    x = images(8, 8)
    torch.manual_seed(5)
    one = model(x, sample=True).reconstruction
    torch.manual_seed(5)
    assert torch.equal(model(x, sample=True).reconstruction, one)


def test_decode_takes_what_encode_returns(model):
    x = images(8, 8)
    posterior = model.encode(x)
    assert torch.equal(model.decode(posterior), model(x).reconstruction)
    assert torch.equal(model.decode(posterior.mode()), model.decode(posterior))
    assert torch.equal(model.decode(posterior), model.likelihood(posterior).mean)


def test_decode_is_the_mean_of_the_likelihood():
    model = build(likelihood=BernoulliLikelihood(), value_range=(0.0, 1.0)).eval()
    x = images(8, 8).abs()
    z = model.encode(x).mode()
    torch.testing.assert_close(model.decode(z), torch.sigmoid(model.decoder(z)))


def test_gradients_reach_every_parameter():
    model = build(likelihood=GaussianLikelihood("learned"))
    x = images(7, 9)
    output = model(x)
    (output.latents[0].posterior.kl().mean() - output.likelihood.log_prob(x).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(model):
    x = images(9, 6, n=4)
    torch.testing.assert_close(model(x[2:3]).reconstruction, model(x).reconstruction[2:3])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_to_three_axes(dim):
    model = build(dim=dim).eval()
    x = images(*(5, 9, 4)[:dim])
    output = model(x)
    assert output.reconstruction.shape == x.shape
    assert output.z.shape == (2, 5, *(2, 3, 1)[:dim])
    assert output.latents[0].posterior.kl().shape == (2,)
    assert model.sample(3, size=(5, 9, 4)[:dim]).shape == (3, *x.shape[1:])


# -- sizes


@torch.no_grad()
def test_every_size_from_1_to_20_comes_back(model):
    for h in range(1, 21):
        for w in range(1, 21):
            x = images(h, w, n=1)
            assert model.decode(model.encode(x)).shape == x.shape
            assert model(x).reconstruction.shape == x.shape
            assert model.encode(x).shape[2:] == (-(-h // 4), -(-w // 4)) == model.latent_size((h, w))


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (20, 4)])
def test_multiples_of_the_stride_reach_the_encoder_untouched(model, size):
    x = images(*size)
    posterior = model.encode(x)
    assert model.encoder.seen is x
    assert posterior.input_size == size


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (3, 5), (7, 4), (9, 18)])
def test_padding_repeats_the_last_row_and_column(model, size):
    x = images(*size)
    posterior = model.encode(x)
    seen = model.encoder.seen
    h, w = seen.shape[2:]
    assert (h, w) == model.padded_size(size) == tuple(-(-n // 4) * 4 for n in size)
    expected = nn.functional.pad(x, (0, w - size[1], 0, h - size[0]), mode="replicate")
    assert torch.equal(seen, expected)
    assert posterior.input_size == size


def test_cropping_keeps_the_top_left(model):
    x = images(5, 6)
    posterior = model.encode(x)
    assert torch.equal(model.decode(posterior), model.decode(posterior.mode())[..., :5, :6])
    assert model.decode(posterior.mode()).shape == (2, 3, 8, 8)
    assert model.decode(posterior.mode(), size=(7, 3)).shape == (2, 3, 7, 3)
    assert model.decode(posterior, size=(8, 8)).shape == (2, 3, 8, 8)


def test_the_likelihood_is_that_of_the_cropped_image(model):
    x = images(5, 6)
    log_p = model(x).likelihood.log_prob(x)
    loc = model.decoder(model.encode(x).mode())[..., :5, :6]
    expected = torch.distributions.Normal(loc, 0.5).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(log_p[0], expected)


@pytest.mark.parametrize(("canvas", "padded"), [((8, 8), (8, 8)), ((6, 7), (8, 8))])
def test_a_vector_latent_pads_smaller_images_to_its_canvas(canvas, padded):
    model = build_vector(canvas, padded).eval()
    for h in range(1, canvas[0] + 1):
        x = images(h, canvas[1])
        output = model(x)
        assert model.encoder.seen.shape[2:] == padded
        assert output.z.shape == (2, 5)
        assert output.reconstruction.shape == x.shape == model.decode(model.encode(x)).shape
    assert model.latent_size(canvas) == ()
    assert model.decode(torch.zeros(2, 5)).shape == (2, 3, *canvas)
    assert model.sample(3).shape == (3, 3, *canvas)
    with pytest.raises(ValueError, match=f"got an image of size 9x7.*at most {canvas[0]}x{canvas[1]}"):
        model.encode(images(9, 7))


# -- K samples


@pytest.mark.parametrize("k", [1, 2, 5])
def test_num_samples_is_the_leading_axis(model, k):
    x = images(6, 7, n=3)
    output = model.train()(x, num_samples=k)
    assert output.latents[0].z.shape == (k, 3, 5, 2, 2)
    assert output.latents[0].log_q.shape == (k, 3)
    assert output.likelihood.batch_shape == (k, 3)
    assert output.likelihood.log_prob(x).shape == (k, 3)
    assert output.reconstruction.shape == x.shape
    assert torch.equal(output.reconstruction, output.likelihood.mean[0])


def test_several_samples_are_drawn_in_evaluation_too(model):
    output = model(images(4, 4), num_samples=2)
    assert not torch.equal(output.latents[0].z[0], output.latents[0].z[1])


@pytest.mark.parametrize(
    "likelihood",
    [
        GaussianLikelihood("per_pixel"),
        LaplaceLikelihood("learned"),
        CategoricalLikelihood(4),
        DiscretizedLogisticLikelihood(),
    ],
    ids=lambda m: type(m).__name__,
)
@torch.no_grad()
def test_the_likelihood_of_k_samples_is_that_of_each(likelihood):
    model = build(likelihood=likelihood).eval()
    z, x = torch.randn(4, 2, 5, 2, 2), images(6, 7)
    dist = model.likelihood(z, size=(6, 7))
    assert dist.batch_shape == (4, 2)
    assert dist.event_shape == (3, 6, 7)
    expected = torch.stack([model.likelihood(one, size=(6, 7)).log_prob(x) for one in z])
    torch.testing.assert_close(dist.log_prob(x), expected, rtol=1e-5, atol=1e-4)
    assert model.decode(z).shape == (4, 2, 3, 8, 8)


def test_k_samples_of_a_vector_latent():
    model = build_vector().eval()
    z = torch.randn(4, 2, 5)
    assert model.likelihood(z).batch_shape == (4, 2)
    torch.testing.assert_close(model.decode(z)[1], model.decode(z[1]))


@pytest.mark.parametrize("shape", [(5,), (5, 2, 2), (1, 1, 1, 5, 2, 2)])
def test_latents_of_a_wrong_number_of_axes_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"got z of shape|got z with"):
        model.likelihood(torch.zeros(shape))


def test_latents_of_a_wrong_number_of_channels_are_refused(model):
    with pytest.raises(ValueError, match="got z with 4 channels; this model's latent has 5"):
        model.decode(torch.zeros(2, 4, 2, 2))


def test_the_condition_of_each_image_reaches_each_of_its_samples():
    model = build(conditional=True).eval()
    x, cond = images(4, 4), torch.randn(2, 2)
    z = torch.randn(3, 2, 5, 1, 1)
    together = model.decode(z, cond)
    torch.testing.assert_close(together, torch.stack([model.decode(one, cond) for one in z]))
    assert not torch.allclose(model.encode(x, cond).mean, model.encode(x, cond.flip(0)).mean)
    assert model(x, cond, num_samples=3).likelihood.log_prob(x).shape == (3, 2)


# -- samples


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_sample_sizes(model, n, size):
    x = model.sample(n, size=size)
    assert x.shape == (n, 3, *size)
    assert not x.requires_grad
    assert x.min() >= -1
    assert x.max() <= 1


def test_sample_knows_the_training_size_or_asks_for_it(model):
    with pytest.raises(ValueError, match="size"):
        model.sample(2)
    model.statistics["image_size"] = [6, 9]
    assert model.sample(2).shape == (2, 3, 6, 9)


def test_a_generator_makes_samples_reproducible_and_leaves_the_global_state_alone(model):
    def draw(seed):
        return model.sample(2, size=(8, 8), generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    one = draw(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(draw(3), one)
    assert not torch.equal(draw(4), one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_leaves_the_devices_random_state_alone_too(model):
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    model.sample(2, size=(8, 8), generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_generator_moves_on_between_calls(model):
    generator = torch.Generator().manual_seed(0)
    one = model.sample(2, size=(8, 8), generator=generator)
    assert not torch.equal(model.sample(2, size=(8, 8), generator=generator), one)


def test_the_global_seed_decides_samples_without_a_generator(model):
    torch.manual_seed(3)
    one = model.sample(2, size=(8, 8))
    torch.manual_seed(3)
    assert torch.equal(model.sample(2, size=(8, 8)), one)


def test_the_samples_decode_standard_normal_latents(model):
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.sample(4000, size=(4, 4))
    assert abs(seen[0].mean()) < 0.03
    assert abs(seen[0].std() - 1) < 0.03
    model.sample(4000, size=(4, 4), temperature=0.5)
    assert abs(seen[1].std() - 0.5) < 0.02


def test_temperature_zero_decodes_the_priors_mean(model):
    x = model.sample(2, size=(8, 8), temperature=0.0)
    torch.testing.assert_close(x, model.decode(torch.zeros(2, 5, 2, 2)).clamp(-1, 1))


# -- bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted(model, bad):
    x = images(8, 8)
    x[1, 2, 3, 4] = x[0, 0, 0, 0] = bad
    for call in (model, model.encode):
        with pytest.raises(ValueError, match="got 2 NaN or infinite values in the input"):
            call(x)


def test_opposite_infinities_do_not_cancel(model):
    x = images(8, 8)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = float("inf"), -float("inf")
    with pytest.raises(ValueError, match="got 2 NaN or infinite"):
        model.encode(x)


def test_large_but_finite_values_are_not_mistaken_for_infinite_ones(model):
    x = torch.full((1, 3, 8, 8), 3e38)
    assert model.encode(x).input_size == (8, 8)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_wrong_number_of_channels(model, channels):
    with pytest.raises(ValueError, match=f"got {channels} channels; this model takes 3"):
        model.encode(torch.zeros(2, channels, 8, 8))


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (1, 1, 3, 8, 8), ()])
def test_a_wrong_number_of_axes(model, shape):
    with pytest.raises(ValueError) as error:
        model.encode(torch.zeros(shape))
    assert f"got a tensor of shape {shape}; expected [B, 3" in str(error.value)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_empty_images(model, size):
    with pytest.raises(ValueError, match="empty image"):
        model.encode(torch.zeros(2, 3, *size))


def test_no_samples_are_refused(model):
    with pytest.raises(ValueError, match="k=0"):
        model.train()(images(4, 4), num_samples=0)


@pytest.mark.parametrize("value_range", [(1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_a_value_range_must_rise(value_range):
    with pytest.raises(ValueError, match=r"value_range=.*lowest < highest"):
        build(value_range=value_range)


def test_likelihoods_must_fit_the_value_range():
    with pytest.raises(ValueError, match=r"BernoulliLikelihood is defined on \[0, 1\], got value_range=\(-1.0, 1.0\)"):
        build(likelihood=BernoulliLikelihood())
    with pytest.raises(ValueError, match="make them equal"):
        build(likelihood=CategoricalLikelihood(4, (0.0, 1.0)))


def test_gradient_checkpointing_is_refused_where_nothing_supports_it(model):
    with pytest.raises(ValueError, match="no network of this VAE supports gradient checkpointing"):
        model.enable_gradient_checkpointing()


# -- precision


def test_bf16_autocast_keeps_the_densities_in_float32():
    model = build(likelihood=GaussianLikelihood("learned"))
    x = images(6, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, num_samples=2)
        log_p = output.likelihood.log_prob(x)
        log_prior = output.latents[0].prior.log_prob(output.latents[0].z)
    latent = output.latents[0]
    for value in (
        output.mean,
        output.logvar,
        latent.log_q,
        latent.posterior.kl(),
        log_p,
        log_prior,
        output.reconstruction,
    ):
        assert value.dtype == torch.float32


def test_float64_goes_through_in_float64():
    model = build().double().eval()
    x = images(6, 7).double()
    output = model(x)
    assert {v.dtype for v in (*output, output.z, output.likelihood.log_prob(x), model.sample(1, size=(4, 4)))} == {
        torch.float64
    }
