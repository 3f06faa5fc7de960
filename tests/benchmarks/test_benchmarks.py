"""The generators and the measuring of the benchmarks. Nothing here depends on time."""

import sys

import losses
import numpy as np
import pytest
import region_graph
import segment_chain
from chain import TINY, scratch
from measuring import run_measured
from patches import OBJECTS, SPARSE_SHARE, STATES, draw_image, draw_labels, draw_logits
from region_graph import CELL, Lattice, lattice
from volumes import LOW, Sampler, describe, kept_volume, write_volume
from worker_memory import worker_environment

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.edges import sum_edges
from pipeline.geometry import BlockGrid, Roi
from pipeline.learning.losses import LOSSES
from pipeline.learning.targets import make_targets
from pipeline.storage.volume import Volume

SHAPE = (70, 150, 90)  # cuts boxes and chunks


@pytest.fixture(scope="module")
def whole():
    return Sampler(SHAPE, seed=3).box(Roi((0, 0, 0), SHAPE))


@pytest.mark.parametrize("box", [(64, 64, 64), (70, 31, 90), (13, 150, 7)])
def test_a_voxel_does_not_depend_on_the_box(whole, box):
    sampler = Sampler(SHAPE, seed=3)
    for block in BlockGrid.over(SHAPE, box):
        found = sampler.box(block.write)
        np.testing.assert_array_equal(found, whole[(slice(None), *block.write.slices)])


def test_another_seed_gives_other_voxels(whole):
    other = Sampler(SHAPE, seed=4).box(Roi((0, 0, 0), SHAPE))
    assert (other != whole).mean() > 0.1


def test_shares_are_those_of_a_network(whole):
    strongest = Sampler((128, 160, 192), seed=0).box(Roi((0, 0, 0), (128, 160, 192))).max(axis=0)
    assert 0.007 < (strongest >= LOW).mean() < 0.015
    assert 0.42 < (strongest > 0).mean() < 0.46
    noise = np.bincount(strongest[strongest < LOW])
    assert noise[1] > noise[5] > noise[20] > 0, "weak noise is more frequent than strong"


def test_the_first_planes_have_no_predecessor(whole):
    assert not whole[0, 0].any()
    assert not whole[1, :, 0].any()
    assert not whole[2, :, :, 0].any()
    assert whole[0, 1].any()


def test_the_volume_on_disk_is_the_sampler(tmp_path, whole):
    shares = write_volume(tmp_path / "made.zarr", SHAPE, seed=3)
    volume = Volume.open(tmp_path / "made.zarr")
    np.testing.assert_array_equal(volume.read(volume.roi), whole)
    assert shares.voxels == whole[0].size
    assert shares.foreground == (whole.max(axis=0) >= LOW).sum()
    assert shares.above_zero == (whole.max(axis=0) > 0).sum()
    assert 0 < shares.stored_bytes < whole.nbytes
    assert f"{shares.voxels:,} voxels" in describe(shares)


def test_a_volume_is_kept_and_an_unfinished_one_is_not(tmp_path):
    path, shares = kept_volume(tmp_path, (20, 20, 20))
    path.rename(path.with_name(path.stem + ".unfinished.zarr"))  # as a killed run leaves it
    again, same = kept_volume(tmp_path, (20, 20, 20))
    assert again == path
    assert path.exists()
    assert same == shares
    assert not list(tmp_path.glob("*.unfinished.zarr"))
    marker = path / "kept"
    marker.touch()
    kept_volume(tmp_path, (20, 20, 20))
    assert marker.exists(), "a kept volume was made again"


@pytest.mark.parametrize("giant", [False, True])
@pytest.mark.parametrize("box", [(5, 6, 7), (3, 7, 2), (1, 1, 40)])
def test_rows_of_boxes_add_up_to_the_lattice(box, giant):
    shape = (9, 13, 11)
    graph = Lattice(shape, seed=5, giant=giant)
    table, places = lattice(shape, seed=5, giant=giant)
    parts = [graph.rows(block.write) for block in BlockGrid.over(shape, box)]
    assert sum(map(len, parts)) == len(table), "a row has two owners"
    together = sum_edges(parts)
    for name in ("u", "v", "affinity_sum", "face_count"):
        np.testing.assert_array_equal(getattr(together, name), getattr(table, name))
    ids = [graph.ids(block.write) for block in BlockGrid.over(shape, box)]
    np.testing.assert_array_equal(np.sort(np.concatenate(ids)), graph.ids(graph.roi))
    assert places.shape == (9 * 13 * 11, 3)


def test_rows_join_neighbours_and_belong_to_the_successor():
    shape = (6, 5, 7)
    graph = Lattice(shape)
    table, places = lattice(shape)
    assert len(table) == 5 * 5 * 7 + 6 * 4 * 7 + 6 * 5 * 6
    apart = graph.positions(table.v) - graph.positions(table.u)
    assert (np.abs(apart).sum(axis=1) == 1).all()
    assert (apart.sum(axis=1) == 1).all(), "v comes after u along one axis"
    np.testing.assert_array_equal(places, np.indices(shape).reshape(3, -1).T)
    box = Roi((2, 0, 3), (3, 5, 2))
    owners = graph.positions(graph.rows(box).v)
    assert ((owners >= box.offset) & (owners < box.end)).all()


