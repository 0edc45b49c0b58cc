"""Training against a discriminator: who changes when, exact resume, and that the model's own optimisation is untouched."""

import copy
import hashlib

import pytest
import torch
from training_toys import assert_equal_tensors, last_checkpoint, rows, run, tensors_of, training_rows

from omnivae.losses import GAN, KL, L1, NLL, VF
from omnivae.models import VAE
from omnivae.recipes import conv_vae
from omnivae.training import TrainingConfig, VAEModule, fit
from omnivae.training.combinations import check
from omnivae.training.opponents import Opponents, average_over_processes, detached


def toy_model(**arguments):
    torch.manual_seed(5)
    return conv_vae(
        **{"in_channels": 1, "image_size": 8, "latent_dim": 3, "channels": [4], "norm": "none", "value_range": (-1, 1)}
        | arguments
    )


def losses(**arguments):
    gan = GAN(**{"weight": 0.5, "channels": 4, "num_layers": 1, "discriminator_learning_rate": 1e-3} | arguments)
    return {"l1": L1(), "kl": KL(weight=1e-3), "gan": gan}


def digest(module):
    h = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        h.update(name.encode() + value.detach().numpy().tobytes())
    return h.hexdigest()


def discriminator_of(directory, key="current_model_state"):
    state = last_checkpoint(directory)[key]
    return {name: value for name, value in state.items() if "opponent" in name}


# -- forty steps


def test_stage_two_changes_decoder_and_discriminator_and_not_the_encoder(tmp_path):
    model, terms = toy_model(), losses()
    VAEModule(model, terms, TrainingConfig(), total_steps=1, steps_per_epoch=1)  # builds the discriminator
    before = copy.deepcopy(terms["gan"].opponent.state_dict())
    frozen = digest(model.encoder), digest(model.posterior)
    decoder = digest(model.decoder)
    result, _, saved = run(tmp_path, model, terms, max_steps=40, freeze=("encoder", "posterior"), ema=0.9)
    assert result.step == 40
    assert (digest(model.encoder), digest(model.posterior)) == frozen
    assert digest(model.decoder) != decoder
    after = {name.removeprefix("losses.gan.opponent."): value for name, value in discriminator_of(tmp_path).items()}
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    # The model directory's weights are the model's and nothing else.
    assert saved[-1].keys() == model.state_dict().keys()
    assert not any("opponent" in name or "losses" in name for name in saved[-1])


def test_the_discriminator_learns_to_tell_images_from_reconstructions(tmp_path):
    terms = losses(weight=1e-6, adaptive=False, discriminator_learning_rate=1e-2)
    run(tmp_path, toy_model(), terms, max_steps=40, learning_rate=1e-6)
    values = [row["train/gan_opponent"] for row in training_rows(tmp_path)]
    assert len(values) == 40
    assert sum(values[-5:]) / 5 < 0.5 * sum(values[:5]) / 5


def test_the_saved_model_directory_holds_no_discriminator(tmp_path):
    from training_toys import Images

    settings = TrainingConfig(batch_size=4, max_steps=2, precision="32")
    model = toy_model()
    fit(
        model,
        losses(),
        Images(),
        None,
        config=settings,
        directory=tmp_path,
        save_model=lambda trained: trained.save_pretrained(tmp_path / "model"),
        progress=False,
    )
    from safetensors.torch import load_file

    assert load_file(tmp_path / "model" / "model.safetensors").keys() == model.state_dict().keys()
    assert "gan" not in (tmp_path / "model" / "config.json").read_text().lower()
    assert isinstance(VAE.from_pretrained(tmp_path / "model"), VAE)


# -- start_step


def test_before_start_step_the_run_is_the_run_without_a_gan(tmp_path):
    plain = {name: loss for name, loss in losses().items() if name != "gan"}
    _, without, _ = run(tmp_path / "without", toy_model(), plain, max_steps=4)
    terms = losses(start_step=4)
    _, before, _ = run(tmp_path / "before", toy_model(), terms, max_steps=4)
    assert_equal_tensors(before.state_dict(), without.state_dict())
    assert all(row["train/gan"] == 0 and row["train/weight/gan"] == 0 for row in training_rows(tmp_path / "before"))
    assert not any("train/gan_opponent" in row for row in training_rows(tmp_path / "before"))


def test_from_start_step_on_both_sides_play(tmp_path):
    run(tmp_path, toy_model(), losses(start_step=3), max_steps=6, checkpoint_every=3)
    found = training_rows(tmp_path)
    assert [row["step"] for row in found if "train/gan_opponent" in row] == [4, 5, 6]
    assert [row["step"] for row in found if row["train/weight/gan"] > 0] == [4, 5, 6]
    assert [row["step"] for row in found if row["train/gan"] != 0] == [4, 5, 6]


# -- the model's own optimisation


def test_the_step_count_is_the_models(tmp_path):
    result, _, _ = run(tmp_path, toy_model(), losses(), max_steps=5)
    checkpoint = last_checkpoint(tmp_path)
    assert (result.step, checkpoint["global_step"]) == (5, 5)
    steps = [state["step"].item() for state in callback_state(checkpoint)["gan"]["state"].values()]
    assert set(steps) == {5}


