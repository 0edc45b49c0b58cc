"""Readers of DICOM on series that are not what they seem: ``python -m benchmarks.readers FOLDER``.

FOLDER holds the zip archives that DATA names (public test data of pydicom, dicom2nifti, MONAI, dcm_qa_ct and TotalSegmentator).
Each case has a truth that is known from its headers: a size, a step from slice to slice and a range of values, or that there is no
volume. A reader is right when it gives that, or refuses where there is none; a refusal of a good volume is marked as such.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TILTED, J2K = "philips_phantom_tilt18_12slices/ph_tilt", "ts_ct_j2k_thk3_gap2_20slices_scrubbed/ct"
BAD, SYNTAXES = "dicom2nifti_bad_series/failing", "dicom2nifti_transfer_syntaxes/generic"
MIXED = "philips_localizer_and_capture/mixed"


@dataclass(frozen=True)
class Seen:
    """What a reader made of a folder: size, step from slice to slice in mm, of any sign, and the range of values."""

    size: tuple[int, ...]
    step: tuple[float, ...]
    low: float
    high: float

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.size))}, {np.linalg.norm(self.step):.4g} mm, {self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Case:
    """A folder and the truth about it; ``truth`` None where there is no volume, or not one only.

    ``make`` prepares the folder from the unpacked archives.
    """

    name: str
    make: Callable[[Path, Path], None]
    truth: Seen | None
    why: str


def only(part: str) -> Callable[[Path, Path], None]:
    """Take a folder or a file as it is."""

    def make(data: Path, to: Path) -> None:
        source = data / part
        for path in [source] if source.is_file() else sorted(source.iterdir()):
            shutil.copy(path, to)

    return make


def without(part: str, index: int) -> Callable[[Path, Path], None]:
    """Take a folder, one of its slices missing."""

    def make(data: Path, to: Path) -> None:
        only(part)(data, to)
        sorted(to.iterdir())[index].unlink()

    return make


def twice(part: str, index: int) -> Callable[[Path, Path], None]:
    """Take a folder, one of its slices there twice."""

    def make(data: Path, to: Path) -> None:
        only(part)(data, to)
        shutil.copy(sorted(to.iterdir())[index], to / "copy")

    return make


def both(*parts: str) -> Callable[[Path, Path], None]:
    """Take several folders together."""

    def make(data: Path, to: Path) -> None:
        for n, part in enumerate(parts):
            (to / str(n)).mkdir()
            only(part)(data, to / str(n))
            for path in (to / str(n)).iterdir():
                path.rename(to / f"{n}{path.name}")
            (to / str(n)).rmdir()

    return make


RAMP = Seen((256, 256, 4), (1, 0, 0), 0, 254)
TILT18 = Seen((512, 512, 12), (0, 0, 2.5), -1024, 791)
CASES = [
    Case("gantry tilt 18.5°", only(TILTED), TILT18, "sheared, 2.5 mm along the table"),
    Case("gantry tilt 14°", only(f"{BAD}/gantrytilting/001"), Seen((512, 512, 4), (0, 0, 5), -1024, -770), "sheared, 5 mm"),
    Case("one slice missing", without(TILTED, 6), None, "a hole"),
    Case("a slice missing, tilted", only(f"{BAD}/sliceincrement/002"), None, "a hole"),
    Case("gaps of 5 and 10 mm", only(f"{BAD}/sliceincrement/001"), None, "a hole"),
    Case("gaps of 1.25 and 202.5 mm", only("monai_ct_dicom_16x16_gap202/CT_DICOM"), None, "a hole"),
    Case("a slice there twice", twice(TILTED, 4), TILT18, "12 slices"),
    Case("four slices at one place", only(f"{BAD}/notavolume/001"), None, "no depth"),
    Case("two orientations, one UID", only(f"{BAD}/sliceorientation/001"), None, "two volumes"),
    Case("two patients", both(TILTED, J2K), None, "two volumes"),
    Case("localizer and capture among them", both(TILTED, MIXED), TILT18, "the CT only"),
    Case("empty UIDs, JPEG 2000", only(J2K), Seen((512, 512, 20), (0, 0, 2), -1024, 1839), "thickness 3, distance 2"),
    Case("slope of each slice", only(f"{SYNTAXES}/anatomical/002_non_isotropic"),
         Seen((64, 28, 4), (0.00866, 0.00215, 0.49992), 33.443825, 96.46799), "33.44..96.47"),
    Case("enhanced CT", only("pydicom_enhanced_ct_2frames"), Seen((512, 512, 2), (0, 0, 10), -1024, 172), "frames, rescale"),
    Case("enhanced MR", only("dicom2nifti_transfer_syntaxes/philips_enhanced/anatomical/001"),
         Seen((256, 256, 8), (1.2, 0, 0), 0, 1081.7485), "frames, rescale"),
    *(Case(name, only(f"{SYNTAXES}/{part}/001"), RAMP, "pixels")
      for name, part in (("JPEG lossless", "compressed_jpeg"), ("JPEG-LS", "compressed_jpegls"),
                         ("JPEG 2000", "compressed_j2k"), ("RLE", "compressed_rle"))),
    Case("truncated pixels", only("pydicom_small/MR_truncated.dcm"), None, "damaged"),
    Case("one slice, no distance", only("pydicom_small/MR_small.dcm"), None, "no depth"),
]  # fmt: skip


def simpleitk(folder: Path) -> Seen:
    """Read with SimpleITK's series reader, as its manual has it."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    if not names:
        raise ValueError("no series")
    reader.SetFileNames(names)
    image = reader.Execute()
    array = sitk.GetArrayViewFromImage(image)
    step = np.reshape(image.GetDirection(), (3, 3))[:, 2] * image.GetSpacing()[2]
    return Seen(image.GetSize(), tuple(step), float(array.min()), float(array.max()))


