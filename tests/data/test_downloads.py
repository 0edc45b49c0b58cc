import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from test_archives import idx

from omnivae.data import DataConfig, downloads, load_data
from omnivae.data.downloads import Published, Resource


class Server:
    """Serves ``files``; cuts an answer off after ``cut[name]`` bytes, once; knows ranges unless told not to."""

    def __init__(self):
        self.files, self.cut, self.requests, self.ranges = {}, {}, [], True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                wanted = self.headers.get("Range")
                outer.requests.append((self.path, wanted))
                if name not in outer.files or "gone" in self.path:
                    self.send_error(404)
                    return
                data, start = outer.files[name], 0
                if wanted and outer.ranges:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(data):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start : start + outer.cut.pop(name, len(data))])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def md5(data):
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def mnist(server, monkeypatch):
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 6)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        server.files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        server.files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10))
    publish(monkeypatch, server, "mnist")
    publish(monkeypatch, server, "fashion-mnist")
    return server


def publish(monkeypatch, server, name, *, mirrors=None, **changed):
    resources = tuple(Resource(file, changed.get("md5") or md5(data)) for file, data in server.files.items())
    published = Published(mirrors or (server.url,), resources)
    monkeypatch.setitem(downloads.PUBLISHED, name, published)


def test_nothing_is_fetched_unasked(mnist):
    with pytest.raises(
        FileNotFoundError, match=r"mnist is not in .*cache/data/mnist: .*data\.download true, or give data"
    ):
        load_data(DataConfig("mnist"))
    assert mnist.requests == []


def test_a_data_set_is_fetched_once(mnist):
    splits = load_data(DataConfig("mnist", download=True))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (20, 6)
    assert splits.classes == [str(i) for i in range(10)]
    asked = len(mnist.requests)
    again = load_data(DataConfig("mnist"))
    assert again.train.keys == splits.train.keys
    assert len(mnist.requests) == asked == 4


def test_fashion_mnist_has_its_own_classes(mnist):
    splits = load_data(DataConfig("fashion-mnist", download=True))
    assert splits.name == "fashion-mnist"
    assert splits.classes[0] == "T-shirt/top"
    assert splits.classes[9] == "Ankle boot"
    assert splits.test.keys[0].startswith("fashion-mnist/test/")


def test_a_download_that_is_cut_off_is_continued(mnist):
    name = "train-images-idx3-ubyte.gz"
    mnist.cut[name] = 1000
    load_data(DataConfig("mnist", download=True))
    assert [wanted for path, wanted in mnist.requests if path.endswith(name)] == [None, "bytes=1000-"]


def test_what_had_arrived_before_is_kept(server, tmp_path):
    data = bytes(range(256)) * 100
    server.files["a.bin"] = data
    (tmp_path / "a.bin.part").write_bytes(data[:5000])
    downloads.fetch([server.url + "a.bin"], tmp_path / "a.bin", md5=md5(data))
    assert (tmp_path / "a.bin").read_bytes() == data
    assert server.requests == [("/a.bin", "bytes=5000-")]


def test_a_beginning_of_something_else_is_thrown_away(server, tmp_path):
    data = bytes(range(256)) * 100
    server.files["a.bin"] = data
    (tmp_path / "a.bin.part").write_bytes(b"x" * 5000)
    downloads.fetch([server.url + "a.bin"], tmp_path / "a.bin", md5=md5(data))
    assert (tmp_path / "a.bin").read_bytes() == data
    (tmp_path / "b.bin.part").write_bytes(b"x" * 50_000)  # longer than the file: the server has nothing to add
    server.files["b.bin"] = data
    downloads.fetch([server.url + "b.bin"], tmp_path / "b.bin", md5=md5(data))
    assert (tmp_path / "b.bin").read_bytes() == data


def test_a_server_that_cannot_continue_starts_again(server, tmp_path):
    data = bytes(range(256)) * 100
    server.files["a.bin"], server.ranges = data, False
    (tmp_path / "a.bin.part").write_bytes(data[:5000])
    downloads.fetch([server.url + "a.bin"], tmp_path / "a.bin", md5=md5(data))
    assert (tmp_path / "a.bin").read_bytes() == data


