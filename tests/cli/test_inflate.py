"""A model of images, lifted on the command line, computes the same for one frame and is what VideoVAE trains on."""

import pytest
import torch

import omnivae
from omnivae import VAE
from omnivae.cli.main import main


def test_a_lifted_model_is_trained_on(tmp_path, capsys):
    torch.manual_seed(0)
    images = omnivae.kl_autoencoder(channels=(4, 8, 16, 16), num_res_blocks=1, num_groups=2, mid_attention=False).eval()
    images.save_pretrained(tmp_path / "images")
    assert main(["inflate", str(tmp_path / "images"), "-o", str(tmp_path / "clips"), "--inflation", "average"]) == 0
    assert "1x8x8" in capsys.readouterr().out
    lifted = VAE.from_pretrained(tmp_path / "clips")
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(lifted(x.unsqueeze(2)).reconstruction[:, :, 0], images(x).reconstruction)
    # The same widths, natively: its weights are those of VideoVAE by name and shape.
    video = omnivae.VideoVAE(3, 4, base_channels=4, num_res_blocks=1, num_groups=2)
    video.load_state_dict(lifted.state_dict())
    with torch.no_grad():
        clip = torch.rand(1, 3, 4, 16, 16)
        assert torch.equal(video.eval()(clip).reconstruction, lifted(clip).reconstruction)
    assert main(["inflate", str(tmp_path / "images"), "-o", str(tmp_path / "clips")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time_stride", "3"], "power of two"),
        (["--stack_size", "0"], "stack of 0"),
        (["--inflation", "no"], "inflation"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, options, message):
    omnivae.kl_autoencoder(channels=(4, 4), num_res_blocks=1, num_groups=2).save_pretrained(tmp_path / "images")
    assert main(["inflate", str(tmp_path / "images"), "-o", str(tmp_path / "clips"), *options]) == 2
    assert message in capsys.readouterr().err
