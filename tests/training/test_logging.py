"""What is logged, and that each number is what its name says."""

import math

import pytest
import torch
from training_toys import Images, last_checkpoint, rows, run, tensors_of, toy_model, training_rows

from omnivae.losses import KL, L1, NLL, LinearSchedule, Loss
from omnivae.training import TrainingConfig, VAEModule, check, fit
from omnivae.training.callbacks import Table

EVERY_STEP = {
    "step", "epoch", "train/nll", "train/weight/nll", "train/kl", "train/weight/kl", "train/total", "train/elbo",
    "train/bits_per_dim", "train/kl_nats", "train/active_units", "train/grad_norm", "train/lr", "train/images_per_s",
}  # fmt: skip


class OneBatch(Images):
    """As many images as a batch: every step sees all of them, whatever the order."""

    def __init__(self, n=6):
        super().__init__(n)


def test_every_promised_number_is_logged_each_step(tmp_path):
    run(tmp_path, max_steps=3)
    table = training_rows(tmp_path)
    assert [row["step"] for row in table] == [1, 2, 3]
    for row in table:
        assert set(row) >= EVERY_STEP
        assert all(math.isfinite(value) for value in row.values())
    per_dimension = rows(tmp_path, "kl_per_dimension.csv")
    assert [row["step"] for row in per_dimension] == [1, 2, 3]
    assert set(per_dimension[0]) == {"step", "epoch", "d0", "d1", "d2"}


def test_the_first_step_equals_a_computation_by_hand(tmp_path):
    data = OneBatch()
    model = toy_model()
    x = data.x
    with torch.no_grad():
        posterior = model.encode(x)
        mean, logvar = posterior.mean.double(), posterior.logvar.double()
    run(tmp_path, model, {"nll": NLL(weight=2.0), "kl": KL(weight=0.5)}, train=data, batch_size=6, max_steps=1)
    row = training_rows(tmp_path)[0]
    per_dimension = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    assert row["train/kl"] == pytest.approx(float(per_dimension.sum(1).mean()), rel=1e-5)
    assert row["train/kl_nats"] == pytest.approx(row["train/kl"], rel=1e-5)
    assert row["train/weight/nll"] == 2.0
    assert row["train/weight/kl"] == 0.5
    assert row["train/total"] == pytest.approx(2.0 * row["train/nll"] + 0.5 * row["train/kl"], rel=1e-5)
    # The evidence bound has weight 1 on both terms, whatever the training weighs.
    assert row["train/elbo"] == pytest.approx(-(row["train/nll"] + row["train/kl"]), rel=1e-5)
    assert row["train/bits_per_dim"] == pytest.approx(-row["train/elbo"] / (64 * math.log(2)), rel=1e-5)
    assert row["train/active_units"] == int((mean.var(0) > 0.01).sum())
    assert row["train/lr"] == pytest.approx(1e-2)
    assert row["train/images_per_s"] > 0
    assert row["epoch"] == 1.0
    logged = rows(tmp_path, "kl_per_dimension.csv")[0]
    assert [logged[f"d{i}"] for i in range(3)] == pytest.approx(per_dimension.mean(0).tolist(), rel=1e-4)
    assert sum(logged[f"d{i}"] for i in range(3)) == pytest.approx(row["train/kl"], rel=1e-4)


def test_the_nll_is_in_nats_of_the_whole_image(tmp_path):
    # A likelihood whose reconstruction the sample does not reach: the decoder's last layer is zero.
    model = toy_model(likelihood="gaussian_fixed")
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
    data = OneBatch()
    run(tmp_path, model, train=data, batch_size=6, max_steps=1)
    expected = (0.5 * data.x.double().square() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1).mean()
    assert training_rows(tmp_path)[0]["train/nll"] == pytest.approx(float(expected), rel=1e-5)