def test_walls_bound_the_components():
    shape = (40, 40, 40)
    largest = {}
    for giant in (False, True):
        table, places = lattice(shape, giant=giant)
        _, segments = fragment_to_segment(agglomerate(table, 0.5), 0.5)
        largest[giant] = np.unique(segments, return_counts=True)[1].max() / len(places)
    assert largest[True] > 0.8
    assert largest[False] < 4 * CELL**3 / 40**3
    assert largest[False] < 0.7


def test_a_command_that_fails_ends_the_benchmark_with_its_words():
    with pytest.raises(SystemExit, match="no such luck"):
        run_measured([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_workers_are_measured_in_the_environment_that_they_get():
    assert worker_environment()["OMP_NUM_THREADS"] == "1"
    assert all(isinstance(value, str) for value in worker_environment().values())


def test_scratch_is_removed_whatever_happens(tmp_path):
    def interrupted():
        with scratch(tmp_path, "run") as folder:
            folder.mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "scratch" / "run").exists()


def test_region_graph_prints_its_table(tmp_path, capfd, monkeypatch):
    arguments = ["--folder", str(tmp_path), "--shape", "6", "7", "8"]
    monkeypatch.setattr(sys, "argv", [region_graph.__file__, *arguments])
    region_graph.main()
    said = capfd.readouterr().out
    assert "336 fragments, 862 edges" in said
    assert "microseconds an edge" in said
    assert (tmp_path / "figures" / "region_graph_6x7x8.json").exists()


@pytest.mark.parametrize("shape", [(200, 180), (48, 40, 44)])
@pytest.mark.parametrize("objects", OBJECTS)
def test_patches_are_as_described(objects, shape):
    labels = draw_labels(objects, shape)
    np.testing.assert_array_equal(labels, draw_labels(objects, shape))
    assert (labels != draw_labels(objects, shape, seed=1)).any()
    share = (labels > 0).mean()
    assert share > 0.6 if objects == "dense" else SPARSE_SHARE / 3 < share < SPARSE_SHARE * 2
    assert len(np.unique(labels)) > 2
    assert draw_image(labels).shape == shape
    for form, channels in (("foreground", 1), ("affinities", len(shape))):
        targets, mask = (part[0].numpy() for part in make_targets(labels[None], form, channels))
        wrong = {}
        for state in STATES:
            logits = draw_logits(labels, form, state)
            assert logits.dtype == np.float32
            assert logits.shape == (channels, *shape)
            wrong[state] = ((logits > 0) != (targets > 0))[mask].mean()
        assert 0 < wrong["late"] < 0.1
        assert 0.45 < wrong["untrained"] < 0.55


def test_every_loss_has_a_row():
    names = {settings.name for settings in losses.rows("foreground", 3).values()}
    assert names == {*LOSSES} - {"malis"}
    assert {settings.name for settings in losses.rows("affinities", 3).values()} == {
        "ce", "supervoxel", "malis",
    }  # fmt: skip
    found = {*losses.rows("foreground", 3), *losses.rows("affinities", 3)}
    assert {*losses.TARGETS} <= found, "a target that no row is held against"
    assert [*losses.rows("foreground", 3, "scnp")] == ["scnp 3 of ce", "scnp 5 of ce"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("malis", ["32^3, affinities", "malis alone", "dearest of target"]),
        ("skeleton_recall", ["32^3, foreground", "skeleton_recall of ce_dice"]),
        ("critical", ["32^3 voxels", "32^3 edges"]),
        ("step", ["32^3 affinities, sparse late: supervoxel", "dense untrained: scnp"]),
    ],
)
def test_losses_print_their_tables(only, words, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(losses, "_LEAST_ROUNDS", 1)
    arguments = ["--folder", str(tmp_path), "--sizes", "32", "--only", only]
    arguments += ["--seconds", "0", "--step-seconds", "0"]
    monkeypatch.setattr(sys, "argv", [losses.__file__, *arguments])
    losses.main()
    said = capfd.readouterr().out
    assert all(word in said for word in words), said
    assert (tmp_path / "figures" / f"losses_{only}_cpu.json").exists()


@pytest.mark.slow
def test_segment_chain_prints_its_tables(tmp_path, capfd, monkeypatch):
    arguments = ["--folder", str(tmp_path), "--size", "96", "--repeat", "1", "--workers"]
    monkeypatch.setattr(sys, "argv", [segment_chain.__file__, *arguments])
    segment_chain.main()
    said = capfd.readouterr().out
    assert "serial, without start" in said
    assert "floor: the same I/O alone" in said
    assert "relabel" in said
    figures = tmp_path / "figures" / "segment_chain_96.json"
    assert str(figures) in said
    assert TINY[0] < 96
    assert not list((tmp_path / "scratch").iterdir())
