"""``data.cond``: what a conditional model is told about each image, from labels, tables, vectors and worlds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omnivae.data import DataConfig, load_data
from omnivae.data.condition import Condition

COUNT = 20


def read(path, cond, condition=None, **options):
    return load_data(DataConfig(str(path), cond=cond, **options), value_range=(0.0, 1.0), condition=condition)


def write_images(folder):
    """Image i is i.png with grey value i."""
    folder.mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(np.full((4, 4), i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def table(tmp_path):
    """Write a table of the images with more columns, given as functions of an image's number."""
    write_images(tmp_path / "images")

    def write(suffix=".csv", **columns):
        rows = {"path": [f"images/{i}.png" for i in range(COUNT)]}
        rows |= {name: [value(i) for i in range(COUNT)] for name, value in columns.items()}
        place = tmp_path / f"list{suffix}"
        if suffix == ".csv":
            lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
            place.write_text("\n".join(lines) + "\n")
        else:
            pq.write_table(pa.table(rows), place)
        return place

    return write


def told(splits):
    """Return the condition of every image by its number, and the numbers of the training images."""
    found, train = {}, []
    for part in (splits.train, splits.val, splits.test):
        for i in range(len(part)):
            item = part[i]
            number = round(float(item["x"].mean()) * 255)
            found[number] = item["cond"]
            train += [number] * (part is splits.train)
    return found, train


