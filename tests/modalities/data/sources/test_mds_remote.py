"""MDS shards in an object store: the S3 client of mosaicml-streaming against a server in this process."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core.errors import DataError
from modalities.data.sources import mds
from modalities.data.sources.mds import MdsShards
from tests.modalities.data.sources.shards import read_all, write_mds


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr(mds, "BACKOFF", 0.01)


class Store(BaseHTTPRequestHandler):
    """GET and HEAD of files; the last of `faults` is asked first and may answer instead."""

    folder: Path
    faults: list[Callable[[BaseHTTPRequestHandler], bool]]
    asked: list[str]

    def do_GET(self) -> None:
        path = self.folder / self.path.partition("/bucket/")[2].partition("?")[0]
        self.asked.append(f"{self.command} {path.name}")
        if self.faults and self.faults[-1](self):
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")
        self.send_header("ETag", '"x"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def store(tmp_path, monkeypatch):
    handler = type("OneStore", (Store,), {"folder": tmp_path / "data", "asked": [], "faults": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CA_BUNDLE", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_an_object_store_is_read_through_the_cache(tmp_path, store):
    write_mds(tmp_path / "data", compression="zstd")
    shards = MdsShards("s3://bucket", tmp_path / "cache")
    assert read_all(shards) == {}
    asked = len(store.asked)
    assert read_all(pickle.loads(pickle.dumps(shards))) == {}
    assert len(store.asked) == asked


def test_a_store_that_fails_twice_is_asked_again(tmp_path, store):
    write_mds(tmp_path / "data")
    shards = MdsShards("s3://bucket", tmp_path / "cache")
    left = [2]

    def fails(handler) -> bool:
        left[0] -= 1
        if left[0] >= 0:
            handler.send_error(503)
        return left[0] >= 0

    store.faults.append(fails)
    assert shards.read(0)["label"] == 0
    assert left[0] < 0


def cut(handler) -> bool:
    """Announces more than it sends, as a connection that is lost."""
    if handler.command == "GET":
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        handler.close_connection = True
    return handler.command == "GET"


def denied(handler) -> bool:
    handler.send_error(403)
    return True


@pytest.mark.parametrize("fault", [cut, denied])
def test_a_shard_that_cannot_be_fetched_names_its_url_and_leaves_nothing(tmp_path, store, fault, monkeypatch):
    monkeypatch.setattr(mds, "ATTEMPTS", 1)  # the client of S3 has tries of its own
    write_mds(tmp_path / "data")
    shards = MdsShards("s3://bucket", tmp_path / "cache")
    store.faults.append(fault)
    with pytest.raises(DataError, match=r"s3://bucket/shard\.00000\.mds: cannot be read after 1 attempts: \w+"):
        shards.read(0)
    asked = len(store.asked)
    with pytest.raises(DataError, match="after 1 attempts"):
        shards.read(1)  # the store is left alone for a while
    assert len(store.asked) == asked
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} <= {".lock"}
    store.faults.clear()
    shards._failed.clear()  # as after RETRY_AFTER
    assert read_all(shards) == {}


def test_a_store_that_is_not_there_is_an_error_and_no_wait(tmp_path, store, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"s3://bucket/index\.json: cannot be read after 3 attempts: .*127\.0\.0\.1:9"):
        MdsShards("s3://bucket", tmp_path / "cache")
    assert time.monotonic() - begun < 30
    with pytest.raises(DataError, match=r"odd://x/index\.json: cannot be read .*Unsupported remote path"):
        MdsShards("odd://x")