def test_wrong_checksum(mnist, monkeypatch, tmp_path):
    publish(monkeypatch, mnist, "mnist", md5="0" * 32)
    with pytest.raises(
        OSError, match=r"train-images-idx3-ubyte\.gz could not be fetched \(.*MD5 checksum .* states 0000"
    ):
        load_data(DataConfig("mnist", download=True))
    assert [path.name for path in (tmp_path / "cache/data/mnist").iterdir() if path.name != ".lock"] == []


def test_the_next_mirror_helps(mnist, monkeypatch):
    publish(monkeypatch, mnist, "mnist", mirrors=(mnist.url + "gone/", mnist.url))
    assert len(load_data(DataConfig("mnist", download=True)).test) == 6


def test_no_mirror_helps(mnist, monkeypatch):
    publish(monkeypatch, mnist, "mnist", mirrors=(mnist.url + "gone/",))
    with pytest.raises(OSError, match=r"could not be fetched \(http://127.0.0.1:\d+/gone/train-images.*Not Found\)"):
        load_data(DataConfig("mnist", download=True))


def test_the_name_is_not_the_folder_of_that_name(mnist, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    with pytest.raises(FileNotFoundError, match=r"\./mnist for the folder of that name here"):
        load_data(DataConfig("mnist"))


def cifar10_batch(count, seed):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (count, 3073), dtype=np.uint8)
    rows[:, 0] %= 10
    return rows


def cifar10_archive(batches, *, extra=()):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in [*extra, *((f"cifar-10-batches-bin/{n}", rows.tobytes()) for n, rows in batches.items())]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def publish_cifar10(monkeypatch, server, archive, size):
    server.files = {"cifar-10-binary.tar.gz": archive}
    members = tuple((name, size) for name in downloads._CIFAR10_BATCHES)
    resource = Resource("cifar-10-binary.tar.gz", md5(archive), members)
    monkeypatch.setitem(downloads.PUBLISHED, "cifar10", Published((server.url,), (resource,)))


def test_cifar10_is_taken_out_of_its_archive(server, monkeypatch, tmp_path):
    batches = {name: cifar10_batch(4, i) for i, name in enumerate(downloads._CIFAR10_BATCHES)}
    outside = [("../../outside.txt", b"x"), ("/absolute.txt", b"x"), ("cifar-10-batches-bin/readme.html", b"x")]
    publish_cifar10(monkeypatch, server, cifar10_archive(batches, extra=outside), 4 * 3073)
    splits = load_data(DataConfig("cifar10", download=True), value_range=(0.0, 1.0))
    folder = tmp_path / "cache/data/cifar10"
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == sorted(batches)
    assert not (tmp_path / "cache/outside.txt").exists()
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (20, 4)
    assert splits.classes[9] == "truck"
    row = batches["test_batch.bin"][2]
    item = splits.test[splits.test.keys.index("cifar10/test/00002")]
    assert item["label"] == row[0]
    assert np.array_equal((item["x"] * 255).round().byte().numpy(), row[1:].reshape(3, 32, 32))


def test_cifar10_archive_without_a_batch_or_with_a_short_one(server, monkeypatch):
    batches = {name: cifar10_batch(4, i) for i, name in enumerate(downloads._CIFAR10_BATCHES)}
    short = batches | {"data_batch_3.bin": cifar10_batch(3, 0)}
    publish_cifar10(monkeypatch, server, cifar10_archive(short), 4 * 3073)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 9219 bytes; expected 12292"):
        load_data(DataConfig("cifar10", download=True))
    del batches["data_batch_2.bin"]
    publish_cifar10(monkeypatch, server, cifar10_archive(batches), 4 * 3073)
    with pytest.raises(ValueError, match=r"lacks data_batch_2\.bin"):
        load_data(DataConfig("cifar10", download=True))
