"""What the segmentation gives for fixed affinities. A change here needs a higher stage version.

Blocks of an earlier run are reused where the key is the same, and the key holds the version: output
that changes under the same version would be mixed with older output.
"""

import hashlib

import numpy as np
import zarr

from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.stages.agglomerate import read_lookups
from pipeline.storage.tables import read_arrays, read_table

SHAPE = (13, 21, 34)
# Stage: (version, digest of its output). Raise the version whenever the digest changes.
GOLDEN = {
    "fragments": (2, "7d7ad4c0be66db80"),
    "stitch": (2, "1b82daf8faafd7c5"),
    "edges": (2, "6a5b5b94f9a680b9"),
    "agglomerate": (2, "65e70227065763d6"),
    "collect": (1, "0e185181e897da8b"),
    "relabel": (2, "c9d9b4372d42408b"),
}


def affinities():
    """A formula, not a random generator: the same for every version of numpy."""
    c, z, y, x = np.ogrid[:3, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    mixed = (c * 7919 + z * 104729 + y * 1299709 + x * 15485863 + z * y * x * 31) % 256
    blobs = 200 * ((z // 4 + y // 5 + x // 6) % 2)
    return ((mixed + 2 * blobs) // 3).astype(np.uint8)


def digest(*arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(str((array.dtype, array.shape)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def files(run, artifact):
    return sorted(path for path in run.path(artifact).rglob("[0-9]*.arrow"))


def outputs(run):
    """Every array that each stage leaves, in a fixed order."""
    volumes = {name: run.volume(name) for name in ("local_fragments", "fragments", "segments")}
    voxels = {name: volume.read(volume.roi) for name, volume in volumes.items()}
    records = [read_arrays(path) for path in files(run, "block_records")]
    graphs = [read_arrays(path) for path in files(run, "block_graphs")]
    maps = [read_table(path) for path in files(run, "stitch")]
    lookups = [pair for path in files(run, "block_lookups") for pair in read_lookups(path)]
    tables = [
        read_table(path)
        for name in ("edges", "history", "lookup")
        for path in sorted(run.path(name).iterdir())
    ]
    return {
        "fragments": [voxels["local_fragments"], *columns(records)],
        "stitch": columns(maps),
        "edges": columns(graphs),
        "agglomerate": [column for pair in lookups for column in pair],
        "collect": columns(tables),
        "relabel": [voxels["fragments"], voxels["segments"]],
    }


def columns(tables):
    return [table[name] for table in tables for name in sorted(table)]


def test_equal_versions_give_equal_output(tmp_path):
    data = affinities()
    path = tmp_path / "affinities.zarr"
    zarr.create_array(path, shape=data.shape, dtype=data.dtype)[:] = data
    config = parse_config(
        {
            "run_dir": tmp_path / "run",
            "input": {"affinities": path},
            "segment": {
                "block": [7, 9, 20], "group": [7, 9, 20], "low": 0.5, "high": 0.75,
                "thresholds": [0.55, 0.4], "min_voxels": 4,
            },
            "execution": {"kind": "serial"},
        }
    )  # fmt: skip
    run, stages = prepare(config, only=tuple(GOLDEN))
    run_stages(run, stages)
    found = {name: digest(*arrays) for name, arrays in outputs(run).items()}
    assert {stage.name: (stage.version, found[stage.name]) for stage in stages} == GOLDEN
