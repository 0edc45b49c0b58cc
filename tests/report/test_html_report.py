"""The report is one valid file that needs nothing else, escapes what users wrote, and repeats itself."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest
import torch
from report_models import MemoryDataset, tiny_model

from omnivae.metrics import evaluate
from omnivae.report import read_history, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
CSV = "step,epoch,train/total,train/kl,val/psnr\n0,0,5.0,1.0,\n10,0,4.0,1.5,\n10,1,,,20.5\n20,1,3.0,,21\n"


class Page(HTMLParser):
    """Collects attributes and text; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    return path


def report(tmp_path, model=None, dataset=None, name="r.html", **arguments) -> str:
    arguments = {"projections": ("pca",), "num_images": 3} | arguments
    dataset = MemoryDataset() if dataset is None else dataset
    path = write_report(model or tiny_model(), dataset, tmp_path / name, **arguments)
    return path.read_text(encoding="utf-8")


def test_report_is_self_contained_and_complete(tmp_path, history):
    page = Page(report(tmp_path, history=history, config_text="model: x"))
    assert "script" not in page.tags
    assert "link" not in page.tags
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith("data:image/png;base64," if tag == "img" else "#"), value[:60]
            if tag == "a":
                assert value[1:] in page.ids
    images = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert len(images) == 7
    assert all(base64.b64decode(i.split(",")[1]).startswith(b"\x89PNG") for i in images)
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert len(alts) == len(images)
    assert all(alts)
    for name in (
        "summary", "reconstructions", "samples", "interpolations", "traversals", "kl-per-dimension", "latent-map",
        "training", "evaluation", "configuration", "how-it-was-made",
    ):  # fmt: skip
        assert name in page.ids
    assert "url(" not in report(tmp_path)
    assert "@import" not in report(tmp_path)


def test_user_strings_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    model = tiny_model()
    model.statistics = {evil: evil}
    text = report(
        tmp_path, model, MemoryDataset(key=evil), title=evil, dataset_name=evil, config_text=evil, classes=[evil] * 3
    )
    page = Page(text)
    assert "script" not in page.tags
    assert evil in page.text
    assert "alert('x')</script>" not in text


def test_same_seed_same_file(tmp_path, history):
    state = torch.random.get_rng_state()
    first = report(tmp_path, history=history)
    torch.manual_seed(99)
    assert report(tmp_path, history=history, name="again.html") == first
    assert report(tmp_path, history=history, name="other.html", seed=1) != first
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "again.html", "other.html", "metrics.csv"}
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("latent", ["vector", "spatial"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels_and_latents(tmp_path, channels, latent):
    page = Page(report(tmp_path, tiny_model(channels, latent), MemoryDataset(channels=channels, labels=None)))
    assert f"{channels} channel" in page.text
    assert ("vector of 5 values" if latent == "vector" else "5 channels of 2 × 2 positions") in page.text


def test_given_numbers_are_shown(tmp_path):
    model, data = tiny_model(), MemoryDataset()
    result = evaluate(model, data, ["psnr", "nll"], num_samples_nll=3)
    page = Page(report(tmp_path, model, data, evaluation=result))
    row = {name: mean for name, mean, *_ in result.rows()}
    assert row["psnr"] in page.text
    assert row["nll"] in page.text
    assert "bits_per_dim" not in page.text


def test_a_single_image_is_enough(tmp_path):
    page = Page(report(tmp_path, dataset=MemoryDataset(1)))
    assert "interpolations" not in page.ids
    assert "reconstructions" in page.ids


def test_the_model_is_left_as_it_was(tmp_path):
    model = tiny_model().train()
    report(tmp_path, model)
    assert model.training


def test_read_history(history):
    assert read_history(history) == {
        "train/total": [(0, 5.0), (10, 4.0), (20, 3.0)],
        "train/kl": [(0, 1.0), (10, 1.5)],
        "val/psnr": [(10, 20.5), (20, 21.0)],
    }
    assert read_history(history.parent) == read_history(history)


def test_bad_input_is_refused(tmp_path, history):
    with pytest.raises(FileNotFoundError, match="no training history at"):
        report(tmp_path, history=tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="the dataset is empty"):
        report(tmp_path, dataset=MemoryDataset(0))
    with pytest.raises(ValueError, match="got num_images=0"):
        report(tmp_path, num_images=0)
    history.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="expected 'step'"):
        read_history(history)
    history.write_text("step,loss\n1,abc\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is not a row of numbers"):
        read_history(history)
