"""A run in Neuroglancer: the state that shows it, and a server for it.

The state names its data relative to the run directory; `serve` puts its own address in front, so
a state can be written once and opened anywhere. Client and data come from one port of this machine,
and nothing is fetched from elsewhere.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import neuroglancer
import neuroglancer.server
import tornado.web

from pipeline.errors import InputError
from pipeline.geometry import Triple

NmTriple = tuple[float, float, float]
Position = tuple[float, float, float]

BASE = "{base}"
"""Stands for the address of the run directory in the sources of a state."""

_AXES = ("x", "y", "z")
_SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"
_TRUTH_COLOUR = "#ffffff"
_PRECOMPUTED = "neuroglancer-precomputed"


@dataclass(frozen=True)
class ImageLayer:
    """An image: an OME-Zarr group (zarr v3), or a precomputed volume.

    Attributes:
        path: relative to the run directory.
        limits: the values drawn black and white; None lets the viewer choose.
        name: of the layer.
        is_zarr: False for a precomputed volume.
    """

    path: str
    limits: tuple[float, float] | None = None
    name: str = "image"
    is_zarr: bool = True


@dataclass(frozen=True)
class SegmentLayer:
    """A precomputed segmentation with what is linked to it, or a folder of skeletons alone.

    Attributes:
        path: relative to the run directory.
        segments: ids that are shown at the start.
        name: of the layer.
        visible: whether the layer is shown at the start.
    """

    path: str
    segments: Sequence[int] = ()
    name: str = "segments"
    visible: bool = True


@dataclass(frozen=True)
class Site:
    """A place to look at.

    Attributes:
        position: z, y, x in voxels (floor gives the voxel).
        description: shown in the list of sites.
        end: makes the site a line from `position`, for instance across a gap.
        segments: that the site concerns; selecting the site shows them.
    """

    position: Position
    description: str
    end: Position | None = None
    segments: Sequence[int] = ()


def viewer_state(
    *,
    shape: Triple,
    voxel_size_nm: NmTriple,
    image: ImageLayer | None = None,
    segments: SegmentLayer | None = None,
    truth: SegmentLayer | None = None,
    sites: Sequence[Site] = (),
    position: Position | None = None,
) -> dict[str, Any]:
    """A Neuroglancer state with four panels: three sections and the neurons in space.

    Args:
        shape: z, y, x of the volume.
        voxel_size_nm: z, y, x.
        image: drawn below everything.
        segments: the segmentation, with skeletons.
        truth: tracings, drawn white beside the skeletons.
        sites: annotations, in the order in which they should be visited.
        position: z, y, x in voxels, where to begin; default the middle of the volume. Choose a node
            of the largest neuron: the middle is often empty.

    Returns:
        The state; `BASE` in its sources is to be replaced by the address of the run directory.
    """
    layers = []
    if image is not None:
        layers.append(_image_json(image, voxel_size_nm))
    if segments is not None:
        layers.append(_segments_json(segments))
    if truth is not None:
        layers.append(_segments_json(truth, _TRUTH_COLOUR))
    if sites:
        layers.append(_sites_json(sites, voxel_size_nm, segments))
    centre = position or tuple(n / 2 for n in shape)
    # In units of the finest voxel edge; a panel is some 400 pixels wide.
    extent = max(n * s for n, s in zip(shape, voxel_size_nm, strict=True)) / min(voxel_size_nm)
    state: dict[str, Any] = {
        "dimensions": _dimensions(voxel_size_nm),
        "position": list(centre[::-1]),
        "crossSectionScale": extent / 400,
        "projectionScale": extent * 1.6,
        "layers": layers,
        "layout": "4panel",
        "showSlices": False,
    }
    if segments is not None:
        state["selectedLayer"] = {"visible": True, "layer": segments.name}
    return state


def _dimensions(voxel_size_nm: NmTriple) -> dict[str, list[Any]]:
    return {axis: [size * 1e-9, "m"] for axis, size in zip(_AXES, voxel_size_nm[::-1], strict=True)}


def _source(path: str, scheme: str) -> str:
    return f"{BASE}/{quote(path.strip('/'))}/|{scheme}:"


def _image_json(layer: ImageLayer, voxel_size_nm: NmTriple) -> dict[str, Any]:
    scheme = "zarr3" if layer.is_zarr else _PRECOMPUTED
    source: dict[str, Any] = {"url": _source(layer.path, scheme)}
    if layer.is_zarr:
        # OME-NGFF puts the centre of the first voxel at 0, precomputed data its corner.
        matrix = [[float(i == j) for j in range(3)] + [0.5] for i in range(3)]
        dimensions = dict(reversed(_dimensions(voxel_size_nm).items()))
        source["transform"] = {"outputDimensions": dimensions, "matrix": matrix}
    json_layer: dict[str, Any] = {
        "type": "image",
        "name": layer.name,
        "source": source,
        "shader": _SHADER,
        "opacity": 1,
    }
    if layer.limits is not None:
        json_layer["shaderControls"] = {"normalized": {"range": list(layer.limits)}}
    return json_layer


def _segments_json(layer: SegmentLayer, colour: str | None = None) -> dict[str, Any]:
    json_layer: dict[str, Any] = {
        "type": "segmentation",
        "name": layer.name,
        "source": _source(layer.path, _PRECOMPUTED),
        "segments": [str(segment) for segment in layer.segments],
        "selectedAlpha": 0.35,
        "notSelectedAlpha": 0.1,
        "skeletonRendering": {
            "mode2d": "lines_and_points",
            "lineWidth2d": 2,
            "mode3d": "lines",
            "lineWidth3d": 2,
        },
        "visible": layer.visible,
    }
    if colour is not None:
        json_layer["segmentDefaultColor"] = colour
    return json_layer


def _sites_json(
    sites: Sequence[Site], voxel_size_nm: NmTriple, segments: SegmentLayer | None
) -> dict[str, Any]:
    dimensions = _dimensions(voxel_size_nm)
    json_layer: dict[str, Any] = {
        "type": "annotation",
        "name": "sites",
        "source": {"url": "local://annotations", "transform": {"outputDimensions": dimensions}},
        "annotationColor": "#ffdd00",
        "annotations": [_site_json(site, number) for number, site in enumerate(sites, 1)],
    }
    if segments is not None:
        json_layer["linkedSegmentationLayer"] = {"segments": segments.name}
    return json_layer


def _site_json(site: Site, number: int) -> dict[str, Any]:
    place: dict[str, Any] = {"type": "point", "point": list(site.position[::-1])}
    if site.end is not None:
        ends = {"pointA": list(site.position[::-1]), "pointB": list(site.end[::-1])}
        place = {"type": "line", **ends}
    return {
        **place,
        "id": f"{number:06d}",
        "description": site.description,
        "segments": [[str(segment) for segment in site.segments]],
    }


class _RunFiles(tornado.web.StaticFileHandler):
    """Files of the run directory: byte ranges, readable from any page, never a stale copy."""

    def set_default_headers(self) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Headers", "range, x-requested-with")
        self.set_header("Access-Control-Expose-Headers", "content-length, content-range")
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.set_header("Cache-Control", "no-cache")

    def options(self, *_args: str) -> None:
        self.set_status(204)
        self.finish()

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        # The base class compares the names only; a link could still lead out of the run.
        if not Path(absolute_path).resolve().is_relative_to(Path(root).resolve()):
            raise tornado.web.HTTPError(403)
        return super().validate_absolute_path(root, absolute_path)

    def compute_etag(self) -> None:
        """None: the base class keeps the hash of a file for ever, and a run may be repeated."""


class ViewerServer:
    """A running viewer; `stop` ends it. Usable in a `with` statement.

    Attributes:
        url: to open in a browser.
        data_url: the address that stands for the run directory.
        viewer: of the `neuroglancer` package, for instance for a screenshot.
    """

    def __init__(self, viewer: neuroglancer.Viewer, data_url: str) -> None:
        self.viewer = viewer
        self.url = str(viewer.get_viewer_url())
        self.data_url = data_url

    def stop(self) -> None:
        """End the server; its addresses no longer answer."""
        neuroglancer.stop()

    def __enter__(self) -> ViewerServer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def serve(
    run_dir: Path, state: Mapping[str, Any], *, port: int = 0, host: str = "127.0.0.1"
) -> ViewerServer:
    """Serve a run directory and a Neuroglancer client that shows `state`, from one port.

    The address holds a random part, so that other users of the machine cannot guess it. One server
    per process.

    Args:
        run_dir: nothing outside is served.
        state: of `viewer_state`, or read from a file.
        port: 0 takes a free one.
        host: the address to listen on; anything but this machine's own shows the data to others.

    Raises:
        InputError: no such directory, the port is taken, or this process serves a run already.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory")
    if neuroglancer.server.is_server_running():
        raise InputError("this process serves a run already: stop that viewer first")
    _require_free(host, port)
    neuroglancer.set_server_bind_address(host, port)
    viewer = neuroglancer.Viewer()
    server = neuroglancer.server.global_server
    folder = f"/data/{viewer.token}"
    handler = (rf"{folder}/(.*)", _RunFiles, {"path": str(run_dir.resolve())})
    server.app.add_handlers(r".*", [handler])
    data_url = f"{server.server_url}{folder}"
    viewer.set_state(json.loads(json.dumps(state).replace(BASE, data_url)))
    return ViewerServer(viewer, data_url)


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another port") from error