def monai(folder: Path) -> Seen:
    """Read with MONAI's PydicomReader."""
    from monai.data.image_reader import PydicomReader

    reader = PydicomReader()
    array, facts = reader.get_data(reader.read(str(folder)))
    return Seen(array.shape, tuple(np.asarray(facts["affine"])[:3, 2]), float(array.min()), float(array.max()))


def dicom2nifti(folder: Path) -> Seen:
    """Convert with dicom2nifti, in the source's orientation, and read the result."""
    import dicom2nifti as converter
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "out.nii.gz"
        converter.dicom_series_to_nifti(str(folder), str(path), reorient_nifti=False)
        image = nibabel.load(path)
        array = image.get_fdata()
        return Seen(array.shape, tuple(image.affine[:3, 2]), float(array.min()), float(array.max()))


def ours(folder: Path) -> Seen:
    """Read with omnivae."""
    from omnivae.data.volumes import read_dicom

    volume = read_dicom(folder)
    return Seen(volume.size, tuple(volume.affine[:3, 2]), float(volume.array.min()), float(volume.array.max()))


READERS = {"SimpleITK": simpleitk, "MONAI PydicomReader": monai, "dicom2nifti": dicom2nifti, "omnivae": ours}


def verdict(seen: Seen | Exception, truth: Seen | None) -> str:
    """Say what a reader made of a case, and whether that is right."""
    if isinstance(seen, Exception):
        return "right: refused" if truth is None else f"refused ({type(seen).__name__})"
    if truth is None:
        return f"**wrong**: {seen}"
    wrong = []
    if seen.size != truth.size:
        wrong.append("size")
    # Of either sign, and of either direction of the world's axes: which way an array runs is a reader's choice.
    if not np.allclose(np.abs(seen.step), np.abs(truth.step), rtol=1e-3, atol=2e-3):
        wrong.append("geometry")
    if not np.allclose((seen.low, seen.high), (truth.low, truth.high), rtol=1e-4, atol=1e-3):
        wrong.append("values")
    return f"**wrong** {', '.join(wrong)}: {seen}" if wrong else "right"


@contextlib.contextmanager
def silence() -> object:
    """Send what libraries print to nowhere, their C code included."""
    saved = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.CRITICAL)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for handle in (*saved, nowhere):
            os.close(handle)


def run(data: Path) -> tuple[list[list[str]], dict[str, int]]:
    """Run all readers on all cases; return the rows of the table and how many cases each reader has right."""
    rows, right = [], dict.fromkeys(READERS, 0)
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            case.make(data, folder)
            row = [case.name, "no volume" if case.truth is None else str(case.truth), case.why]
            for name, reader in READERS.items():
                with silence():
                    try:
                        seen: Seen | Exception = reader(folder)
                    except Exception as error:
                        seen = error
                row.append(verdict(seen, case.truth))
                right[name] += row[-1].startswith("right")
            rows.append(row)
    return rows, right


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="holds the zip archives")
    folder = parser.parse_args().data
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise SystemExit(f"{folder} holds no zip archives")
    with tempfile.TemporaryDirectory() as temporary:
        for archive in archives:
            with zipfile.ZipFile(archive) as file:
                file.extractall(Path(temporary) / archive.stem)
        rows, right = run(Path(temporary))
    print(f"| case | truth | | {' | '.join(READERS)} |\n|{' --- |' * (3 + len(READERS))}")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(f"| right, of {len(rows)} | | | " + " | ".join(map(str, right.values())) + " |")


if __name__ == "__main__":
    main()
