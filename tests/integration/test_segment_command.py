"""`axonloom segment`: the blocks do not show, in no array and in no file."""

import json

import numpy as np
import pytest
import zarr

from pipeline.arrays.labels import affinities_from_labels
from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import PhantomSpec
from pipeline.geometry import Roi
from pipeline.storage.swc import write_swc
from pipeline.storage.volume import Volume

SHAPE = (44, 70, 90)
# Of the proportions of 256 x 256 x 256, 128 x 128 x 128, 96 x 70 x 110 and 8 x 256 x 256.
BLOCKS = {"even": (22, 35, 45), "odd": (17, 19, 39), "pencil": (4, 70, 90), "slab": (44, 9, 90)}
RESULTS = ("fragments.zarr", "segments.zarr", "edges", "history", "lookup")


def random_affinities(seed=0):
    """Noise on a coarse field: many ties, plateaus, and pieces of every size."""
    rng = np.random.default_rng(seed)
    field = rng.integers(0, 256, (3, 11, 18, 23)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    field = field[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    noise = rng.integers(-60, 61, field.shape)
    return np.clip(field + noise, 0, 255).astype(np.uint8)


def phantom_affinities(seed=5):
    """Perfect affinities of touching neurons, worn down by noise."""
    spec = PhantomSpec(SHAPE, (1000.0, 400.0, 400.0), 8, seed)
    labels = render(spec, grow_neurons(spec), Roi((0, 0, 0), SHAPE))[1]
    perfect = affinities_from_labels(labels).astype(np.int64)
    noise = np.random.default_rng(seed).integers(-120, 121, perfect.shape)
    return np.clip(perfect + noise, 0, 255).astype(np.uint8)


def save(path, data, **options):
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    array[:] = data
    return path


def contents(folder):
    found = {}
    for name in RESULTS:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def array(folder, name):
    volume = Volume.open(folder / name)
    return volume.read(volume.roi)


SETTINGS = ("--low", 0.3, "--high", 0.9, "--threshold", 0.6, "--threshold", 0.35)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("affinities")
    chunks = (3, 32, 32, 32)
    return {
        "random": save(folder / "random.zarr", random_affinities(), chunks=chunks),
        "phantom": save(folder / "phantom.zarr", phantom_affinities(), chunks=chunks),
    }


@pytest.fixture(scope="module")
def whole(volumes, tmp_path_factory):
    """Each volume in one block, by one process: what everything else must equal."""
    found = {}
    for kind in volumes:
        found[kind] = tmp_path_factory.mktemp("whole") / kind
    return found


@pytest.fixture
def reference(axonloom, volumes, whole):
    def of(kind):
        if not whole[kind].exists():
            done = axonloom(
                "segment", "--affinities", volumes[kind], "--out", whole[kind], *SETTINGS,
                "--block", *SHAPE, "--serial",
            )  # fmt: skip
            assert done.code == 0, done.err
        return whole[kind]

    return of


def same_as(reference, folder):
    for name in ("fragments.zarr", "segments.zarr"):
        np.testing.assert_array_equal(array(folder, name), array(reference, name))
    expected, found = contents(reference), contents(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_the_reference_is_worth_comparing(reference):
    for kind in ("random", "phantom"):
        fragments = array(reference(kind), "fragments.zarr")
        segments = array(reference(kind), "segments.zarr")
        count = len(np.unique(fragments)), len(np.unique(segments))
        assert count[0] > count[1] > 20, (kind, count)
        assert (fragments == 0).any()
        assert {p.split("/")[0] for p in contents(reference(kind))} == set(RESULTS)


def test_ids_are_smallest_voxels(reference):
    fragments = array(reference("random"), "fragments.zarr")
    segments = array(reference("random"), "segments.zarr")
    ids, first = np.unique(fragments, return_index=True)
    np.testing.assert_array_equal(ids[1:], first[1:] + 1)
    pairs = np.unique(np.stack([segments.ravel(), fragments.ravel()]), axis=1)
    for segment in np.unique(segments)[1:]:
        assert segment == pairs[1][pairs[0] == segment].min()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", ["random", "phantom"])
def test_the_blocks_do_not_show(axonloom, volumes, reference, tmp_path, kind, block):
    done = axonloom(
        "segment", "--affinities", volumes[kind], "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS[block], "--serial", "--order", "shuffled", "--seed", len(block),
    )  # fmt: skip
    assert done.code == 0, done.err
    same_as(reference(kind), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_workers_do_not_show(axonloom, volumes, reference, tmp_path, workers):
    done = axonloom(
        "segment", "--affinities", volumes["random"], "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS["odd"], "--workers", workers, "--order", "shuffled",
    )  # fmt: skip
    assert done.code == 0, done.err
    same_as(reference("random"), tmp_path / "out")


def test_small_segments_go_by_their_size_in_the_whole_volume(
    axonloom, volumes, reference, tmp_path
):
    done = axonloom(
        "segment", "--affinities", volumes["random"], "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS["odd"], "--serial", "--min-voxels", 50,
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = array(reference("random"), "segments.zarr").copy()
    ids, voxels = np.unique(expected, return_counts=True)
    expected[np.isin(expected, ids[voxels < 50])] = 0
    assert (voxels < 50).any()
    np.testing.assert_array_equal(array(tmp_path / "out", "segments.zarr"), expected)


# --- the same affinities in another dress


def as_float(data):
    # float64(float32(q / 255)) * 255 rounds back to q.
    return (data.astype(np.float64) / 255).astype(np.float32)


def in_group(path, data):
    save(zarr.create_group(path).store.root / "affinities", data)
    return path


def in_second_group(path, data):
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=data.shape, dtype=data.dtype)[:] = data
    return path


DRESSES = {
    "float32": lambda path, data: save(path, as_float(data)),
    "zarr v2": lambda path, data: save(path, data, zarr_format=2),
    "zarr v3 shards": lambda path, data: save(
        path, data, chunks=(3, 16, 16, 16), shards=(3, 32, 32, 32)
    ),
    "group": in_group,
    "v2 group": in_second_group,
    "four channels": lambda path, data: save(
        path, np.concatenate([data, 255 - data[:1]]), chunks=(4, 32, 32, 32)
    ),
    "float32 and four channels": lambda path, data: save(
        path, as_float(np.concatenate([data, 255 - data[:1]]))
    ),
    "leading axis": lambda path, data: save(path, data[None]),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_the_same_affinities_in_another_dress(axonloom, reference, tmp_path, dress):
    path = DRESSES[dress](tmp_path / "input.zarr", random_affinities())
    done = axonloom(
        "segment", "--affinities", path, "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS["even"], "--serial",
    )  # fmt: skip
    assert done.code == 0, done.err
    same_as(reference("random"), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["uint16", ">u2"])
def test_uint16_affinities(axonloom, reference, tmp_path, dtype):
    """257 q / 65535 = q / 255: the same partition, whatever the byte order on disk."""
    data = random_affinities().astype(np.uint16) * np.uint16(257)
    path = save(tmp_path / "input.zarr", data.astype(dtype), zarr_format=2)
    done = axonloom(
        "segment", "--affinities", path, "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS["odd"], "--serial",
    )  # fmt: skip
    assert done.code == 0, done.err
    for name in ("fragments.zarr", "segments.zarr"):
        np.testing.assert_array_equal(
            array(tmp_path / "out", name), array(reference("random"), name)
        )


def test_nothing_above_low_gives_an_empty_segmentation(axonloom, tmp_path):
    path = save(tmp_path / "input.zarr", np.full((3, 20, 30, 40), 10, np.uint8))
    for block in ((20, 30, 40), (7, 30, 11)):
        out = tmp_path / f"out{block[0]}"
        done = axonloom(
            "segment", "--affinities", path, "--out", out, "--block", *block, "--serial"
        )
        assert done.code == 0, done.err
        assert not array(out, "segments.zarr").any()
        assert not array(out, "fragments.zarr").any()
    assert contents(tmp_path / "out7") == contents(tmp_path / "out20")


def test_the_voxel_size_is_kept(axonloom, volumes, tmp_path):
    done = axonloom(
        "segment", "--affinities", volumes["random"], "--out", tmp_path / "out",
        "--voxel-size", 1000, 400, 200, "--serial", "--block", *SHAPE,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Volume.open(tmp_path / "out" / "segments.zarr").voxel_size_nm == (1000, 400, 200)


# --- perfect affinities give the truth back


@pytest.mark.slow
def test_perfect_affinities_of_thirty_neurons_have_no_split_and_no_merge(axonloom, tmp_path):
    spec = PhantomSpec((256, 256, 256), (1000.0, 400.0, 400.0), 30, 11)
    neurons = grow_neurons(spec)
    labels = render(spec, neurons, Roi((0, 0, 0), spec.shape))[1]
    save(tmp_path / "a.zarr", affinities_from_labels(labels), chunks=(3, 64, 64, 64))
    (tmp_path / "swc").mkdir()
    for neuron in neurons:
        path = tmp_path / "swc" / f"{neuron.name}.swc"
        write_swc(path, neuron, voxel_size_nm=spec.voxel_size_nm, unit="voxel")
    done = axonloom(
        "segment", "--affinities", tmp_path / "a.zarr", "--out", tmp_path / "out",
        "--block", 96, 70, 110, "--voxel-size", *spec.voxel_size_nm, "--workers", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    segments = array(tmp_path / "out", "segments.zarr")
    pairs = np.unique(np.stack([labels.ravel(), segments.ravel()]), axis=1)
    assert len(pairs.T) == len(np.unique(labels)) == 31, "one segment for each neuron and reverse"
    done = axonloom(
        "evaluate", "--segmentation", tmp_path / "out" / "segments.zarr",
        "--skeletons", tmp_path / "swc", "--out", tmp_path / "scores", "--serial",
    )  # fmt: skip
    assert done.code == 0, done.err
    overall = json.loads((tmp_path / "scores" / "metrics.json").read_text())["overall"]
    assert (overall["splits"], overall["merges_total"]) == (0, 0)
    assert overall["nerl"] == pytest.approx(1.0)
    assert overall["edge_accuracy"] == pytest.approx(100.0)


def test_absent_chunks_are_zeros_unless_they_are_required(axonloom, tmp_path):
    data = random_affinities()
    data[:, :32] = 0
    path = tmp_path / "sparse.zarr"
    made = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=(3, 32, 32, 32))
    made[:, 32:] = data[:, 32:]
    arguments = ("segment", "--affinities", path, *SETTINGS, "--block", 16, 35, 45, "--serial")
    done = axonloom(*arguments, "--out", tmp_path / "zeros")
    assert done.code == 0, done.err
    # The affinities of plane 32 reach plane 31.
    assert not array(tmp_path / "zeros", "segments.zarr")[:31].any()
    assert array(tmp_path / "zeros", "segments.zarr")[31:].any()
    done = axonloom(*arguments, "--out", tmp_path / "required", "--require-chunks")
    assert done.code == 1
    assert "stage fragments: 8 of 12 blocks failed" in done.err
    assert "nothing is stored for [0:17, 0:32, 0:32]" in done.err
    made[:] = data + 1  # a chunk of zeros would not be stored
    done = axonloom(*arguments, "--out", tmp_path / "complete", "--require-chunks")
    assert done.code == 0, done.err


def test_groups_do_not_show(axonloom, volumes, reference, tmp_path):
    done = axonloom(
        "segment", "--affinities", volumes["phantom"], "--out", tmp_path / "out", *SETTINGS,
        "--block", *BLOCKS["odd"], "--group", 20, 40, 40, "--workers", 2, "--order", "shuffled",
    )  # fmt: skip
    assert done.code == 0, done.err
    same_as(reference("phantom"), tmp_path / "out")
    status = axonloom("status", tmp_path / "out")
    assert "moved up" in status.out


def test_the_engine_waterz_takes_the_same_fragments(axonloom, volumes, reference, tmp_path):
    arguments = ("segment", "--affinities", volumes["phantom"], *SETTINGS, "--engine", "waterz")
    for name, block in (("even", BLOCKS["even"]), ("odd", BLOCKS["odd"])):
        done = axonloom(*arguments, "--out", tmp_path / name, "--block", *block, "--serial")
        assert done.code == 0, done.err
    same_as(tmp_path / "even", tmp_path / "odd")
    exact = reference("phantom")
    for part in ("edges/edges.arrow",):
        assert (tmp_path / "odd" / part).read_bytes() == (exact / part).read_bytes()
    fragments = array(exact, "fragments.zarr")
    np.testing.assert_array_equal(array(tmp_path / "odd", "fragments.zarr"), fragments)
    segments = array(tmp_path / "odd", "segments.zarr")
    np.testing.assert_array_equal(segments > 0, fragments > 0)
    count = len(np.unique(segments)), len(np.unique(array(exact, "segments.zarr")))
    assert abs(count[0] - count[1]) < 0.05 * count[1], "ties are all that may differ"
    assert list((tmp_path / "odd" / "history").iterdir()) == []
    done = axonloom(
        *arguments, "--out", tmp_path / "median", "--block", *BLOCKS["odd"], "--serial",
        "--scoring", "quantile_50",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (array(tmp_path / "median", "segments.zarr") != segments).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scoring", "quantile_50"), "quantile_50 needs engine: waterz"),
        (("--engine", "fast"), "segment.engine"),
        (("--engine", "waterz", "--scoring", "quantile_51"), "segment.scoring"),
    ],
)
def test_engines_that_do_not_exist_are_refused(axonloom, volumes, tmp_path, options, message):
    done = axonloom(
        "segment", "--affinities", volumes["random"], "--out", tmp_path / "out", *options
    )
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()
