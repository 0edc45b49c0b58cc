"""Which channels of a volume a model takes: those that it was trained on, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnivae.data import DataSplits
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.data.volumes.dataset_source import with_channels
from omnivae.volume import Volume


def trained_channels(splits: DataSplits) -> tuple[str, ...]:
    """Return the names of the channels of a data set of volumes; none where they have no names.

    Args:
        splits: the data.
    """
    if not isinstance(splits.train, VolumeDataset):
        return ()
    names = splits.train.source.facts(0).channels
    # The channels of a pair are those of both its volumes, and a model takes one of them at a time.
    return tuple(names) if len(names) == splits.channels else ()


def known_channels(statistics: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of the channels that a model was trained on; none where it does not know them.

    Args:
        statistics: of the model: ``statistics["channels"]``, or the channels that its training chose from its data.
        count: how many it takes.

    Returns:
        The names, in the model's order.

    Raises:
        ValueError: for ``statistics["channels"]`` that are no names of so many channels.

    Example:
        >>> known_channels({"channels": ["Phase3D", "Nuclei"]}, 2), known_channels({}, 1)
        (('Phase3D', 'Nuclei'), ())
    """
    names = statistics.get("channels")
    if names is not None:
        if not _are_names(names) or len(names) != count:
            raise ValueError(
                f'the model\'s statistics.json has "channels": {names!r}; expected a list of names, one for each of the {count} '
                "that it takes"
            )
        return tuple(names)
    volume = (statistics.get("data") or {}).get("volume") or {}
    names = volume.get("channel_names") or ()
    return tuple(names) if _are_names(names) and len(names) == count else ()


def choose_channels(volume: Volume, names: Sequence[str], count: int) -> tuple[Volume, str]:
    """Return the channels of a volume that a model takes, in its order.

    Args:
        volume: with any channels.
        names: of the channels that the model was trained on; empty where it does not know them.
        count: how many channels the model takes.

    Returns:
        The volume with those channels, and a sentence about what was done; empty where it has them and no others, and where nothing
        has names. Channels of other names are taken as they are where there are as many as the model takes, and the sentence says
        so.

    Raises:
        ValueError: when the volume has another number of channels, and the model's are not among them.

    Example:
        >>> import numpy as np
        >>> plate = Volume(np.zeros((2, 3, 4, 4)), np.eye(4), space="stage", channels=("Phase3D", "Nuclei"))
        >>> choose_channels(plate, ["Nuclei"], 1)[1]
        'of the channels Phase3D, Nuclei the model takes Nuclei, as in its training'
    """
    there, wanted = tuple(volume.channels), tuple(names)
    same = len(volume.array) == count
    if not wanted or there == wanted or (same and not there):
        if not same:
            raise ValueError(_refusal(volume, wanted, count))
        return volume, ""
    if all(there.count(name) == 1 for name in wanted):
        said = f"of the channels {', '.join(there)} the model takes {', '.join(wanted)}, as in its training"
        return with_channels(volume, wanted), said
    if not same:
        raise ValueError(_refusal(volume, wanted, count))
    return volume, (
        f"the channels {', '.join(there)} are shown to a model that was trained on {', '.join(wanted)}: whether it knows such "
        "pictures is not known"
    )


# -- inside


def _are_names(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


def _refusal(volume: Volume, wanted: Sequence[str], count: int) -> str:
    there = volume.channels
    number = len(volume.array)
    has = f"{number} channel{'s' * (number != 1)} ({', '.join(there) if there else 'without names'})"
    takes = f"{count} ({', '.join(wanted)})" if wanted else f"{count}"
    subject = f"{volume.source or 'the volume'} has {has} and the model takes {takes}"
    alone = f"give volumes of {count} channel{'s' * (count != 1)}"
    if number < count or not (there or wanted):
        return f"{subject}: {alone}"
    if not there:
        return f"{subject}: name the channels in the file, as OME-Zarr can, or {alone}"
    if wanted:
        problem = next(name for name in wanted if there.count(name) != 1)
        which = f"several are called {problem}" if problem in there else f"none is called {problem}"
        return f"{subject}; {which}: name the channels in the file as in training, or {alone}"
    return (
        f"{subject}, and does not know their names: {alone}, or add the names to statistics.json in the directory of the model, "
        f'such as "channels": ["{there[0]}"{", ..." * (count > 1)}]'
    )
