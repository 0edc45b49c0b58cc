"""VAE-GAN: which term trains which part, and both sides' losses computed by hand."""

import copy

import pytest
import torch
from torch import nn

from omnivae.losses import VAEGAN
from omnivae.recipes import vae_gan
from omnivae.recipes.convolutional import kl_autoencoder
from omnivae.training import TrainingConfig, VAEModule
from omnivae.training.opponents import detached

bce = nn.functional.binary_cross_entropy_with_logits


def model_of(**arguments):
    torch.manual_seed(0)
    small = {"image_size": 14, "latent_dim": 3, "channels": (4, 6), "norm": "none"}
    return vae_gan(**small | arguments).double()


def loss_of(model, **arguments):
    """The loss beside its model, as the trainer sets it up; the discriminator without the batch's statistics."""
    loss = VAEGAN(**{"channels": 4, "num_layers": 2, "layer": 2} | arguments)
    VAEModule(model, {"vae_gan": loss}, TrainingConfig(), total_steps=1, steps_per_epoch=1)
    loss.decode = model.likelihood
    return loss.double().eval()


def batch_of(model, n=4, side=14):
    generator = torch.Generator().manual_seed(1)
    return {"x": 2 * torch.rand(n, 3, *(side,) * model.dim, generator=generator).double() - 1}


def gradients(value, module):
    return torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)


def test_the_gans_term_trains_the_decoder_and_leaves_the_encoder_alone():
    model = model_of()
    batch = batch_of(model)
    output = model(batch["x"])
    both, plain = loss_of(model, adversarial=10.0), loss_of(model, adversarial=0.0)
    plain.opponent = both.opponent
    with_gan, without = both(output, batch), plain(output, batch)
    for part in (model.encoder, model.posterior):
        for left, right in zip(gradients(with_gan, part), gradients(without, part), strict=True):
            assert torch.equal(left, right)
            assert right.abs().sum() > 0
    # The difference is the GAN's term by itself: no way leads from it to the encoder.
    gan = torch.autograd.grad(with_gan - without, [*model.encoder.parameters()], retain_graph=True)
    assert all(not g.any() for g in gan)
    changed = zip(gradients(with_gan, model.decoder), gradients(without, model.decoder), strict=True)
    assert not any(torch.equal(left, right) for left, right in changed)
    assert not any(p.requires_grad for p in both.opponent.parameters())


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_images_are_compared_by_the_convolutions_features(layer):
    model = model_of()
    loss, batch = loss_of(model, adversarial=0.0, layer=layer), batch_of(model)
    output = model(batch["x"])
    seen = []
    convolutions = [m for m in loss.opponent.modules() if isinstance(m, nn.Conv2d)]
    after = [m for m in loss.opponent.modules() if isinstance(m, nn.LeakyReLU)][layer - 1]
    hook = after.register_forward_hook(lambda module, inputs, found: seen.append(found.detach()))
    loss.opponent(batch["x"])
    loss.opponent(output.reconstruction)
    hook.remove()
    assert seen[0].shape[1] == convolutions[layer - 1].out_channels
    expected = 0.5 * (seen[0] - seen[1]).square().sum() / len(batch["x"])
    assert loss(output, batch).item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_decoder_is_asked_to_deceive_with_reconstructions_and_samples():
    model = model_of()
    loss, batch = loss_of(model, adversarial=2.0), batch_of(model)
    output = model(batch["x"])
    torch.manual_seed(5)
    value = loss(output, batch)
    torch.manual_seed(5)
    drawn = output.latents[0].prior.sample().double()
    ones, d = torch.ones((), dtype=torch.float64), loss.opponent
    sampled = model.decode(drawn)[..., :14, :14]
    deceived = [bce(d(images), ones.expand_as(d(images))) for images in (output.reconstruction, sampled)]
    loss.adversarial = 0.0
    expected = loss(output, batch) + 2.0 * sum(deceived)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_discriminators_loss_is_the_cross_entropy_of_images_reconstructions_and_samples():
    model = model_of()
    loss, batch = loss_of(model), batch_of(model)
    output = detached(model(batch["x"]))
    loss.opponent.requires_grad_(True)
    torch.manual_seed(5)
    value = loss.opponent_loss(output, batch)
    torch.manual_seed(5)
    sampled = model.decode(output.latents[0].prior.sample().double())[..., :14, :14].detach()
    expected = 0.0
    for images, label in ((batch["x"], 1.0), (output.reconstruction, 0.0), (sampled, 0.0)):
        logits = loss.opponent(images)
        expected = expected + bce(logits, torch.full_like(logits, label))
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    value.backward()
    assert all(p.grad is not None for p in loss.opponent.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_training_the_discriminator_tells_images_from_what_the_model_makes():
    model = model_of()
    loss, batch = loss_of(model), batch_of(model)
    output = detached(model(batch["x"]))
    loss.opponent.requires_grad_(True)
    optimizer = torch.optim.Adam(loss.opponent.parameters(), lr=1e-2)
    before = copy.deepcopy(loss.opponent)
    for _ in range(30):
        optimizer.zero_grad()
        loss.opponent_loss(output, batch).backward()
        optimizer.step()
    with torch.no_grad():
        gap = [float(d(batch["x"]).mean() - d(output.reconstruction).mean()) for d in (before, loss.opponent)]
    assert gap[1] > gap[0] + 1


def test_spatial_latents_and_sizes_that_are_padded():
    torch.manual_seed(0)
    model = kl_autoencoder(latent_dim=2, channels=(4, 4, 4), num_res_blocks=1, num_groups=2).double()
    loss, batch = loss_of(model), {"x": torch.rand(2, 3, 14, 18).double()}
    assert loss(model(batch["x"]), batch).isfinite()


@pytest.mark.parametrize(
    "arguments",
    [{"adversarial": -1.0}, {"layer": 0}, {"layer": 5}, {"channels": 0}, {"discriminator_learning_rate": 0.0}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        VAEGAN(**arguments)


def test_what_is_missing_is_asked_for():
    model = model_of()
    batch = batch_of(model)
    output = model(batch["x"])
    with pytest.raises(ValueError, match="call build"):
        VAEGAN()(output, batch)
    loss = loss_of(model)
    loss.decode = None
    with pytest.raises(ValueError, match="set its decode"):
        loss(output, batch)