def test_per_dimension_kl_of_a_spatial_latent_is_summed_over_positions(tmp_path):
    data = OneBatch()
    model = toy_model(latent="spatial")
    with torch.no_grad():
        posterior = model.encode(data.x)
    mean, logvar = posterior.mean.double(), posterior.logvar.double()
    expected = (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).flatten(2).sum(2).mean(0)
    run(tmp_path, model, train=data, batch_size=6, max_steps=1)
    logged = rows(tmp_path, "kl_per_dimension.csv")[0]
    assert [logged[f"d{i}"] for i in range(3)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert sum(expected.tolist()) == pytest.approx(training_rows(tmp_path)[0]["train/kl"], rel=1e-4)


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_active_units_count_dimensions_whose_mean_varies_over_images(latent, tmp_path):
    data = OneBatch()
    model = toy_model(latent=latent)
    with torch.no_grad():
        projection = model.posterior.projection
        projection.weight[0].zero_()  # this dimension ignores the image
        projection.weight[1:3].mul_(20)  # these follow it
    run(tmp_path, model, train=data, batch_size=6, max_steps=1)
    assert training_rows(tmp_path)[0]["train/active_units"] == 2


def test_the_gradient_norm_is_that_of_the_total(tmp_path):
    class Pull(Loss):
        abstract = True

        def forward(self, output, batch):
            return output.mean.sum(1).mean()

    data, model = OneBatch(), toy_model()
    model.encode(data.x).mean.sum(1).mean().backward()
    expected = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    model.zero_grad()
    run(tmp_path, model, {"pull": Pull(weight=3.0)}, train=data, batch_size=6, max_steps=1)
    row = training_rows(tmp_path)[0]
    assert row["train/grad_norm"] == pytest.approx(3 * expected, rel=1e-4)
    assert row["train/total"] == pytest.approx(3 * row["train/pull"], rel=1e-5)


def test_terms_are_unweighted_and_weights_follow_their_schedules(tmp_path):
    run(tmp_path, losses={"l1": L1(per_element=True), "kl": KL(weight=LinearSchedule(end=4.0, length=2))}, max_steps=3)
    table = training_rows(tmp_path)
    assert [row["train/weight/kl"] for row in table] == [0.0, 2.0, 4.0]
    assert table[0]["train/kl"] > 0
    assert table[0]["train/total"] == pytest.approx(table[0]["train/l1"], rel=1e-6)


def test_schedules_can_count_epochs(tmp_path):
    weight = LinearSchedule(end=1.0, length=2, unit="epoch")
    run(tmp_path, losses={"nll": NLL(), "kl": KL(weight=weight)}, max_steps=8, batch_size=4, train=Images(16))
    weights = [row["train/weight/kl"] for row in training_rows(tmp_path)]
    assert weights == pytest.approx([k / 8 for k in range(8)])


def test_rows_can_be_thinned_out(tmp_path):
    run(tmp_path, max_steps=7, log_every=3)
    table = training_rows(tmp_path)
    assert [row["step"] for row in table] == [3, 6]
    for row in table:
        assert set(row) >= EVERY_STEP


def test_validation_is_the_mean_over_its_images(tmp_path):
    # Batches of 4, 4 and 2 images: a mean over batches would weigh the last ones double.
    data, model = Images(10, seed=4), toy_model()
    with torch.no_grad():
        posterior = model.eval().encode(data.x)
    kl = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar).sum(1).mean()
    run(tmp_path, model, max_steps=1, learning_rate=1e-12, val=data, ema=0)
    row = next(row for row in rows(tmp_path) if "val/total" in row)
    assert row["val/kl"] == pytest.approx(float(kl), rel=1e-4)
    assert {"val/nll", "val/elbo", "val/bits_per_dim", "val/psnr"} <= set(row)
    assert row["val/elbo"] == pytest.approx(-(row["val/nll"] + row["val/kl"]), rel=1e-5)


