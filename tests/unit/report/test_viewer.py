"""The viewer's state and server."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.report.viewer import (
    BASE,
    ImageLayer,
    SegmentLayer,
    Site,
    ViewerServer,
    serve,
    viewer_state,
)
from pipeline.storage.precomputed import create_segmentation, link, open_precomputed, write_region
from pipeline.storage.precomputed_skeletons import write_skeletons
from pipeline.storage.volume import Volume

SHAPE = (16, 40, 48)
SIZE = (2000.0, 1000.0, 1000.0)
BIG = 2**64 - 2
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def state() -> dict[str, Any]:
    return viewer_state(
        shape=SHAPE,
        voxel_size_nm=SIZE,
        image=ImageLayer("image.zarr", limits=(0.0, 1000.0)),
        segments=SegmentLayer("precomputed/my segments", [BIG]),
        truth=SegmentLayer("precomputed/truth", [1], name="truth"),
        sites=[
            Site((8.5, 20.5, 30.5), "a merge", segments=[BIG]),
            Site((1, 2, 3), "a gap", end=(4, 5, 6)),
        ],
        position=(8.5, 20.5, 24.5),
    )


def test_state_says_where_everything_is() -> None:
    found = state()
    json.dumps(found, allow_nan=False)
    assert found["position"] == [24.5, 20.5, 8.5]
    assert found["layout"] == "4panel"
    scales = {axis: pytest.approx(v[0]) for axis, v in found["dimensions"].items()}
    assert scales == {"x": 1e-6, "y": 1e-6, "z": 2e-6}
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["image", "segments", "truth", "sites"]
    assert layers["image"]["source"]["url"] == f"{BASE}/image.zarr/|zarr3:"
    assert layers["image"]["shaderControls"] == {"normalized": {"range": [0.0, 1000.0]}}
    source = f"{BASE}/precomputed/my%20segments/|neuroglancer-precomputed:"
    assert layers["segments"]["source"] == source
    assert layers["segments"]["segments"] == [str(BIG)]
    assert layers["truth"]["segmentDefaultColor"] == "#ffffff"
    point, line = layers["sites"]["annotations"]
    assert (point["type"], point["point"]) == ("point", [30.5, 20.5, 8.5])
    assert point["segments"] == [[str(BIG)]]
    assert (line["pointA"], line["pointB"]) == ([3, 2, 1], [6, 5, 4])


def test_state_without_layers_begins_in_the_middle() -> None:
    found = viewer_state(shape=SHAPE, voxel_size_nm=SIZE)
    assert found["layers"] == []
    assert found["position"] == [24, 20, 8]


def test_ngff_images_are_shifted_onto_precomputed_labels() -> None:
    transform = state()["layers"][0]["source"]["transform"]
    assert list(transform["outputDimensions"]) == ["z", "y", "x"]
    assert np.array(transform["matrix"]).tolist() == np.c_[np.eye(3), [0.5] * 3].tolist()
    image = ImageLayer("image", is_zarr=False)
    plain = viewer_state(shape=SHAPE, voxel_size_nm=SIZE, image=image)["layers"][0]
    assert plain["source"] == {"url": f"{BASE}/image/|neuroglancer-precomputed:"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ViewerServer]:
    run = tmp_path / "run"
    (run / "a folder").mkdir(parents=True)
    (run / "a folder" / "data").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run-other").mkdir()
    (tmp_path / "run-other" / "secret").write_text("secret")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "inner").symlink_to(run / "a folder" / "data")
    with serve(run, state()) as started:
        yield started


def get(
    server: ViewerServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """A request whose path goes out as it is, without a client that tidies it up."""
    parts = urlsplit(server.data_url)
    assert parts.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_files_ranges_and_headers(server: ViewerServer) -> None:
    base = urlsplit(server.data_url).path
    status, headers, body = get(server, f"{base}/a%20folder/data")
    assert (status, body) == (200, bytes(range(100)))
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Content-Encoding"] is None
    status, headers, body = get(server, f"{base}/a%20folder/data", Range="bytes=10-19")
    assert (status, body) == (206, bytes(range(10, 20)))
    assert headers["Content-Range"] == "bytes 10-19/100"
    status, _, body = get(server, f"{base}/a%20folder/data", Range="bytes=-4")
    assert (status, body) == (206, bytes(range(96, 100)))
    status, headers, body = get(server, f"{base}/a%20folder/data", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "100", b"")
    status, headers, _ = get(server, f"{base}/a%20folder/data", "OPTIONS")
    assert status == 204
    assert "range" in headers["Access-Control-Allow-Headers"]
    assert get(server, f"{base}/absent")[0] == 404
    assert get(server, f"{base}/inner")[2] == bytes(range(100))


def test_nothing_outside_the_run_is_served(server: ViewerServer) -> None:
    base = urlsplit(server.data_url).path
    for path in (
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/a%20folder/../../secret",
        "/../run-other/secret",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/link",
        "/",
        "/a%20folder",
    ):
        status, _, body = get(server, base + path)
        assert status in (403, 404), path
        assert b"secret" not in body, path
    assert get(server, "/data/guess/a%20folder/data")[0] == 404


def test_a_repeated_run_is_not_served_from_memory(server: ViewerServer, tmp_path: Path) -> None:
    base = urlsplit(server.data_url).path
    _, headers, _ = get(server, f"{base}/a%20folder/data")
    assert headers["Etag"] is None
    (tmp_path / "run" / "a folder" / "data").write_bytes(b"new")
    assert get(server, f"{base}/a%20folder/data")[2] == b"new"


def test_the_client_is_there_and_its_state_has_addresses(server: ViewerServer) -> None:
    status, _, body = get(server, urlsplit(server.url).path)
    assert status == 200
    assert b"<script" in body
    text = json.dumps(server.viewer.state.to_json())
    assert BASE not in text
    assert f"{server.data_url}/image.zarr/|zarr3:" in text


def test_refusals_and_restart(server: ViewerServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        serve(tmp_path / "absent", state())
    with pytest.raises(InputError, match="already"):
        serve(tmp_path / "run", state())
    parts = urlsplit(server.url)
    server.stop()
    with pytest.raises(OSError, match="refused"):
        get(server, "/")
    with serve(tmp_path / "run", state(), port=parts.port or 0) as again:
        assert urlsplit(again.url).port == parts.port
        assert get(again, urlsplit(again.url).path)[0] == 200


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=str(port)):
            serve(tmp_path, state(), port=port)
    with serve(tmp_path, state()) as started:
        assert started.url


def small_run(run: Path) -> None:
    """A bright bar in the image, labelled exactly, with its skeleton, and a bar without a label."""
    bar = np.zeros(SHAPE, bool)
    bar[6:10, 16:24, 4:44] = True
    image = np.where(bar, 900, 100).astype(np.uint16)
    image[6:10, 30:36, 4:44] = 900
    volume = Volume.create(
        run / "image.zarr", SHAPE, np.uint16, chunks=(16, 16, 16), voxel_size_nm=SIZE
    )
    volume.write(volume.roi, image)
    path = run / "precomputed" / "my segments"
    create_segmentation(path, SHAPE, SIZE, (16, 16, 16))
    write_region(path, open_precomputed(path).roi, np.where(bar, BIG, 0).astype(np.uint64))
    nodes = np.array([(8, 20, x + 0.5) for x in range(4, 44)], np.float64)
    edges = np.stack([np.arange(1, 40), np.arange(39)], axis=1)
    write_skeletons(path / "skeletons", {BIG: Skeleton("s", nodes, edges)}, SIZE)
    link(path, skeletons="skeletons")
    write_skeletons(run / "precomputed" / "truth", {1: Skeleton("t", nodes + 4, edges)}, SIZE)


def screenshot(started: ViewerServer, profile: Path) -> np.ndarray:
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --use-gl=angle --use-angle=swiftshader --no-first-run "
        "--enable-unsafe-swiftshader --ignore-gpu-blocklist --disable-background-networking "
        "--disable-component-update --disable-sync --remote-debugging-port=0"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", started.url]
    taken: list[bytes] = []

    def take() -> None:
        taken.append(started.viewer.screenshot(size=(800, 800)).screenshot.image)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        waiting = threading.Thread(target=take, daemon=True)
        waiting.start()
        waiting.join(90)
        browser.terminate()
    assert taken, "the browser showed nothing within 90 s"
    with Image.open(BytesIO(taken[0])) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_image_labels_and_skeleton_coincide_on_the_screen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    small_run(run)
    shown = state()
    shown["layers"] = shown["layers"][:2]  # the image and the segments
    shown.update(layout="xy", showAxisLines=False, showScaleBar=False, crossSectionScale=0.1)
    shown["showDefaultAnnotations"] = False  # the outline of the volume
    shown.pop("selectedLayer")
    shown["position"] = [24.0, 20.0, 8.0]
    shown["layers"][1]["skeletonRendering"] = {"mode2d": "lines", "lineWidth2d": 6}
    with serve(run, shown) as started:
        pixels = screenshot(started, tmp_path / "profile")

    # Ten pixels a voxel, the middle of the picture at x 24, y 20.
    def at(y: float, x: float) -> np.ndarray:
        return pixels[round(400 + (y - 20) * 10), round(400 + (x - 24) * 10)]

    colour = np.ptp(pixels, axis=2) > 12
    rows, columns = np.flatnonzero(colour.any(axis=1)), np.flatnonzero(colour.any(axis=0))
    # The coloured region is the labelled bar, to a fifth of a voxel: y 16 to 24, x 4 to 44.
    np.testing.assert_allclose([rows[0], rows[-1] + 1], [360, 440], atol=2)
    np.testing.assert_allclose([columns[0], columns[-1] + 1], [200, 600], atol=2)
    # The bar without a label is bright and grey from y 30 to 36, to a fifth of a voxel as well.
    for y, x in ((30.2, 24), (35.8, 24), (33, 4.2), (33, 43.8)):
        assert at(y, x).min() > 180, (y, x)
    for y, x in ((29.8, 24), (36.2, 24), (33, 3.8), (33, 44.2)):
        assert at(y, x).max() < 90, (y, x)
    # The skeleton runs along the middle in the segment's own strong colour.
    assert np.ptp(at(20.0, 24)) > np.ptp(at(18.0, 24)) + 40
