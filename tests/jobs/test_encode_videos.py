"""Videos in a posterior store: what decode writes is what reconstruct writes, frame by frame."""

import numpy as np
import pytest
import torch

from omnivae import VAE, LatentDataset, PosteriorStore, VideoVAE
from omnivae.cli.main import main
from omnivae.data.video import read_frames, read_video_header, video_rate
from omnivae.data.video_writing import write_video
from omnivae.jobs.decode import decode_latents
from omnivae.jobs.videos import reconstruct_videos
from omnivae.jobs.videos_store import encode_videos

pytest.importorskip("av")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small model of colour clips, whole and in stacks of four frames."""
    folder = tmp_path_factory.mktemp("models")
    for name, stack in (("whole", None), ("stacks", 4)):
        torch.manual_seed(0)
        model = VideoVAE(in_channels=3, base_channels=4, num_res_blocks=1, num_groups=2, stack_size=stack)
        for parameter in model.posterior.parameters():
            parameter.data.normal_(std=0.3)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def videos(tmp_path):
    rng = np.random.default_rng(0)
    for name, frames, height, width in (("a.mkv", 5, 16, 24), ("sub/b.avi", 9, 17, 19), ("c.mkv", 1, 16, 24)):
        write_video(tmp_path / "in" / name, rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), rate=12)
    return tmp_path / "in"


def frames(path):
    file = read_video_header(path)
    return read_frames(file, range(len(file.times)))


@pytest.mark.parametrize("name", ["whole", "stacks"])
def test_decoding_gives_what_reconstruct_writes(toy, videos, tmp_path, name):
    result = encode_videos(toy / name, [videos], tmp_path / "store", progress=False)
    assert (result.encoded, result.what) == (3, "videos")
    store = PosteriorStore(tmp_path / "store")
    assert (store.kind, store.keys) == ("videos", ["a.mkv", "c.mkv", "sub/b.avi"])
    assert store["sub/b.avi"]["input_size"] == (9, 17, 19)
    written = decode_latents([tmp_path / "store"], toy / name, tmp_path / "out", progress=False)
    reconstruct_videos(toy / name, [videos], tmp_path / "expected", precision="32", progress=False)
    for path, key in zip(written, store.keys, strict=True):
        assert path == tmp_path / "out" / key
        assert np.array_equal(frames(path), frames(tmp_path / "expected" / key))
        assert frames(path).shape == frames(videos / key).shape
        assert video_rate(path) == video_rate(videos / key)


def test_a_latent_is_what_the_model_says_of_the_frames(toy, videos, tmp_path):
    encode_videos(toy / "whole", [videos], tmp_path / "store", progress=False)
    model = VAE.from_pretrained(toy / "whole")
    low, high = model.value_range
    x = torch.from_numpy(frames(videos / "a.mkv")).permute(3, 0, 1, 2)[None] / 255 * (high - low) + low
    with torch.no_grad():
        posterior = model.encode(x)
    item = PosteriorStore(tmp_path / "store")["a.mkv"]
    torch.testing.assert_close(item["mean"], posterior.mean[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(item["logvar"], posterior.logvar[0], atol=1e-5, rtol=1e-4)
    assert "spacing" not in item


def test_the_same_command_encodes_what_changed(toy, videos, tmp_path):
    encode_videos(toy / "stacks", [videos], tmp_path / "store", progress=False)
    write_video(videos / "c.mkv", np.full((3, 16, 24, 3), 90, np.uint8), rate=12)
    result = encode_videos(toy / "stacks", [videos], tmp_path / "store", progress=False)
    assert (result.encoded, result.kept) == (1, 2)
    with pytest.raises(ValueError, match="make no batch"):
        LatentDataset(PosteriorStore(tmp_path / "store"))


def test_tiles_give_what_the_whole_gives(toy, videos, tmp_path):
    encode_videos(toy / "whole", [videos], tmp_path / "whole", progress=False)
    encode_videos(toy / "whole", [videos], tmp_path / "tiles", memory="4MB", progress=False)
    one, other = (PosteriorStore(tmp_path / name) for name in ("whole", "tiles"))
    for key in one.keys:
        torch.testing.assert_close(one[key]["mean"], other[key]["mean"], atol=1e-4, rtol=1e-4)


def test_the_commands(toy, videos, tmp_path, capsys):
    store, model = str(tmp_path / "store"), str(toy / "stacks")
    assert main(["encode", model, str(videos), "-o", store]) == 0
    assert "3 videos, 3 encoded" in capsys.readouterr().out
    assert main(["decode", store, "-o", str(tmp_path / "out")]) == 0
    assert len([p for p in (tmp_path / "out").rglob("*") if p.suffix in (".mkv", ".avi")]) == 3
    for extra in (["--series", "1"], ["--data.split", "test"], ["--data.image_size", "8"]):
        assert main(["encode", model, str(videos), "-o", store, *extra]) == 2
        assert "videos are encoded whole" in capsys.readouterr().err
    assert main(["decode", store, "-o", str(tmp_path / "no"), "--format", "nifti"]) == 2
    assert "--format nifti, which is for volumes" in capsys.readouterr().err
    # Files of somebody else are not overwritten.
    assert main(["decode", store, "-o", str(videos)]) == 2
    assert "is there already and not of this command" in capsys.readouterr().err