def test_only_so_many_validation_images_are_used(tmp_path):
    class Counting(Images):
        seen: list = []

        def __getitem__(self, index):
            self.seen.append(index)
            return super().__getitem__(index)

    data = Counting(10)
    run(tmp_path, max_steps=1, val=data, val_images=5)
    assert sorted(data.seen) == [0, 1, 2, 3, 4]


def test_tensorboard_events_are_written(tmp_path):
    run(tmp_path, max_steps=2)
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert events
    assert b"train/total" in b"".join(path.read_bytes() for path in events)


# -- a loss that stops being finite


class BlowsUp(Loss):
    """Infinite from the third step on."""

    abstract = True

    def forward(self, output, batch):
        return output.mean.square().sum() * (math.inf if self.step >= 2 else 1.0)


@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_not_finite_stops_and_names_term_and_step(every, tmp_path):
    with pytest.raises(FloatingPointError, match=r"blows_up is inf at step 3: .*first in losses\.blows_up"):
        run(tmp_path, losses={"nll": NLL(), "blows_up": BlowsUp()}, max_steps=40, checkpoint_every=every)


@pytest.mark.parametrize("every", [1, 5])
def test_the_checkpoint_that_is_left_is_from_before(every, tmp_path):
    with pytest.raises(FloatingPointError):
        run(tmp_path, losses={"nll": NLL(), "blows_up": BlowsUp()}, max_steps=10, checkpoint_every=every)
    path = tmp_path / "checkpoints" / "last.safetensors"
    if path.exists():
        tensors = tensors_of(last_checkpoint(tmp_path)["state_dict"])
        assert [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())] == []


def test_the_saved_model_is_never_one_that_is_not_finite(tmp_path):
    saved = []
    with pytest.raises(FloatingPointError):
        fit(
            toy_model(),
            {"nll": NLL(), "blows_up": BlowsUp()},
            Images(),
            None,
            config=TrainingConfig(batch_size=4, max_steps=8, precision="32", checkpoint_every=2),
            directory=tmp_path,
            save_model=lambda model: saved.append({k: v.clone() for k, v in model.state_dict().items()}),
            progress=False,
        )
    assert saved
    assert all(bool(torch.isfinite(t).all()) for state in saved for t in state.values())


def test_it_stops_also_where_rows_are_thinned_out(tmp_path):
    with pytest.raises(FloatingPointError, match="blows_up"):
        run(tmp_path, losses={"nll": NLL(), "blows_up": BlowsUp()}, max_steps=8, log_every=50)


# -- what is refused before anything is trained


def test_a_run_without_losses_is_refused():
    with pytest.raises(ValueError, match="no loss to train on"):
        check(toy_model(), {})


