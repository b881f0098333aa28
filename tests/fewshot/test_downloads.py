import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import fewshot.downloads
from fewshot.data import open_split
from fewshot.downloads import SPLITS
from tests.fewshot_inputs import CLASSES, EACH, zenodo_files

DOWNLOADED = ("mini-imagenet", "tiered-imagenet", "fc100", "cifarfs")
WEB_PAGE = b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        """Sends a file, all of it or the first bytes, and tells its whole length."""
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        if name not in self.server.silent:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut.get(name)])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server in Zenodo's place; its answers are in its attributes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.files, server.cut, server.silent, server.asked = {}, {}, set(), []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            fewshot.downloads, "ZENODO", f"http://127.0.0.1:{server.server_port}/record/files"
        )
        yield server
        server.shutdown()


@pytest.fixture(params=DOWNLOADED)
def dataset(request, server, tmp_path):
    server.files = zenodo_files(request.param, tmp_path / "made")
    return request.param


def fetch(dataset, root):
    return open_split(dataset, root, "test", download=True, image_size=32)


def data_files(dataset):
    return [file for split in SPLITS for file in fewshot.downloads.data_files(dataset, split)]


def files(root):
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def test_downloads_what_is_missing(dataset, server, tmp_path):
    root = tmp_path / "root"
    opened = fetch(dataset, root)
    assert len(opened) == EACH * len(CLASSES["test"])
    assert sorted(server.asked) == sorted(server.files)
    assert all((root / file.place).exists() for file in data_files(dataset))
    assert not list(root.rglob("unfinished-*"))
    made = [path for path in files(tmp_path / "made") if "unfinished" not in str(path)]
    assert set(made) <= set(files(root))
    open_split(dataset, root, "train", download=True, image_size=32)
    assert len(server.asked) == len(server.files)  # nothing twice


def test_what_breaks_off_is_not_kept(dataset, server, tmp_path):
    name = sorted(server.files)[-1]
    server.cut[name] = len(server.files[name]) // 2
    with pytest.raises(ValueError, match=rf"cannot download http.*{name}: the connection broke of"):
        fetch(dataset, tmp_path / "root")
    assert_nothing_of(name, dataset, tmp_path / "root")
    del server.cut[name]
    assert len(fetch(dataset, tmp_path / "root").classes) == len(CLASSES["test"])


def test_what_breaks_off_without_a_length_is_not_kept(dataset, server, tmp_path):
    name = sorted(server.files)[-1]
    server.cut[name] = len(server.files[name]) // 2
    server.silent.add(name)
    with pytest.raises(ValueError, match=rf"{name} is not the file that it should be.* is no whol"):
        fetch(dataset, tmp_path / "root")
    assert_nothing_of(name, dataset, tmp_path / "root")


def test_a_web_page_in_a_files_place_is_not_kept(dataset, server, tmp_path):
    name = sorted(server.files)[0]
    server.files[name] = WEB_PAGE
    with pytest.raises(ValueError, match=rf"{name} is not the .* is a web page \(HTML\)"):
        fetch(dataset, tmp_path / "root")
    assert_nothing_of(name, dataset, tmp_path / "root")


def test_an_address_without_a_file_is_told(dataset, server, tmp_path):
    name = sorted(server.files)[0]
    del server.files[name]
    with pytest.raises(ValueError, match=rf"cannot download http.*/{name}: .*404"):
        fetch(dataset, tmp_path / "root")
    assert_nothing_of(name, dataset, tmp_path / "root")


def test_no_server_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(fewshot.downloads, "ZENODO", "http://127.0.0.1:9/record/files")
    with pytest.raises(ValueError, match=r"cannot download http://127.0.0.1:9/.*[Rr]efused"):
        fetch("fc100", tmp_path)
    assert files(tmp_path) == []


def test_a_damaged_archive_is_not_kept(server, tmp_path):
    server.files = zenodo_files("cifarfs", tmp_path / "made")
    content = bytearray(server.files["cifar100.zip"])
    place = content.index(b"IDAT")  # the pictures are stored as they are
    content[place + 8] ^= 255
    server.files["cifar100.zip"] = bytes(content)
    told = r"archive.zip is no whole archive: Bad CRC-32 for file 'cifar100/.*png'"
    with pytest.raises(ValueError, match=told):
        fetch("cifarfs", tmp_path / "root")
    assert files(tmp_path / "root") == []


def test_an_archive_of_something_else_is_not_kept(server, tmp_path):
    archives = zenodo_files("cifarfs", tmp_path / "made")
    server.files = {"fc100.zip": archives["cifar100.zip"]}
    with pytest.raises(
        ValueError, match=r"fc100.zip is not the .*FC100_train.pickle.*No such file"
    ):
        fetch("fc100", tmp_path / "root")
    assert files(tmp_path / "root") == []


def test_keeps_the_files_that_are_there(server, tmp_path):
    server.files = zenodo_files("mini-imagenet", tmp_path / "made")
    own = tmp_path / "root" / "mini-imagenet-cache-test.pkl"
    own.parent.mkdir()
    own.write_bytes(WEB_PAGE)
    with pytest.raises(ValueError, match=f"{own} is a web page .*Delete it and let --download"):
        fetch("mini-imagenet", tmp_path / "root")
    assert own.read_bytes() == WEB_PAGE
    assert own.name not in server.asked


def assert_nothing_of(name, dataset, root):
    """No file that comes from ``name`` is at its place, and no unfinished one is left."""
    places = [file.place for file in data_files(dataset) if file.source == name]
    assert places
    assert not any((root / place).exists() for place in places)
    assert not list(root.rglob("unfinished-*"))
