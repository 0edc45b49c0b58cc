import numpy as np
import pytest
import torch
from PIL import Image

from omnivae.data import check_range, preprocess_image, save_image
from omnivae.data.images import read_header, read_image, resize_and_crop


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_reach_the_tensor_exactly(tmp_path):
    pixels = noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = preprocess_image(tmp_path / "a.png", value_range=(0.0, 1.0))
    assert x.shape == (1, 3, 5, 7)
    assert x.dtype == torch.float32
    assert torch.equal((x[0] * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))


def test_value_range_maps_black_and_white():
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    assert preprocess_image(image).flatten().tolist() == [-1.0, 1.0]
    assert preprocess_image(image, value_range=(0.0, 1.0)).flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("RGB", 3), ("P", 3), ("RGBA", 4), ("CMYK", 3), ("I;16", 1)]
)
def test_header_and_pixels_agree_on_channels(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        image = Image.fromarray(noise(4, 6).astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise(4, 6, 3)).convert(mode)
    image.save(path)
    assert read_header(path, "a").channels == channels
    assert preprocess_image(path).shape == (1, channels, 4, 6)
    assert preprocess_image(path, channels=1).shape == (1, 1, 4, 6)
    assert preprocess_image(path, channels=3).shape == (1, 3, 4, 6)


def test_sixteen_bit_grey_keeps_its_precision(tmp_path):
    values = np.array([[0, 1, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png", "a").bit_depth == 16
    x = preprocess_image(tmp_path / "a.png", value_range=(0.0, 1.0))
    torch.testing.assert_close(x.flatten(), torch.from_numpy(values.astype(np.float32)[0] / 65535), rtol=0, atol=1e-7)


def test_sixteen_bit_grey_resizes_within_the_range():
    checker = (np.indices((8, 8)).sum(0) % 2 * 65535).astype(np.uint16)
    x = preprocess_image(Image.fromarray(checker), image_size=13, value_range=(0.0, 1.0))
    assert x.shape == (1, 1, 13, 13)
    assert 0 <= x.min() < x.max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_orientation_is_honoured(tmp_path, suffix):
    image = Image.fromarray(np.full((10, 20, 3), 255, dtype=np.uint8))
    image.paste((0, 0, 0), (0, 0, 10, 10))  # left half black
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by 90 degrees: left becomes top
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif)
    header = read_header(path, "a")
    assert (header.height, header.width) == (20, 10)
    x = preprocess_image(path)
    assert x.shape == (1, 3, 20, 10)
    assert x[..., :8, :].mean() < -0.9
    assert x[..., 12:, :].mean() > 0.9


def test_resize_takes_the_centre_and_averages():
    image = Image.fromarray(np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None], 40, axis=0))  # 40 high, 120 wide
    whole = np.asarray(image)[..., None]
    assert np.array_equal(resize_and_crop(whole, 40), whole[:, 40:80])
    # An antialiased reduction keeps the mean of what it covers; subsampling a checkerboard would not.
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(resize_and_crop(checker, 16).astype(float) - 127.5).max() < 3


def test_one_pixel_image(tmp_path):
    Image.new("L", (1, 1), 255).save(tmp_path / "a.png")
    assert preprocess_image(tmp_path / "a.png").tolist() == [[[[1.0]]]]
    assert preprocess_image(tmp_path / "a.png", image_size=4).eq(1).all()


def test_damaged_and_unsuitable_files_are_refused_by_name(tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"broken\.png is damaged and cannot be decoded"):
        preprocess_image(path)
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.png is damaged or not an image"):
        preprocess_image(path)
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving\.gif holds 2 frames; expected one still image"):
        preprocess_image(tmp_path / "moving.gif")
    with pytest.raises(FileNotFoundError, match="no such image file: nowhere"):
        preprocess_image("nowhere.png")


def test_phone_photographs_with_a_second_picture_are_read(tmp_path):
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    x = preprocess_image(tmp_path / "a.jpg", value_range=(0.0, 1.0))
    assert x[0, 0].min() > 0.9
    assert x[0, 2].max() < 0.1


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_saved_image_reads_back(tmp_path, value_range, channels):
    x = torch.from_numpy(noise(channels, 6, 5)).float() / 255 * (value_range[1] - value_range[0]) + value_range[0]
    path = tmp_path / "new" / "a.png"
    save_image(x, path, value_range=value_range)
    torch.testing.assert_close(preprocess_image(path, value_range=value_range)[0], x, rtol=0, atol=1e-6)


def test_saved_grid_holds_every_image(tmp_path):
    x = torch.stack([torch.full((1, 4, 4), value) for value in (0.2, 0.4, 0.6)])
    save_image(x, tmp_path / "grid.png", value_range=(0.0, 1.0))
    grid = read_image(tmp_path / "grid.png", "grid")
    assert grid.shape == (10, 10, 1)  # 2 x 2 tiles with a gap of 2
    assert [grid[0, 0], grid[0, 6], grid[6, 0], grid[6, 6]] == [51, 102, 153, 0]


def test_save_refuses_what_is_not_an_image(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(5, 4, 4\); expected \[C, H, W\]"):
        save_image(torch.zeros(5, 4, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 of 16 values are NaN or infinite"):
        save_image(torch.zeros(16).index_fill(0, torch.tensor([3]), torch.nan).view(1, 4, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"cannot write 4 channels to .*a\.jpg.*try a \.png file"):
        save_image(torch.zeros(4, 4, 4), tmp_path / "a.jpg")


def test_check_range_says_what_is_wrong():
    check_range(torch.tensor([-1.0, 1.0]), (-1.0, 1.0), "a.png")
    with pytest.raises(ValueError, match=r"a\.png: 2 of 3 values are NaN or infinite; expected .*\[-1, 1\].*remove"):
        check_range(torch.tensor([0.0, torch.nan, torch.inf]), (-1.0, 1.0), "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png: 1 of 2 values lie outside \[0, 1\] \(min -1, max 1\): scale .*data\.value_range"
    ):
        check_range(torch.tensor([-1.0, 1.0]), (0.0, 1.0), "a.png")