def callback_state(checkpoint):
    return next(state for name, state in checkpoint["callbacks"].items() if "Opponents" in name)


def test_the_discriminator_is_in_no_optimiser_of_the_model():
    module = VAEModule(toy_model(), losses(), TrainingConfig(), total_steps=2, steps_per_epoch=1)
    optimizer = module.configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.vae.parameters()}
    assert not trained & {id(p) for p in module.losses["gan"].opponent.parameters()}


def test_opponents_do_not_count_in_the_gradient_norm(tmp_path):
    """With a weight of nearly nothing the model's gradients, and so its norm, are those of a run without a GAN."""
    plain = {name: loss for name, loss in losses().items() if name != "gan"}
    run(tmp_path / "without", toy_model(), plain, max_steps=4, accumulate=2, gradient_clip=0.1)
    run(
        tmp_path / "with",
        toy_model(),
        losses(weight=1e-20, adaptive=False),
        max_steps=4,
        accumulate=2,
        gradient_clip=0.1,
    )
    norms = [[row["train/grad_norm"] for row in training_rows(tmp_path / name)] for name in ("without", "with")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


class TwoOfEach:
    """Each image twice: a batch of two equal halves."""

    def __init__(self, n=8):
        self.x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[0]}


def test_accumulated_opponent_gradients_are_those_of_the_whole_batch(tmp_path, monkeypatch):
    """All images are equal and the noise is off, so that two batches of two are one batch of four."""
    monkeypatch.setattr("omnivae.distributions.DiagonalGaussian.rsample", lambda q, k=1: (q.mean[None], None))
    terms = {name: {"l1": L1(), "gan": losses()["gan"]} for name in ("whole", "parts")}
    run(tmp_path / "whole", toy_model(), terms["whole"], train=TwoOfEach(), max_steps=3, batch_size=4)
    run(tmp_path / "parts", toy_model(), terms["parts"], train=TwoOfEach(), max_steps=3, batch_size=2, accumulate=2)
    weights = [discriminator_of(tmp_path / name) for name in ("whole", "parts")]
    for name in weights[0]:
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(weights[0][name], weights[1][name], atol=1e-5), name
    assert training_rows(tmp_path / "parts")[0]["train/gan_opponent"] == pytest.approx(
        training_rows(tmp_path / "whole")[0]["train/gan_opponent"], rel=1e-5
    )


def test_the_opponents_learning_rate_follows_the_models_schedule(tmp_path):
    run(tmp_path, toy_model(), losses(), max_steps=4, schedule="cosine", learning_rate=0.02)
    rate = callback_state(last_checkpoint(tmp_path))["gan"]["param_groups"][0]["lr"]
    share = training_rows(tmp_path)[-1]["train/lr"] / 0.02
    assert rate == pytest.approx(1e-3 * share, rel=1e-5)
    assert 0 < share < 1


# -- resume


