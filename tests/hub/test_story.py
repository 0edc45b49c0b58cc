"""Document 2's story: MAISI's weights, loaded by name into a guess, into a rename, and right; and three silent errors."""

import pytest
import torch

from omnivae.hub import coverage, load_foreign, load_maisi, read_checkpoint, recognise
from omnivae.hub.parity import compare
from omnivae.jobs.checkpoint import convert, examine_checkpoint
from omnivae.networks.maisi import from_monai

from . import originals

#: MAISI as published.
RELEASED = {
    "num_channels": (64, 128, 256),
    "num_res_blocks": (2, 2, 2),
    "attention_levels": (False, False, False),
    "latent_channels": 4,
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A file of MAISI's layout, 32 channels wide, as NVIDIA's second version nests it."""
    file = tmp_path_factory.mktemp("weights") / "autoencoder_v2.pt"
    torch.save({"unet_state_dict": originals.maisi().state_dict(), "epoch": 300}, file)
    return file


@pytest.fixture(scope="module")
def examined(narrow):
    return examine_checkpoint(narrow)


def on_meta(build):
    with torch.device("meta"):
        return build()


def test_the_guess_loads_32_of_222_tensors_which_are_a_hundredth_of_a_percent():
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.networks.nets import AutoencoderKL

    released = on_meta(lambda: AutoencoderKlMaisi(3, 1, 1, **RELEASED)).state_dict()
    assert len(released) == 130
    assert sum(t.numel() for t in released.values()) == 20_944_897
    guess = on_meta(
        lambda: AutoencoderKL(
            3,
            channels=(64, 128, 256),
            latent_channels=4,
            num_res_blocks=(2, 2, 2),
            attention_levels=(False, False, True),
        )
    )
    found = coverage(released, guess)
    assert (len(found.loaded), found.tensors, len(found.mismatched), found.random) == (32, 222, 2, 190)
    assert len(found.unexpected) == 96
    assert (found.parameters_loaded, found.parameters) == (3_772, 36_688_897)
    assert found.summary().splitlines() == [
        "Loaded 32/222 compatible weights: 3,772 of 36,688,897 parameters (0.010 %)",
        "Skipped 2 incompatible keys (shape mismatch)",
        "Ignored 96 keys of the file that the model does not have",
        "190 keys initialized randomly",
    ]
    # What did load are affine parameters of norms and 1x1 convolutions: no kernel of a convolution.
    assert not any(guess.state_dict()[name].ndim > 1 and "quant" not in name for name in found.loaded)


def test_the_published_architecture_is_read_from_its_names_and_shapes():
    from pathlib import Path

    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    from omnivae.hub import Checkpoint

    tensors = on_meta(lambda: AutoencoderKlMaisi(3, 1, 1, **RELEASED)).state_dict()
    found = recognise(Checkpoint(Path("autoencoder.pt"), tensors))
    assert found.layout == "MONAI AutoencoderKlMaisi"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.arguments.items() if k in RELEASED} == RELEASED
    assert found.facts["compression"] == "4 x 4 x 4, 4 latent channels"
    assert found.config["modality"] == "CT"
    assert not found.config["use_convtranspose"]
    # The same names and shapes are a transposed convolution in the mask autoencoder.
    mask = on_meta(
        lambda: AutoencoderKlMaisi(
            3, 8, 125, (1, 2, 2), (32, 64, 128), (False,) * 3, latent_channels=4, use_convtranspose=True
        )
    ).state_dict()
    other = recognise(Checkpoint(Path("mask_generation_autoencoder.pt"), mask))
    assert other.config["use_convtranspose"]
    assert other.config["modality"] is None


def test_the_doctor_names_it_loads_all_and_proves_it(examined):
    assert examined.architecture.layout == "MONAI AutoencoderKlMaisi"
    assert examined.checkpoint.entry == "unet_state_dict"
    assert examined.coverage.complete
    assert examined.coverage.fraction == 1
    proof = examined.proof
    assert proof.equal
    assert proof.first is None
    assert {d.name.split(" of ")[0] for d in proof.outputs} == {"mean", "log-variance", "reconstruction"}
    assert len(proof.layers) == 27  # every convolution and norm of both halves, and the three 1x1 convolutions
    assert proof.worst.relative < 5e-6


def test_every_silent_error_is_found_by_its_numbers(examined):
    trials = {(t.choice, t.label): t for t in examined.trials}
    nearest = trials["up-sampling", "nearest"]
    both = trials["padding of stride 2", "both ends"]
    silu = trials["activation before the last convolution", "SiLU"]
    eps = trials["eps of the norms", "1e-05"]
    # Where each error lies: up-sampling in the decoder only, padding in the encoder only, the activation in both.
    assert nearest.mean.max_abs < 1e-6
    assert nearest.reconstruction.relative > 0.1
    assert both.mean.relative > 0.1
    assert both.reconstruction.max_abs < 1e-5
    assert silu.mean.relative > 0.1
    assert silu.reconstruction.relative > 0.1
    assert 0 < eps.reconstruction.relative < 0.01
    # An eps of 1e-5 moves these outputs by less than the tolerance; everything else is another function.
    assert {t.label for t in examined.trials if t.equal} <= {"1e-05"}


def test_a_rename_into_plain_autoencoder_kl_is_loaded_but_not_equal(narrow, tmp_path):
    found = examine_checkpoint(narrow, layout="MONAI AutoencoderKL")
    assert found.coverage.complete  # strict, all of them: names and shapes have nothing to say against it
    assert not found.sound
    assert found.proof.summary().startswith("loaded but NOT EQUAL to monai")
    outputs = {d.name: d for d in found.proof.outputs}
    assert outputs["mean of noise"].equal()
    assert not outputs["reconstruction of noise"].equal()
    assert found.proof.first.name == "decoder.blocks.2.conv.conv.conv"  # the convolution after the first up-sampling
    cure = next(t for t in found.trials if t.label.startswith("linear"))
    assert cure.equal
    with pytest.raises(ValueError, match=r"nothing was written.*NOT EQUAL"):
        convert(found, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_renamed_model_of_monai_itself_decodes_otherwise(narrow):
    """The same with MONAI's own AutoencoderKL: the trap is not one of our making."""
    from monai.networks.nets import AutoencoderKL

    from omnivae.hub.layouts.base import translate
    from omnivae.hub.layouts.monai import _UNWRAPPED

    theirs = originals.maisi()
    plain = AutoencoderKL(
        3,
        channels=(32, 32),
        latent_channels=4,
        num_res_blocks=(1, 1),
        attention_levels=(False, False),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    plain.load_state_dict({translate(k, _UNWRAPPED): v for k, v in theirs.state_dict().items()}, strict=True)
    x = torch.rand(1, 1, 8, 8, 12)
    with torch.no_grad():
        mean = theirs.encode(x)[0]
        assert (plain.encode(x)[0] - mean).abs().max() < 1e-5
        assert (plain.decode(mean) - theirs.decode(mean)).abs().max() > 0.1


def test_load_maisi_gives_monais_numbers_at_any_size(narrow):
    theirs, ours = originals.maisi(), load_maisi(narrow)
    assert ours.statistics["intensity"]["unit"] == "HU"
    assert load_maisi(narrow, modality="MR").statistics["intensity"]["unit"] == "arbitrary"
    x = torch.rand(1, 1, 6, 10, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).recon_x, theirs.reconstruct(x), atol=1e-5, rtol=1e-5)
        assert ours(torch.rand(1, 1, 3, 5, 7)).recon_x.shape == (1, 1, 3, 5, 7)
    wrong = narrow.with_name("kl.pt")
    torch.save(originals.monai_kl().state_dict(), wrong)
    with pytest.raises(ValueError, match="of no known layout"):
        load_maisi(wrong)


def test_nothing_is_partly_loaded_in_silence(narrow, tmp_path, caplog):
    from omnivae import VAE, MaisiVAE

    wider = MaisiVAE(num_channels=(32, 64), num_res_blocks=(1, 1))
    before = {k: v.clone() for k, v in wider.state_dict().items()}
    with pytest.raises(ValueError, match=r"(?s)nothing was loaded.*of another shape.*partial=True") as error:
        load_foreign(narrow, wider)
    assert "keys initialized randomly" in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in wider.state_dict().items())
    found = load_foreign(narrow, wider, layout="MONAI AutoencoderKlMaisi", partial=True)
    assert not found.complete
    assert found.random == found.tensors - len(found.loaded)
    assert f"Loaded {len(found.loaded)}/{found.tensors} compatible weights" in caplog.text
    tensors = from_monai(read_checkpoint(narrow).tensors)
    for name, value in wider.state_dict().items():
        assert torch.equal(value, tensors[name] if name in found.loaded else before[name])
    wider.save_pretrained(tmp_path)
    assert "## Loaded in part" in (tmp_path / "README.md").read_text()
    assert VAE.from_pretrained(tmp_path).statistics["loaded_in_part"]["loaded"] == len(found.loaded)
    with pytest.raises(ValueError, match="no tensor of"):
        load_foreign(narrow, torch.nn.Linear(2, 2), layout="MONAI AutoencoderKlMaisi", partial=True)


def test_two_models_are_compared_by_what_they_compute(examined):
    mean, image = compare(examined.model, examined.model)
    assert mean.max_abs == image.max_abs == 0
