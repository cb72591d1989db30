"""A registry of images on loopback, complete enough for a pull (OCI distribution specification)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from projects import engine

MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_PIECE: Final = 64 * 1024


@dataclass
class Registry:
    """What it holds, and how it behaves: everything but `blobs` and `manifest` is for tests to set.

    *refusal* is a status and a code that *refused*, manifests or blobs, are refused with. *pause*
    are the seconds between two pieces of a layer, *cut* and *stall* the bytes of a layer after
    which the connection is cut, as often as *cuts* says, or nothing comes any more.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    refusal: tuple[int, str] | None = None
    refused: str = "manifests"
    pause: float = 0.0
    cut: int | None = None
    cuts: int = 0
    stall: int | None = None
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)

    def image(self, name: str) -> str:
        """Return the reference of an image here."""
        return f"127.0.0.1:{self.port}/{name}"

    def put(self, kind: str, data: bytes) -> dict[str, Any]:
        """Keep a blob, and return what a manifest says of it."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def hold(self, config: dict[str, Any], layers: list[bytes]) -> None:
        """Hold one image of *layers*, each a tar, below whatever name and tag it is asked for."""
        described = [self.put(_LAYER, layer) for layer in layers]
        config["rootfs"] = {"type": "layers", "diff_ids": [each["digest"] for each in described]}
        own = self.put(_CONFIG, json.dumps(config).encode())
        self.manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": own, "layers": described}
        ).encode()


def scratch() -> tuple[dict[str, Any], list[bytes]]:
    """Return the configuration and the layers of an image that no engine has: random bytes."""
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    return config, [noise(size) for size in (3_000_000, 2_000_000, 1_000_000)]


def noise(size: int) -> bytes:
    """Return a layer with one file of random bytes."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(f"noise-{os.urandom(4).hex()}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return layer.getvalue()


def saved(image: str) -> tuple[dict[str, Any], list[bytes]]:
    """Return the configuration and the layers of an *image* that the engine has."""
    with engine() as client:
        archive = b"".join(client.images.get(image).save())
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        (described,) = json.loads(read("manifest.json"))
        layers = [read(name) for name in described["Layers"]]
        config: dict[str, Any] = json.loads(read(described["Config"]))
        return config, layers


@contextmanager
def running(registry: Registry) -> Iterator[Registry]:
    """Let *registry* answer on a free port of loopback, which engines trust without TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            registry.asked.append(format % args)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            _, _, rest = self.path.partition("/v2/")
            kind, name = rest.rpartition("/")[0].rpartition("/")[2], rest.rpartition("/")[2]
            if kind == registry.refused and registry.refusal:
                status, code = registry.refusal
                words = {"code": code, "message": f"the registry says {code.lower()}"}
                self.answer(json.dumps({"errors": [words]}).encode(), "application/json", status)
            elif kind == "manifests":
                self.answer(registry.manifest, MANIFEST)
            elif kind == "blobs":
                # An engine goes on where it was cut off.
                begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
                self.answer(registry.blobs[name], "application/octet-stream", begin=begin)
            else:
                self.answer(b"{}", "application/json")

        def answer(
            self, body: bytes, kind: str, status: int = 200, begin: re.Match[str] | None = None
        ) -> None:
            whole, body = body, body[int(begin[1]) if begin else 0 :]
            self.send_response(206 if begin else status)
            if begin:
                first, last = len(whole) - len(body), len(whole) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if kind == MANIFEST:
                digest = hashlib.sha256(body).hexdigest()
                self.send_header("Docker-Content-Digest", f"sha256:{digest}")
            self.end_headers()
            if self.command == "HEAD":
                return
            for place in range(0, len(body), _PIECE):
                if registry.cut is not None and place >= registry.cut and registry.cuts:
                    registry.cuts -= 1
                    self.close_connection = True
                    return
                if registry.stall is not None and place >= registry.stall:
                    registry.closing.wait()
                    return
                self.wfile.write(body[place : place + _PIECE])
                if registry.pause and len(body) > _PIECE:
                    time.sleep(registry.pause)

        def handle(self) -> None:
            # An engine that has given up hangs up.
            with suppress(ConnectionError):
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            registry.closing.set()
            server.shutdown()
            thread.join()
