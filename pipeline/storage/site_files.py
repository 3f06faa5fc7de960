"""The sites of errors on disk: a Parquet table, and tracings as SWC files.

Equal sites give equal bytes, and a file appears under its name only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrays.error_site_tracings import SWC_TYPES, SiteTracing, trace_sites
from pipeline.arrays.error_sites import KINDS, Sites
from pipeline.arrays.metrics import Scores
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest
from pipeline.errors import DataError, InputError
from pipeline.storage.atomic import replacing
from pipeline.storage.swc_writer import write_swc
from pipeline.threads import map_threads

_SWC_SUFFIX = ".errors.swc"
_TRIPLES = {"position_vox": "{}_vox", "position_nm": "{}_nm", "end_a_vox": "end_a_{}_vox",
            "end_b_vox": "end_b_{}_vox"}  # fmt: skip
_PLAIN = ("label_a", "label_b", "node_a", "node_b", "node", "edge", "gap_nm", "background_nodes",
          "labelled_ends", "cable_a_nm", "cable_b_nm", "cable_nm")  # fmt: skip


def _fields() -> list[pa.Field]:
    real, whole, text = pa.float64(), pa.int64(), pa.string()
    label = pa.uint64()
    return [
        pa.field(name, kind, nullable=False)
        for name, kind in [
            ("site", whole),
            ("kind", text),
            ("neuron_a", text),
            ("neuron_b", text),
            ("label_a", label),
            ("label_b", label),
            ("cable_nm", real),
            ("cable_a_nm", real),
            ("cable_b_nm", real),
            ("gap_nm", real),
            ("background_nodes", whole),
            ("extent", text),
            ("labelled_ends", whole),
            *((pattern.format(axis), real) for pattern in _TRIPLES.values() for axis in "zyx"),
            ("node", whole),
            ("node_a", whole),
            ("node_b", whole),
            ("edge", whole),
        ]
    ]


SITES_SCHEMA = pa.schema(_fields())
"""The columns of `sites.parquet`; a table without sites has the same.

They are those of `Sites`: neurons by name, kinds and extents in words, triples an axis a column.
"""


def write_sites(path: Path, sites: Sites) -> None:
    """Write the sites as a Parquet table with the columns `SITES_SCHEMA`, replacing a file there.

    The names of all skeletons, also of those without a site, are kept in the table's metadata.
    """
    columns: dict[str, Any] = {name: getattr(sites, name) for name in _PLAIN}
    for name, pattern in _TRIPLES.items():
        columns |= {
            pattern.format(axis): getattr(sites, name)[:, d] for d, axis in enumerate("zyx")
        }
    columns |= {
        "site": sites.site,
        "kind": [KINDS[kind] for kind in sites.kind.tolist()],
        "extent": sites.extent,
        "neuron_a": [sites.names[number] for number in sites.neuron_a.tolist()],
        "neuron_b": [sites.names[number] for number in sites.neuron_b.tolist()],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SITES_SCHEMA]
    schema = SITES_SCHEMA.with_metadata({"axonloom": json.dumps({"names": sites.names})})
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd")


def read_sites(path: Path) -> Sites:
    """The sites of a table that `write_sites` wrote.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged, or none of these tables.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table of sites")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet table, or a damaged one: {error}") from error
    if not table.schema.equals(SITES_SCHEMA) or b"axonloom" not in (table.schema.metadata or {}):
        raise DataError(
            f"{path}: expected the columns of a table of sites ({', '.join(SITES_SCHEMA.names)}), "
            f"got {', '.join(table.schema.names)}; write it again"
        )
    names = tuple(json.loads(table.schema.metadata[b"axonloom"])["names"])
    number = {name: i for i, name in enumerate(names)}
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in _PLAIN}
    for name, pattern in _TRIPLES.items():
        axes = [table[pattern.format(axis)].to_numpy() for axis in "zyx"]
        columns[name] = np.stack(axes, axis=1)
    for name in ("neuron_a", "neuron_b"):
        columns[name] = np.array([number[n] for n in table[name].to_pylist()], np.int64)
    kinds = [KINDS.index(kind) for kind in table["kind"].to_pylist()]
    return Sites(names, kind=np.array(kinds, np.uint8), **columns)


def write_site_swc(
    folder: Path,
    sites: Sites,
    skeletons: Sequence[Skeleton],
    forests: Sequence[Forest],
    scores: Scores,
    voxel_size_nm: tuple[float, float, float],
    *,
    unit: str = "um",
) -> list[Path]:
    """Write `NAME.errors.swc` for each neuron that has errors, a tree a site, the worst first.

    Structure types tell the kinds (`SWC_TYPES`), the header which site each tree is. Files of that
    ending from before are removed: the folder holds what is given.

    Args:
        folder: made if it is missing.
        sites: of `find_sites`, with the three arguments that follow.
        skeletons: as scored.
        forests: of the skeletons.
        scores: of the skeletons.
        voxel_size_nm: z, y, x.
        unit: of the coordinates: "um", "nm" or "voxel".

    Returns:
        The files, by name.

    Raises:
        InputError: a skeleton's name cannot be that of a file.
    """
    tracings = trace_sites(skeletons, forests, scores, sites)
    paths = [folder / f"{_file_name(t.skeleton.name)}{_SWC_SUFFIX}" for t in tracings]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in {p for p in folder.iterdir() if p.name.endswith(_SWC_SUFFIX)} - set(paths):
        stale.unlink()

    def write(number: int) -> None:
        tracing = tracings[number]
        header = _header(tracing, sites)
        write_swc(
            paths[number], tracing.skeleton, voxel_size_nm=voxel_size_nm, unit=unit, header=header
        )

    map_threads(write, range(len(paths)))
    return paths


def _file_name(name: str) -> str:
    if PurePath(name).name != name:
        raise InputError(f"skeleton {name!r}: its name cannot be that of a file; rename it")
    return name


def _header(tracing: SiteTracing, sites: Sites) -> list[str]:
    types = ", ".join(f"{number} {kind}" for kind, number in SWC_TYPES.items())
    lines = [f"sites of errors on {tracing.skeleton.name}; types: {types}"]
    for tree, row in enumerate(tracing.sites.tolist(), start=1):
        kind, cable = KINDS[sites.kind[row]], float(sites.cable_nm[row])
        lines.append(f"tree {tree}: site {row + 1}, {kind}, cable {cable:.1f} nm")
    return lines