def test_labels_are_one_hot(tmp_path):
    for i, name in enumerate(("cat", "dog", "ape")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for j in range(5):
            Image.fromarray(np.full((4, 4), 5 * i + j, dtype=np.uint8)).save(tmp_path / "data" / name / f"{j}.png")
    splits = read(tmp_path / "data", "label")
    assert splits.condition.classes == ("ape", "cat", "dog")
    found, _ = told(splits)
    for number, row in found.items():
        assert row.tolist() == torch.eye(3)[[1, 2, 0][number // 5]].tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_classes_flags_and_standardised_numbers(table, suffix):
    place = table(suffix, kind=lambda i: "ab"[i % 2], smiling=lambda i: int(i % 4 == 0), age=lambda i: 20 + 1.5 * i)
    splits = read(place, ["kind", "smiling", "age"])
    assert [(a.name, a.kind, a.size) for a in splits.condition.attributes] == [
        ("kind", "class", 2),
        ("smiling", "binary", 1),
        ("age", "number", 1),
    ]
    found, train = told(splits)
    ages = np.array([20 + 1.5 * i for i in train])
    for i, row in found.items():
        expected = [float(i % 2 == 0), float(i % 2), float(i % 4 == 0), (20 + 1.5 * i - ages.mean()) / ages.std()]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)
    # What a user writes is what the data says; what is left out is the mean or the most common value of training.
    known = splits.condition
    assert known.parse("kind=a,smiling=1,age=20").tolist() == pytest.approx(found[0].tolist(), abs=1e-6)
    assert known.parse("kind=b,age=21.5").tolist() == pytest.approx(found[1].tolist(), abs=1e-6)
    assert known.unsaid("kind=b,age=21.5") == {"smiling": "0"}
    assert known.parse("kind=a,smiling=0")[3] == pytest.approx(0, abs=1e-6)
    # The schema survives JSON: a saved model understands the same words.
    again = Condition.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again == known


def test_changing_an_attribute_keeps_the_others(table):
    place = table(smiling=lambda i: i % 2, age=lambda i: 20 + i)
    splits = read(place, ["smiling", "age"])
    rows = torch.stack([told(splits)[0][i] for i in range(4)])
    changed = splits.condition.changed(rows, "smiling=1")
    assert changed[:, 0].tolist() == [1.0] * 4
    assert torch.equal(changed[:, 1], rows[:, 1])


@pytest.mark.parametrize("values", [("no", "yes"), (-1, 1), (0.0, 1.0)])
def test_flags_may_be_written_in_several_ways(table, values):
    place = table(".parquet", glasses=lambda i: values[i % 2], age=float)
    splits = read(place, ["glasses", "age"])
    attribute = splits.condition.attributes[0]
    # Text is a class, numbers are a flag; either way both values can be said as they are in the table.
    assert attribute.kind == ("class" if isinstance(values[0], str) else "binary")
    found, _ = told(splits)
    for i in (0, 1):
        assert torch.equal(splits.condition.changed(found[i][None], f"glasses={values[i]}")[0], found[i])


def test_vectors_come_from_lists_and_from_npy_files(table, tmp_path):
    random = np.random.default_rng(0)
    vectors = random.normal(5, 3, (COUNT, 4)).astype(np.float32)
    for i, vector in enumerate(vectors):
        np.save(tmp_path / f"{i}.npy", vector)
    lists = read(table(".parquet", v=lambda i: vectors[i].tolist()), "v")
    files = read(table(v=lambda i: f"{i}.npy"), "v")
    for splits in (lists, files):
        assert [(a.kind, a.size) for a in splits.condition.attributes] == [("vector", 4)]
        found, train = told(splits)
        mine = vectors[train].astype(np.float64)
        for i, row in found.items():
            assert row.numpy() == pytest.approx((vectors[i] - mine.mean(0)) / mine.std(0), abs=1e-4)
    words = " ".join(str(x) for x in vectors[3])
    assert files.condition.parse(f"v={words}").tolist() == pytest.approx(told(files)[0][3].tolist(), abs=1e-4)
    (tmp_path / "7.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 20 files are missing, e\.g\. .*7\.npy"):
        read(tmp_path / "list.csv", "v")
    np.save(tmp_path / "7.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"7\.npy holds \(2, 2\); expected one vector a file"):
        read(tmp_path / "list.csv", "v")
    np.save(tmp_path / "7.npy", np.zeros(3))
    with pytest.raises(ValueError, match="2 different lengths"):
        read(tmp_path / "list.csv", "v")


@pytest.mark.parametrize("hole", ["", "nan"])
def test_a_hole_in_a_column_is_named_and_not_filled(table, hole):
    place = table(age=lambda i: hole if i == 7 else 20 + i)
    with pytest.raises(ValueError, match=r"'age'.*1 of 20 rows have no value or NaN, e\.g\. row 7"):
        read(place, "age")


def test_columns_that_say_nothing_or_do_not_exist_are_refused(table):
    place = table(label=lambda i: "ab"[i % 2], same=lambda i: 3, age=float)
    with pytest.raises(ValueError, match="every row has the same value"):
        read(place, "same")
    with pytest.raises(ValueError, match=r"aeg.*age"):
        read(place, "aeg")
    with pytest.raises(ValueError, match="has none that are known"):
        read(place, "factors")
    assert read(place, ["label", "age"]).condition.size == 3


def test_images_without_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no labels, which data\.cond asks for.*a folder for each class"):
        read(write_images(tmp_path / "plain"), "label")


def test_a_trained_model_meets_its_classes_again_and_no_others(tmp_path):
    def folders(place, names):
        for i, name in enumerate(names):
            (place / name).mkdir(parents=True)
            for j in range(5):
                Image.fromarray(np.full((4, 4), 5 * i + j, dtype=np.uint8)).save(place / name / f"{j}.png")
        return place

    known = read(folders(tmp_path / "one", ["ape", "cat", "dog"]), "label").condition
    # Fewer classes keep their places.
    found, _ = told(read(folders(tmp_path / "two", ["cat", "dog"]), "label", known))
    assert {int(row.argmax()) for number, row in found.items() if number < 5} == {1}
    assert {int(row.argmax()) for number, row in found.items() if number >= 5} == {2}
    with pytest.raises(ValueError, match=r"'cow' is no label that the model was trained on.*ape, cat, dog"):
        read(folders(tmp_path / "three", ["cat", "cow"]), "label", known)
    for wrong, sentence in {
        "cow": "'cow' is no label",
        "kind=cat": "no attribute 'kind'",
        "label=cat,label=dog": "'label' twice",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            known.parse(wrong)


def test_numbers_are_standardised_as_in_training(table):
    splits = read(table(age=lambda i: 20 + i, smiling=lambda i: i % 2), ["age", "smiling"])
    before, _ = told(splits)
    later = read(table(age=lambda i: 120 + i, smiling=lambda i: i % 2), ["age", "smiling"], splits.condition)
    std = splits.condition.attributes[0].std[0]
    for i, row in told(later)[0].items():
        assert float(row[0] - before[i][0]) == pytest.approx(100 / std, rel=1e-4)
    with pytest.raises(ValueError, match="was trained on the condition age, smiling; these images come with smiling"):
        read(table(smiling=lambda i: i % 2), "smiling", splits.condition)
    with pytest.raises(ValueError, match="expected a finite number"):
        splits.condition.parse("age=nan")
    with pytest.raises(ValueError, match="expected a finite number"):
        splits.condition.parse("age=old")


def test_the_factors_of_a_world():
    splits = read("dsprites", "factors", limit=60)
    source, known = splits.train.source, splits.condition
    assert [a.name for a in known.attributes] == list(source.world.names)
    kinds = {a.name: a.kind for a in known.attributes}
    assert kinds["shape"] == "class"
    assert kinds["orientation"] == "number"
    for part in (splits.train, splits.test):
        for i in range(3):
            item = part[i]
            factors = source.labels[part.indices[i]]
            said = ",".join(
                f"{name}={int(values[int(f)]) if kinds[name] == 'class' else values[int(f)]}"
                for name, values, f in zip(source.world.names, source.world.values, factors, strict=True)
            )
            torch.testing.assert_close(known.parse(said), item["cond"], atol=1e-5, rtol=1e-5)
    assert read("dsprites", ["shape", "scale"], limit=60).condition.attributes[0].size == 3


def test_few_labels_hide_the_others_in_training_only():
    splits = read("digits", "label", labels_per_class=2)
    rows = torch.stack([splits.train[i]["cond"] for i in range(len(splits.train))])
    assert rows.sum(0).tolist() == [2.0] * 10
    assert torch.stack([splits.test[i]["cond"] for i in range(20)]).sum(1).tolist() == [1.0] * 20
    # Every stretch of an epoch's order has its share of labels, and every other image comes in its turn.
    half = read("digits", "label", labels_per_class=2, labelled_share=0.25).train
    order = half.permutation(0)
    assert half.known[order].reshape(-1)[: len(order) // 20 * 20].reshape(-1, 20).sum(1).tolist() == [5] * (
        len(order) // 20
    )
    rest = order[~half.known[order]]
    assert len(np.unique(rest)) == len(rest)
    with pytest.raises(ValueError, match=r"labels_per_class is 10000 and the class '0' has"):
        read("digits", "label", labels_per_class=10_000)