def test_a_loss_that_the_posterior_cannot_serve_is_named():
    class NeedsIndices(Loss):
        abstract = True
        needs = frozenset({"indices"})

    with pytest.raises(ValueError, match=r"'codes' needs a posterior with indices, which GaussianPosterior"):
        VAEModule(toy_model(), {"codes": NeedsIndices()}, TrainingConfig(), total_steps=1, steps_per_epoch=1)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch of 25 is larger than the 24 training images; set training\.batch_size"
    ):
        run(tmp_path, max_steps=1, batch_size=25)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_trains_on_a_cpu_too_and_says_that_it_is_slow(tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with caplog.at_level("WARNING", logger="omnivae"):
        _, model, _ = run(tmp_path, max_steps=2, precision="16")
    assert any("float16 on a CPU" in message for message in caplog.messages)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(math.isfinite(row["train/total"]) for row in training_rows(tmp_path))


def test_epochs_decide_where_no_steps_are_given(tmp_path):
    result, _, _ = run(tmp_path, num_epochs=2, batch_size=5)
    assert result.step == result.total_steps == 2 * (24 // 5)


def test_the_directory_is_made(tmp_path):
    fit(
        toy_model(),
        {"nll": NLL()},
        Images(),
        None,
        config=TrainingConfig(batch_size=4, max_steps=1, precision="32"),
        directory=tmp_path / "new" / "run",
        save_model=lambda model: None,
        progress=False,
    )
    assert (tmp_path / "new" / "run" / "metrics.csv").is_file()


def test_bf16_trains(tmp_path):
    _, model, _ = run(tmp_path, max_steps=2, precision="bf16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(math.isfinite(row["train/total"]) for row in training_rows(tmp_path))


def test_training_leaves_the_process_as_it_was(tmp_path):
    import logging
    import signal
    import warnings

    def state():
        return (
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_num_threads(),
            logging.getLogger("lightning.pytorch").level,
            list(warnings.filters),
        )

    before = state()
    run(tmp_path, max_steps=1)
    assert state() == before


# -- the table


def test_new_columns_may_appear_later(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.open(0)
    table.write({"step": 1, "epoch": 0.5, "a": 1.0})
    table.write({"step": 2, "epoch": 1.0, "b": 2.0})
    table.write({"step": 3, "epoch": 1.5, "a": 3.0, "b": 4.0})
    table.close()
    assert rows(tmp_path, "t.csv") == [
        {"step": 1, "epoch": 0.5, "a": 1.0},
        {"step": 2, "epoch": 1.0, "b": 2.0},
        {"step": 3, "epoch": 1.5, "a": 3.0, "b": 4.0},
    ]


def test_rows_after_the_continued_step_and_half_lines_are_dropped(tmp_path):
    (tmp_path / "t.csv").write_text("step,epoch,a\n1,0.5,1\n2,1.0,2\n3,1.5,3\n4,2")
    table = Table(tmp_path / "t.csv")
    table.open(2)
    table.write({"step": 3, "epoch": 1.5, "a": 9.0})
    table.close()
    assert [(row["step"], row["a"]) for row in rows(tmp_path, "t.csv")] == [(1, 1), (2, 2), (3, 9)]


def test_what_is_logged_leaves_out_masked_pixels_and_compares_with_the_target(tmp_path):
    """The logged ELBO is that of the loss: with a mask, and where what is wanted is not what went in."""
    from omnivae import KL, NLL, conv_vae
    from omnivae.training import TrainingConfig, VAEModule

    torch.manual_seed(0)
    model = conv_vae(in_channels=1, image_size=8, latent_dim=2, channels=(4,), norm="none", likelihood="bernoulli")
    config = TrainingConfig(batch_size=4, max_steps=1)
    module = VAEModule(model, {"nll": NLL(), "kl": KL()}, config, total_steps=1, steps_per_epoch=1)
    x = torch.rand(4, 1, 8, 8)
    for extra in ({"mask": (torch.rand(4, 1, 8, 8) > 0.5).float()}, {"target": 1 - x}):
        batch = {"x": x, **extra}
        output = model(x, sample=True)
        into = {}
        module._diagnose(output, batch, "train", into)
        loss = NLL()(output, batch) + KL()(output, batch)
        torch.testing.assert_close(-into["train/elbo"], loss.detach())


def test_a_class_among_the_latents_hides_nothing_about_the_others(tmp_path):
    from omnivae import m2_vae
    from omnivae.losses import loss_classes
    from omnivae.training import TrainingConfig, VAEModule

    torch.manual_seed(0)
    model = m2_vae(image_size=8, hidden=(16,), latent_dim=3, num_classes=2)
    config = TrainingConfig(batch_size=4, max_steps=1)
    module = VAEModule(model, {"m2": loss_classes()["m2"]()}, config, total_steps=1, steps_per_epoch=1)
    x = torch.rand(4, 1, 8, 8)
    into = {}
    module._diagnose(model(x, sample=True), {"x": x}, "train", into)
    assert float(into["train/information"]) > 0
    assert "train/active_units" in into
    assert len(module.kl_per_dimension) == 3
