import pytest
from jsonargparse import ArgumentParser

from omnivae.data import DataConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "mnst"}, r"unknown data\.format 'mnst'; did you mean 'mnist'\?; expected one of auto, folder"),
        ({"binarize": "yes"}, r"unknown data\.binarize 'yes'.*none, threshold, stochastic"),
        ({"image_size": 0}, r"data\.image_size=0; expected 1 or more"),
        ({"channels": 0}, r"data\.channels=0; expected 1 or more"),
        ({"input_range": (5, 5)}, r"data\.input_range=\(5, 5\); expected two numbers, the lower first"),
        ({"input_range": (0, float("inf"))}, r"data\.input_range=.*expected two numbers"),
        ({"value_range": (0, 255)}, r"data\.value_range=\(0, 255\); expected \(0, 1\) or \(-1, 1\)"),
        ({"val_fraction": 0.0}, r"data\.val_fraction=0\.0; expected a number between 0 and 1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"leave nothing to train on"),
        ({"limit": 0}, r"data\.limit=0; expected 1 or more"),
        ({"num_workers": -1}, r"data\.num_workers=-1; expected 0 or more"),
        ({"random_crop": True}, r"set data\.image_size"),
        ({"format": "photos"}, r"data\.format='photos' with data\.path='digits'.*set data\.path to photos"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**arguments)


def test_command_line_reads_every_field():
    parser = ArgumentParser()
    parser.add_argument("--data", type=DataConfig)
    config = parser.parse_args(
        ["--data.path", "photos", "--data.image_size=32", "--data.value_range=[0, 1]", "--data.flip=true"]
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    data = instantiate(config).data
    assert data == DataConfig(path="photos", image_size=32, value_range=(0.0, 1.0), flip=True)
