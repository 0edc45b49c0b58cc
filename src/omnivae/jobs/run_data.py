"""The data of a run, for the commands that come after its training: which images, and how a model saw them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omnivae.data import DataConfig
from omnivae.data.config import EMBEDDED
from omnivae.data.downloads import PUBLISHED
from omnivae.jobs.config import RunConfig, read_yaml
from omnivae.jobs.volume_data import prepared_like
from omnivae.models import VAE

CONFIG = "config.yaml"
#: What a model remembers of its data section, to see other images the way it saw those.
PREPARATION = (
    *("cond", "image_size", "channels", "binarize", "input_range", "clip", "channel_axis", "pages_as_channels"),
    *("volume", "num_frames", "frame_stride"),
)


def run_data(directory: Path) -> DataConfig | None:
    """Return the data section of the run that a path is in, or ``None`` for a bare model directory.

    Args:
        directory: a run or a model directory.

    Returns:
        The data section.
    """
    for candidate in (directory, directory.parent):
        if (candidate / CONFIG).is_file():
            return RunConfig.from_dict(read_yaml(candidate / CONFIG)).data
    return None


def data_for(model: VAE, path: str | None, base: DataConfig | None) -> DataConfig:
    """Return how to read images for a trained model: prepared as in its training.

    Args:
        model: the model.
        path: where the images are; the run's own data by default.
        base: the run's data section, if known.

    Returns:
        The data section.

    Raises:
        ValueError: when neither a path nor a run is known.
    """
    if path is None and base is None:
        raise ValueError("this model directory is not part of a run, so its images are not known: say --data.path DIR")
    if base is not None:
        if path is None:
            return base
        return replace(base, path=path, format=base.format if is_same_data(path, base) else "auto")
    known = model.statistics.get("data", {})
    if not known and (volumes := prepared_like(model.statistics, str(path))) is not None:
        return volumes
    prepared = {name: known[name] for name in PREPARATION if known.get(name) is not None}
    return DataConfig(path=str(path), **prepared)


def is_same_data(path: str, base: DataConfig) -> bool:
    """Return whether a path names the data of a run, however it is written (a slash at the end, a link, another folder).

    Args:
        path: of images, or the name of a data set.
        base: the run's data section.
    """
    names = (*EMBEDDED, *PUBLISHED)  # "digits" is a data set and "./digits" a folder
    if path == base.path or path in names or base.path in names:
        return path == base.path
    return Path(path).expanduser().resolve() == Path(base.path).expanduser().resolve()
