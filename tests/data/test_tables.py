import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omnivae.data import DataConfig, load_data
from omnivae.data.parquet import open_row_groups
from omnivae.data.tables import read_tables


def png(value, size=8):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(folder, count=10):
    """Image i is i.png with grey value i."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
    return folder


def write_csv(path, rows, header="path,label", separator=","):
    path.write_text("\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def parts_of(splits):
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def contents(splits):
    """Return (key, grey value, label) of every image, by split."""
    found = {}
    for name, part in parts_of(splits).items():
        items = [part[i] for i in range(len(part))]
        found[name] = sorted(
            (item["key"], round(float(item["x"].mean()) * 255), int(item.get("label", -1))) for item in items
        )
    return found


def read(path, **options):
    return load_data(DataConfig(str(path), **options), value_range=(0.0, 1.0))


def test_paths_are_relative_to_the_table_and_names_become_classes(tmp_path):
    write_images(tmp_path / "images")
    table = write_csv(tmp_path / "list.csv", [(f"images/{i}.png", ["cat", "ape"][i % 2]) for i in range(10)])
    splits = read(table)
    assert splits.name == "list"
    assert splits.classes == ["ape", "cat"]
    found = [row for part in contents(splits).values() for row in part]
    assert sorted(found) == [(f"images/{i}.png", i, 1 - i % 2) for i in range(10)]


def test_split_column(tmp_path):
    write_images(tmp_path)
    names = ["train"] * 6 + ["Validation"] * 2 + ["test"] * 2
    table = write_csv(tmp_path / "list.csv", [(f"{i}.png", names[i]) for i in range(10)], header="path,split")
    found = contents(read(table, format="table"))
    assert [value for _, value, _ in found["train"]] == list(range(6))
    assert [value for _, value, _ in found["val"]] == [6, 7]
    assert [value for _, value, _ in found["test"]] == [8, 9]
    write_csv(table, [("0.png", "train"), ("1.png", "holdout")], header="path,split")
    with pytest.raises(ValueError, match="the column 'split' holds 'holdout'; expected train, training, val"):
        read(table)
    write_csv(table, [("0.png", "test")], header="path,split")
    with pytest.raises(ValueError, match="no row is for training"):
        read(table)


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_separators_and_marks_of_other_programs(tmp_path, suffix, separator):
    write_images(tmp_path / "images")
    table = tmp_path / f"list.{suffix}"
    write_csv(table, [(f"images/{i}.png", 5) for i in range(4)], separator.join(("File", "label")), separator)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(read(table).train) == 2


def test_columns_that_cannot_be_told(tmp_path):
    write_images(tmp_path)
    two = write_csv(tmp_path / "two.csv", [("0.png", "1.png", 0)], header="image,path,label")
    with pytest.raises(
        ValueError, match=r"several columns that may hold the images \(image, path\): set data\.image_column"
    ):
        read(two)
    assert len(read(two, image_column="path").train) == 1
    with pytest.raises(ValueError, match=r"has no column 'pth'; did you mean 'path'\?"):
        read(two, image_column="pth")
    with pytest.raises(ValueError, match=r"has no column 'lable'; did you mean 'label'\?"):
        read(two, image_column="path", label_column="lable")
    with pytest.raises(ValueError, match="the column 'label' holds int64; expected paths"):
        read(two, image_column="label")
    none = write_csv(tmp_path / "none.csv", [("x", 1)], header="title,year")
    with pytest.raises(
        ValueError, match=r"no column that looks like images or their paths; it has title \(string\), year"
    ):
        read(none)
    other = write_csv(tmp_path / "other.csv", [("x", "0.png"), ("y", "1.png"), ("z", "2.png")], header="title,where")
    assert len(read(other).train) == 1  # the only column whose values end like images


def test_tables_that_are_none(tmp_path):
    write_images(tmp_path)
    headless = tmp_path / "headless.csv"
    headless.write_text("0.png\n1.png\n")
    with pytest.raises(ValueError, match=r"begins with '0\.png'; expected a first line with the names of the columns"):
        read(headless)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read(tmp_path / "empty.csv")
    (tmp_path / "only.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match="has no rows"):
        read(tmp_path / "only.csv")
    (tmp_path / "odd.csv").write_text("path,label\n0.png,1\n1.png\n")
    with pytest.raises(ValueError, match=r"odd\.csv is not a readable table \(CSV parse error"):
        read(tmp_path / "odd.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"bad\.parquet is not a readable table"):
        read(tmp_path / "bad.parquet")


def test_rows_that_cannot_be_used(tmp_path):
    write_images(tmp_path)
    table = tmp_path / "list.csv"
    write_csv(table, [("0.png", 0), ("", 1)])
    with pytest.raises(ValueError, match=r"1 of 2 rows have no path, e\.g\. row 1"):
        read(table)
    write_csv(table, [("0.png", 0), ("./0.png", 1)])
    with pytest.raises(ValueError, match=r"lists 1 files more than once, e\.g\. .*0\.png"):
        read(table)
    write_csv(table, [("https://host/0.png", 0)])
    with pytest.raises(ValueError, match="expected files on this machine"):
        read(table)
    write_csv(table, [("0.png", "a"), ("1.png", "")])
    with pytest.raises(ValueError, match=r"labels in 'label': 1 of 2 rows have no label, e\.g\. row 1"):
        read(table)
    write_csv(table, [("0.png", 0.5), ("1.png", 1.5)])
    with pytest.raises(ValueError, match=r"got the label 0\.5"):
        read(table)


def test_missing_files_are_listed_or_left_out(tmp_path):
    write_images(tmp_path, 6)
    table = write_csv(tmp_path / "list.csv", [(f"{i}.png", 0) for i in range(11)])
    with pytest.raises(
        FileNotFoundError, match=r"5 of 11 files that .*list\.csv lists are missing: .*6\.png, .*8\.png and 2"
    ):
        read(table)
    splits = read(table, on_error="skip")
    assert sum(map(len, parts_of(splits).values())) == 6
    assert [name for name, _ in splits.skipped] == [f"{i}.png" for i in range(6, 11)]


def test_names_of_files_elsewhere_stay_relative(tmp_path):
    inside, outside = write_images(tmp_path / "here", 3), write_images(tmp_path / "there", 3)
    rows = [(inside / "0.png", 0), ("../there/1.png", 0), (outside / "2.png", 0)]
    splits = read(write_csv(inside / "list.csv", rows))
    keys = [key for part in parts_of(splits).values() for key in part.keys]
    assert sorted(keys) == sorted(["0.png", "there/1.png", str(outside / "2.png").lstrip("/")])
    assert not any(key.startswith(("/", "..")) for key in keys)


def test_numbers_as_labels(tmp_path):
    write_images(tmp_path)
    table = write_csv(tmp_path / "list.csv", [(f"{i}.png", i % 3) for i in range(10)])
    assert read(table).classes == ["0", "1", "2"]
    write_csv(table, [(f"{i}.png", [-1, 7][i % 2]) for i in range(10)])
    splits = read(table)
    assert splits.classes == ["-1", "7"]
    assert set(splits.train.labels) == {0, 1}


def parquet(path, values, *, kind="struct", group=4, names=None, column="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "struct":
        images = pa.array([{"bytes": png(v), "path": f"{v}.png"} for v in values])
    else:
        images = pa.array([png(v) for v in values], type=pa.binary())
    table = pa.table({column: images, "label": [v % 3 for v in values]})
    if names:
        features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_images_in_parquet(tmp_path, kind):
    splits = read(parquet(tmp_path / "a.parquet", range(20), kind=kind))
    found = [row for part in contents(splits).values() for row in part]
    assert sorted(found) == [(f"a/{i:05d}", i, i % 3) for i in range(20)]


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "data/{}-0.parquet", "{}/0000.parquet"])
def test_hugging_face_layout(tmp_path, layout):
    for name, values in (("train", range(10)), ("validation", range(10, 13)), ("test", range(13, 17))):
        parquet(tmp_path / layout.format(name), values, names=["ape", "bee", "cat"])
    splits = read(tmp_path)
    assert splits.classes == ["ape", "bee", "cat"]
    found = contents(splits)
    assert [value for _, value, _ in found["val"]] == [10, 11, 12]
    assert [value for _, value, _ in found["test"]] == [13, 14, 15, 16]
    assert all(key.startswith(layout.format("test").removesuffix(".parquet")) for key, _, _ in found["test"])


def test_paths_in_parquet(tmp_path):
    write_images(tmp_path / "images")
    table = pa.table({"image_path": [f"images/{i}.png" for i in range(10)], "class": ["b", "a"] * 5})
    pq.write_table(table, tmp_path / "list.parquet")
    splits = read(tmp_path / "list.parquet")
    assert splits.classes == ["a", "b"]
    assert ("images/3.png", 3, 0) in [row for part in contents(splits).values() for row in part]


def test_images_beside_a_table_are_the_data(tmp_path):
    write_images(tmp_path)
    parquet(tmp_path / "a.parquet", range(20, 24))
    assert sum(map(len, parts_of(read(tmp_path)).values())) == 10
    assert sum(map(len, parts_of(read(tmp_path, format="table")).values())) == 4


def test_damaged_rows_are_named_or_left_out(tmp_path):
    path = tmp_path / "a.parquet"
    images = [png(0), png(1)[:-30], png(2), None, png(4)]
    pq.write_table(pa.table({"image": pa.array(images, type=pa.binary())}), path, row_group_size=2)
    with pytest.raises(
        ValueError, match=r"2 of 5 images are not usable: a/00001 is damaged.*a\.parquet: row 3 of the column"
    ):
        read(path)
    splits = read(path, on_error="skip")
    assert [name for name, _ in splits.skipped] == ["a/00001", "a/00003"]


def test_only_some_row_groups_stay_in_memory(tmp_path):
    paths = [parquet(tmp_path / f"{name}.parquet", values) for name, values in (("a", range(30)), ("b", range(30, 50)))]
    blobs = open_row_groups(paths, "image")
    assert blobs.window is None  # everything fits
    blobs.resident_bytes = 3 * int(blobs.group_bytes.max())
    assert blobs.window == 1
    order = np.random.default_rng(0).permutation(50)
    assert [blobs[int(i)] for i in order] == [png(int(i)) for i in order]
    assert len(blobs._kept) == 3
    assert len(pickle.loads(pickle.dumps(blobs))._kept) == 0
    assert pickle.loads(pickle.dumps(blobs))[33] == png(33)


def test_a_large_table_is_read_a_few_groups_at_a_time(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", range(60))
    assert read_tables(path, DataConfig(str(path))).source.permutation(0, 0) is None
    blobs = open_row_groups([path], "image")
    monkeypatch.setattr("omnivae.data.parquet.RowGroupBytes.window", 2)
    order = read(path).train.source.permutation(0, 0)
    assert sorted(order.tolist()) == list(range(60))
    assert set((order[:8] // 4).tolist()) == set((order[:1] // 4).tolist()) | set((order[1:8] // 4).tolist())
    assert len(set((order[:8] // 4).tolist())) == 2
    assert len(blobs.group_bytes) == 15


def test_a_row_group_too_large_to_decode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("omnivae.data.parquet.LARGEST_GROUP", 100)
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0 holds .* GiB of images.*row_group_size=1000"):
        read(parquet(tmp_path / "a.parquet", range(8)))


def test_a_folder_of_unlike_tables_is_refused(tmp_path):
    parquet(tmp_path / "train.parquet", range(4))
    parquet(tmp_path / "test.parquet", range(4), column="img")
    with pytest.raises(ValueError, match=r"train\.parquet has no column 'img', which .*test\.parquet has"):
        read(tmp_path)
    write_csv(tmp_path / "list.csv", [("0.png", 0)])
    with pytest.raises(ValueError, match="holds both Parquet and text tables"):
        read(tmp_path)


def test_hashes_are_those_of_the_stored_bytes(tmp_path):
    import hashlib

    splits = read(parquet(tmp_path / "a.parquet", range(6)))
    value = int(splits.train.keys[0].split("/")[1])
    assert splits.train.content_hash(0) == hashlib.sha256(png(value)).hexdigest()
    write_images(tmp_path / "images", 4)
    listed = read(write_csv(tmp_path / "list.csv", [(f"images/{i}.png", 0) for i in range(4)]))
    name = listed.train.keys[0]
    assert listed.train.content_hash(0) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    os.remove(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="was there when the data was listed and is gone"):
        listed.train[0]
