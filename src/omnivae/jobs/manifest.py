"""Which images a run was trained on, so that continuing it notices when they are others.

``RUN/data.tsv.gz`` has a line for each image: split, fingerprint, key. A fingerprint is the size of a file and a hash of its
two ends; of images in archives, the hash of their bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omnivae.data import DataSplits, ImageDataset
from omnivae.files import write_atomic
from omnivae.jobs.conditions import COND
from omnivae.models.storage import STATISTICS

MANIFEST = "data.tsv.gz"
#: Archives of more images are not read through before a run: so many of them are fingerprinted, the rest by name only.
FINGERPRINTED = 10_000
_UNKNOWN = "-"


def write_manifest(directory: Path, splits: DataSplits) -> None:
    """Write down which images a run uses.

    Args:
        directory: the run.
        splits: its data.
    """
    lines = "".join(f"{split}\t{fingerprint}\t{key}\n" for split, fingerprint, key in _entries(splits))
    # No time stamp in the header: the same data gives the same bytes.
    write_atomic(directory / MANIFEST, gzip.compress(lines.encode(), mtime=0))


def data_changes(directory: Path, splits: DataSplits) -> list[str]:
    """Compare the images of a run with those it was started with.

    Args:
        directory: the run.
        splits: its data as it is now.

    Returns:
        What differs, in words; empty where nothing does, or the run has no list yet.

    Raises:
        ValueError: when the list is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return []
    try:
        lines = gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
        before = {key: (split, fingerprint) for split, fingerprint, key in (line.split("\t", 2) for line in lines)}
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to continue without knowing what changed") from error
    now = {key: (split, fingerprint) for split, fingerprint, key in _entries(splits)}
    both = before.keys() & now.keys()
    edited = [k for k in both if _UNKNOWN not in (before[k][1], now[k][1]) and before[k][1] != now[k][1]]
    found = {
        "added": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
        "changed": sorted(edited),
        "in another split": sorted(k for k in both if before[k][0] != now[k][0] and k not in edited),
    }
    return [f"{len(keys)} images {what}, such as {keys[0]}" for what, keys in found.items() if keys]


def told_changes(directory: Path, splits: DataSplits) -> list[str]:
    """Return whether a run was told something else about its images than it would be now.

    Args:
        directory: the run.
        splits: its data as it is now.
    """
    file = directory / "model" / STATISTICS
    before = json.loads(file.read_text()).get(COND) if file.is_file() else None
    now = None if splits.condition is None else json.loads(json.dumps(splits.condition.to_dict()))
    return [] if before is None or before == now else ["their classes or attributes (data.cond) are others"]


def trained_on(directory: Path, dataset: ImageDataset) -> int:
    """Return how many of some images are among those that a run was trained on, by their fingerprints.

    Args:
        directory: the run.
        dataset: the images.

    Returns:
        A number; 0 where the directory has no list of its images.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return 0
    lines = gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
    entries = (line.split("\t", 2) for line in lines)
    seen = {fingerprint for split, fingerprint, _ in entries if split == "train" and fingerprint != _UNKNOWN}
    return sum(dataset.source.fingerprint(int(number)) in seen for number in dataset.indices) if seen else 0


def _entries(splits: DataSplits) -> Iterator[tuple[str, str, str]]:
    for split in ("train", "val", "test"):
        dataset = getattr(splits, split)
        source = dataset.source
        everything = type(source).__name__ == "FileSource" or len(source) <= FINGERPRINTED
        chosen = None
        if not everything:
            # By number in the source, the same ones in every run.
            random = np.random.default_rng(0)
            chosen = set(random.choice(len(source), FINGERPRINTED, replace=False).tolist())
        for number, key in zip(dataset.indices.tolist(), dataset.keys, strict=True):
            known = chosen is None or number in chosen
            yield split, source.fingerprint(number) if known else _UNKNOWN, one_line(key)


def one_line(key: str) -> str:
    """Return an image's key without line breaks, which the names of files may have.

    Args:
        key: of an image.

    Example:
        >>> print(one_line("a\\nb.png"))
        a\\nb.png
    """
    return key.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
