import builtins
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from omnivae.data import DataConfig, load_data
from omnivae.data.huggingface import DatasetBlobs

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make(values, *, column="image", label=True):
    rows = {column: [{"bytes": png(v), "path": f"{v}.png"} for v in values]}
    features = {column: datasets.Image()}
    if label:
        rows["label"], features["label"] = [v % 2 for v in values], datasets.ClassLabel(names=["even", "odd"])
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path):
    parts = {"train": make(range(10)), "validation": make(range(10, 13)), "test": make(range(13, 17))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def contents(part):
    items = [part[i] for i in range(len(part))]
    return sorted((item["key"], round(float(item["x"].mean()) * 255), int(item["label"])) for item in items)


def test_a_saved_data_set_is_recognised(saved):
    splits = load_data(DataConfig(str(saved)), value_range=(0.0, 1.0))
    assert splits.classes == ["even", "odd"]
    assert contents(splits.train) == [(f"train/{i:05d}", i, i % 2) for i in range(10)]
    assert contents(splits.val) == [(f"validation/{i:05d}", 10 + i, i % 2) for i in range(3)]
    assert contents(splits.test) == [(f"test/{i:05d}", 13 + i, 1 - i % 2) for i in range(4)]


def test_what_is_sent_to_a_loading_process_is_small(saved):
    train = load_data(DataConfig(str(saved)), value_range=(0.0, 1.0)).train
    assert contents(pickle.loads(pickle.dumps(train))) == contents(train)


def test_one_split_saved_by_itself_is_split(tmp_path):
    make(range(10), label=False).save_to_disk(tmp_path / "one")
    splits = load_data(DataConfig(str(tmp_path / "one")))
    assert (len(splits.train), len(splits.val), len(splits.test), splits.classes) == (8, 1, 1, None)


def test_images_that_are_files(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    files = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{i}.png") for i in range(6)]})
    plain = files.cast_column("image", datasets.Image(decode=False))
    blobs = DatasetBlobs([plain], "image", np.array([0, 6]))
    assert [blobs[i] for i in range(6)] == [tmp_path / f"{i}.png" for i in range(6)]
    none = datasets.Dataset.from_dict(
        {"image": [None]}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    with pytest.raises(ValueError, match="row 0 of the column 'image' is empty"):
        DatasetBlobs([none], "image", np.array([0, 1]))[0]


def test_columns(tmp_path):
    mask = make(range(4), column="mask", label=False)
    two = datasets.concatenate_datasets([make(range(4)), mask], axis=1)
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several columns of images \(image, mask\): set data\.image_column"):
        load_data(DataConfig(str(tmp_path / "two")))
    assert len(load_data(DataConfig(str(tmp_path / "two"), image_column="mask")).train) == 2
    with pytest.raises(ValueError, match="no column of images 'maks'; did you mean 'mask'"):
        load_data(DataConfig(str(tmp_path / "two"), image_column="maks"))
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match=r"no column of images; it has text \(Value\)"):
        load_data(DataConfig(str(tmp_path / "text")))


def test_splits_that_cannot_be_mapped(tmp_path):
    datasets.DatasetDict({"train": make(range(3)), "extra": make(range(3))}).save_to_disk(tmp_path / "a")
    with pytest.raises(
        ValueError, match="has the splits train, extra; expected train, and validation and test or neither"
    ):
        load_data(DataConfig(str(tmp_path / "a")))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    rows = {"image": [{"bytes": png(0), "path": None}, {"bytes": png(1)[:-30], "path": None}]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match="1 of 2 images is not usable: train/00001 is damaged"):
        load_data(DataConfig(str(tmp_path / "a")))


def test_the_hub_is_asked_only_when_allowed(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": make(range(6))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path, form in (("hf://user/name", "auto"), ("user/name", "huggingface")):
        with pytest.raises(FileNotFoundError, match=r"user/name lies on the Hugging Face hub: .*data\.download true"):
            load_data(DataConfig(path, format=form))
    with pytest.raises(FileNotFoundError, match="no such file or folder: user/name"):
        load_data(DataConfig("user/name", download=True))  # no sign that the hub is meant
    with pytest.raises(FileNotFoundError, match="not the name of a data set of the hub"):
        load_data(DataConfig("hf://../name", download=True))
    assert asked == []
    splits = load_data(DataConfig("hf://user/name:small", download=True))
    assert asked == [("user/name", "small")]
    assert len(splits.train) == 4
    load_data(DataConfig("user/name", format="huggingface", download=True))
    assert asked[1:] == [("user/name", None)]


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    def load_dataset(*arguments):
        raise ConnectionError("Couldn't reach 'user/name' on the Hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError) as caught:
        load_data(DataConfig("hf://user/name", download=True))
    assert "could not be had from the Hugging Face hub (Couldn't reach 'user/name' on the Hub)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_extra_is_named_where_datasets_is_missing(saved, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'omnivae\[hub\]'"):
        load_data(DataConfig(str(saved)))