@pytest.mark.parametrize("arguments", [{}, {"accumulate": 2, "ema": 0}], ids=["plain", "accumulated"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(arguments, tmp_path):
    common = {"checkpoint_every": 3} | arguments
    _, whole, _ = run(tmp_path / "whole", toy_model(), losses(start_step=2), max_steps=6, **common)
    run(tmp_path / "parts", toy_model(), losses(start_step=2), max_steps=3, **common)
    _, parts, _ = run(tmp_path / "parts", toy_model(), losses(start_step=2), max_steps=6, **common)
    assert_equal_tensors(parts.state_dict(), whole.state_dict())
    left, right = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts")
    key = "state_dict" if arguments else "current_model_state"
    assert discriminator_of(tmp_path / "whole", key)
    for part in (key, "optimizer_states"):
        assert_equal_tensors(tensors_of(left[part]), tensors_of(right[part]))
    assert_equal_tensors(tensors_of(callback_state(left)), tensors_of(callback_state(right)))
    columns = ("train/total", "train/gan", "train/gan_opponent", "train/weight/gan")
    for a, b in zip(training_rows(tmp_path / "whole"), training_rows(tmp_path / "parts"), strict=True):
        assert [a.get(c) for c in columns] == [b.get(c) for c in columns]


def test_two_runs_of_one_seed_have_the_same_discriminator(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)
        terms = losses()
        run(tmp_path / name, toy_model(), terms, max_steps=2)
    assert_equal_tensors(discriminator_of(tmp_path / "a"), discriminator_of(tmp_path / "b"))


# -- pieces


def test_validation_and_log_report_the_gan(tmp_path):
    from training_toys import Images

    run(tmp_path, toy_model(), losses(), val=Images(4, seed=1), max_steps=4, validate_every=2)
    found = [row for row in rows(tmp_path) if "val/total" in row]
    assert [row["step"] for row in found] == [2, 4]
    assert all("val/gan" in row for row in found)


def test_a_kept_output_has_its_values_and_no_graph():
    output = toy_model().train()(torch.rand(2, 1, 8, 8))
    output.reconstruction.sum()
    twin = detached(output)
    pairs = [(twin.reconstruction, output.reconstruction), (twin.z, output.z), (twin.mean, output.mean)]
    pairs += [(twin.logvar, output.logvar), (twin.likelihood.base_dist.loc, output.likelihood.base_dist.loc)]
    for kept, original in pairs:
        assert torch.equal(kept, original)
        assert original.requires_grad
        assert not kept.requires_grad
    assert not twin.latents[0].log_q.requires_grad


def test_the_module_keeps_no_graph_between_steps():
    module = VAEModule(toy_model(), losses(), TrainingConfig(precision="32"), total_steps=2, steps_per_epoch=1)
    module._trainer = type("Trainer", (), {"global_step": 0})()
    total = module.training_step({"x": torch.rand(2, 1, 8, 8)}, 0)
    assert total.requires_grad
    kept = [module.last_output.reconstruction, module.last_output.z, module.losses["gan"].balance]
    kept += [v for v in module.scalars.values() if isinstance(v, torch.Tensor)]
    assert not any(v.requires_grad for v in kept)


def test_an_adaptive_loss_alone_is_refused():
    with pytest.raises(ValueError, match=r"add l1 or nll, or set losses\.gan\.adaptive to false"):
        check(toy_model(), {"gan": GAN()})
    check(toy_model(), {"gan": GAN(adaptive=False)})


def test_gradients_are_averaged_over_processes(monkeypatch):
    """Two processes, the other one's gradients being three times ours."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(4))
    gradients = [torch.ones(2), torch.full((1,), 3.0)]
    average_over_processes(gradients)
    assert [g.tolist() for g in gradients] == [[2.0, 2.0], [6.0]]


def test_only_losses_with_an_opponent_are_stepped():
    module = VAEModule(toy_model(), losses(), TrainingConfig(), total_steps=2, steps_per_epoch=1)
    assert list(Opponents(dict(module.losses), 1e-3).losses) == ["gan"]


# -- the VF loss in training


@pytest.fixture
def vf(tmp_path):
    import timm

    torch.manual_seed(1)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.pth")
    return lambda **arguments: VF(weights_path=tmp_path / "vit.pth", model="test_vit", **arguments)


def spatial_model(**arguments):
    from omnivae.recipes import TransVAE

    torch.manual_seed(5)
    sizes = {"depths": [1, 1, 1], "base_dims": [16, 16, 16], "compression_ratio": 4, "head_dim": 16, "latent_dim": 4}
    return TransVAE("tiny", in_channels=1, input_resolution=8, **sizes | arguments)


@pytest.mark.parametrize("freeze", [(), ("encoder", "posterior")], ids=["whole", "decoder"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_all_losses_of_document_3_train_together(vf, tmp_path, freeze, gradient_checkpointing):
    terms = {"l1": L1(per_element=True), "kl": KL(1e-8), "vf": vf(margin_cosine=0.1), "gan": losses()["gan"]}
    _, model, saved = run(
        tmp_path / "run",
        spatial_model(),
        terms,
        max_steps=3,
        freeze=freeze,
        gradient_checkpointing=gradient_checkpointing,
    )
    found = training_rows(tmp_path / "run")
    assert all(row["train/vf"] > 0 and row["train/weight/vf"] > 0 for row in found)
    balanced = [row["train/weight/vf"] != pytest.approx(0.1) for row in found]
    assert all(balanced) if not freeze else not any(balanced)
    state = last_checkpoint(tmp_path / "run")["current_model_state"]
    assert state["losses.vf.projection.weight"].shape == (64, 4, 1, 1)
    assert not any("features" in name for name in state if name.startswith("losses.vf"))
    assert saved[-1].keys() == model.state_dict().keys()


def test_gradient_checkpointing_leaves_the_balance_alone(vf, tmp_path):
    weights = {}
    for on in (False, True):
        run(tmp_path / str(on), spatial_model(), {"nll": NLL(), "vf": vf()}, max_steps=2, gradient_checkpointing=on)
        weights[on] = [row["train/weight/vf"] for row in training_rows(tmp_path / str(on))]
    assert weights[True] == pytest.approx(weights[False], rel=1e-4)


def test_the_projection_is_trained_by_the_models_optimiser(vf):
    module = VAEModule(spatial_model(), {"l1": L1(), "vf": vf()}, TrainingConfig(), total_steps=2, steps_per_epoch=1)
    trained = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.vae.parameters()} | {id(module.losses["vf"].projection.weight)}


def test_vf_refuses_a_vector_latent(vf):
    with pytest.raises(ValueError, match="2-D latent"):
        VAEModule(toy_model(), {"l1": L1(), "vf": vf()}, TrainingConfig(), total_steps=2, steps_per_epoch=1)


def test_a_compiled_model_has_no_gradient_at_z_to_balance(vf, tmp_path):
    with pytest.raises(ValueError, match=r"training\.compile=true and losses\.vf\.adaptive=true"):
        run(tmp_path / "run", spatial_model(), {"l1": L1(), "vf": vf()}, max_steps=1, compile=True)
