"""Reading, placing and writing SWC tracings."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.metrics import labels_at_nodes, node_voxels
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import inside_roi
from pipeline.errors import ConfigError, InputError
from pipeline.geometry import Roi
from pipeline.storage.swc import (
    SEGMENTATION,
    Orientation,
    SwcOptions,
    check_placement,
    judge_placement,
    read_skeletons,
    write_swc,
)
from pipeline.storage.swc_frame import flip_coordinate, to_columns, to_voxels
from pipeline.storage.swc_placement import _sampled, suggest_unit

VOXEL = (1000.0, 400.0, 250.0)
PLAIN = SwcOptions(voxel_size_nm=VOXEL)
ROWS = "1 1 10.5 20.25 30 2 -1\n2 3 11 21 31 1.5 1\n3 3 12 22 32 1 2\n"


def read(folder: Path, text: str | bytes, options: SwcOptions = PLAIN) -> Skeleton:
    path = folder / "neuron.swc"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (skeleton,) = read_skeletons(path, options)
    return skeleton


def assert_equal(a: Skeleton, b: Skeleton) -> None:
    assert a.name == b.name
    for field in ("nodes", "edges", "radii_nm", "types"):
        assert np.array_equal(getattr(a, field), getattr(b, field)), field


def test_plain_file(tmp_path: Path):
    got = read(tmp_path, ROWS)
    assert got.name == "neuron"
    assert got.nodes.tolist() == [[30, 20.25, 10.5], [31, 21, 11], [32, 22, 12]]
    assert got.edges.tolist() == [[1, 0], [2, 1]]
    assert got.types.tolist() == [1, 3, 3]
    assert got.radii_nm.tolist() == [500, 375, 250]


@pytest.mark.parametrize(
    "text",
    [
        "3 3 12 22 32 1 2\n1 1 10.5 20.25 30 2 -1\n2 3 11 21 31 1.5 1\n",
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("\n", "\r"),
        ROWS.replace(" ", "\t"),
        "\ufeff" + ROWS,
        ROWS.rstrip("\n"),
        "  " + ROWS.replace("\n", "  \n\n \t\n"),
        ROWS.replace("\n", " # remark 1 2\n# note\n   # indented\n#\n"),
        ROWS.replace("\n", " 7 extra nan\n"),
        ROWS.replace("1 1 ", "1.0 1.0 ").replace(" -1\n", " -1.0\n"),
        ROWS.replace(" -1\n", " -7\n"),
        "# the offset of this file is none\n# offset unknown\n" + ROWS,
    ],
)
def test_forms_of_the_same_file(tmp_path: Path, text: str):
    assert_equal(read(tmp_path, text), read(tmp_path, ROWS))


def test_comments_in_another_encoding(tmp_path: Path):
    assert_equal(
        read(tmp_path, "# \u00b5m\n".encode("latin-1") + ROWS.encode()), read(tmp_path, ROWS)
    )


def test_ids_up_to_two_to_the_63_are_told_apart(tmp_path: Path):
    top = 2**63
    text = f"{top} 0 3 0 0 1 {top - 1}\n{top - 1} 0 2 0 0 1 {top - 2}\n{top - 2} 0 1 0 0 1 -1\n"
    got = read(tmp_path, text)
    assert got.nodes[:, 2].tolist() == [1, 2, 3]
    assert got.edges.tolist() == [[1, 0], [2, 1]]


def test_several_roots_and_id_zero(tmp_path: Path):
    got = read(tmp_path, "0 0 1 1 1 1 -1\n4 0 2 1 1 1 0\n2 0 9 9 9 1 -1\n3 0 8 9 9 1 2\n")
    assert got.edges.tolist() == [[2, 1], [3, 0]]


def test_unknown_radii(tmp_path: Path):
    got = read(tmp_path, "1 0 1 1 1 -1 -1\n2 0 1 1 1 nan 1\n3 0 1 1 1 0 1\n")
    assert got.radii_nm[[0, 2]].tolist() == [0, 0]
    assert np.isnan(got.radii_nm[1])


@pytest.mark.parametrize(
    "header", ["# OFFSET 100 200 300", "#OFFSET: 100, 200, 300", "# OFFSET 1e2 2e2 3e2"]
)
def test_offset_is_added_in_unit_and_column_order(tmp_path: Path, header: str):
    """z = 30 + 300, in nm, comes from the column that `axes` calls z."""
    nm = SwcOptions(voxel_size_nm=VOXEL, unit="nm", axes="zyx")
    text = "1 0 900 2 30 1 -1\n"
    for rows in (f"{header}\n{text}", f"{text}{header}\n{header}\n"):
        got = read(tmp_path, rows, nm)
        assert got.nodes.tolist() == [[1.0, 202 / 400, 330 / 250]]


def test_axes_name_the_columns(tmp_path: Path):
    got = read(tmp_path, "1 0 1.5 2.5 3.5 1 -1\n", SwcOptions(voxel_size_nm=VOXEL, axes="yzx"))
    assert got.nodes.tolist() == [[2.5, 1.5, 3.5]]


def test_units_and_offset_in_voxels(tmp_path: Path):
    text = "1 0 2.5 4 3 2 -1\n"
    um = SwcOptions(voxel_size_nm=VOXEL, unit="um", offset_vox=(1, -2, 0.5))
    got = read(tmp_path, text, um)
    assert got.nodes.tolist() == [[4, 8, 10.5]]
    assert got.radii_nm.tolist() == [2000]
    nm = read(tmp_path, "1 0 2500 4000 3000 2000 -1\n", SwcOptions(voxel_size_nm=VOXEL, unit="nm"))
    assert nm.nodes.tolist() == [[3, 10, 10]]
    assert nm.radii_nm.tolist() == [2000]


def test_decimal_micrometres_on_a_voxel_face_belong_to_the_voxel_above(tmp_path: Path):
    """0.57 um / 10 nm and the like are not exact in floating point; the voxel must be."""
    rows = [f"{i + 1} 0 {i // 1000}.{i % 1000:03d} 0 0 1 -1" for i in range(3000)]
    options = SwcOptions(voxel_size_nm=(1, 1, 1), unit="um")
    got = read(tmp_path, "\n".join(rows), options)
    assert node_voxels(got)[:, 2].tolist() == list(range(3000))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.integers(-50, 5000).map(float),
            st.floats(-50, 5000),
            st.integers(-50, 5000).map(lambda i: float(np.nextafter(i, -np.inf))),
            st.integers(-50, 5000).map(lambda i: float(np.nextafter(i, np.inf))),
            st.just(-5e-324),
        ),
        min_size=2,
    ),
    st.integers(1, 4000),
)
def test_flip_is_size_minus_one_minus_index(values: list[float], size: int):
    given_values = np.array(values)
    flipped = flip_coordinate(given_values, size)
    assert (np.floor(flipped) == size - 1 - np.floor(given_values)).all()
    assert np.allclose(np.diff(flipped), -np.diff(given_values), rtol=0, atol=1e-11)


def test_flip_after_conversion(tmp_path: Path):
    options = SwcOptions(voxel_size_nm=VOXEL, flip=("y", "x"), volume_shape=(40, 30, 20))
    got = read(tmp_path, ROWS, options)
    assert node_voxels(got).tolist() == [[30, 9, 9], [31, 8, 8], [32, 7, 7]]
    assert got.nodes[0, 1:].tolist() == [30 - 20.25, 20 - 10.5]
    lengths = read(tmp_path, ROWS).edge_lengths_nm(VOXEL)
    assert np.allclose(got.edge_lengths_nm(VOXEL), lengths, rtol=1e-12)


def test_folder_and_zip(tmp_path: Path):
    folder = tmp_path / "tracings"
    folder.mkdir()
    for name in ("b.swc", "a.SWC", ".hidden.swc", "notes.txt"):
        (folder / name).write_text(ROWS)
    (folder / "sub.swc").mkdir()
    assert [s.name for s in read_skeletons(folder, PLAIN)] == ["a", "b"]
    archive = tmp_path / "tracings.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("x/b.swc", "a.swc", "__MACOSX/x/._b.swc", "x/readme.md"):
            target.writestr(name, ROWS)
    assert [s.name for s in read_skeletons(str(archive), PLAIN)] == ["a", "b"]


def test_errors_inside_an_archive_name_the_member(tmp_path: Path):
    archive = tmp_path / "t.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("x/b.swc", "1 0 0 0\n")
    with pytest.raises(InputError, match=r"t\.zip:x/b\.swc, line 1: 4 columns"):
        read_skeletons(archive, PLAIN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# c\n\n1 0 0 0 0 1\n", "line 3: 6 columns, expected at least 7"),
        ("1 0 0 0 x 1 -1\n", "line 1: not the numbers"),
        ("1 0 0 0 0 r -1\n", "line 1: not the numbers"),
        ("1.5 0 0 0 0 1 -1\n", "line 1: not the numbers"),
        ("1_0 0 0 0 0 1 -1\n", "line 1: not the numbers"),
        ("1,0,0,0,0,1,-1\n", "line 1: 1 columns"),
        ("1 0 0 0 0 1 -1\u20282 0 0 0 0 1 1\n", "line 1: not the numbers"),
        ("1 0 0 0 0 1 -1\v2 0 0 0 0 1 1\n", "line 1: not the numbers"),
        ("1 0 0 nan 0 1 -1\n", "line 1: coordinates .* not finite"),
        ("1 0 0 0 -inf 1 -1\n", "line 1: coordinates .* not finite"),
        ("1 0 0 0 1e999 1 -1\n", "line 1: coordinates .* not finite"),
        ("1 0 0 0 0 inf -1\n", "line 1: radius inf"),
        ("-4 0 0 0 0 1 -1\n", "line 1: id -4"),
        ("7 0 0 0 0 1 -1\n# c\n7 0 1 1 1 1 -1\n", "line 3: id 7 .* on line 1"),
        ("1 0 0 0 0 1 -1\r\n2 0 0 0 0 1 9\r\n", "line 2: node 2 has parent 9"),
        ("1 0 0 0 0 1 0\n", "line 1: node 1 has parent 0, which no row defines; a root has"),
        ("1 0 0 0 0 1 1\n", "line 1: node 1 is its own parent"),
        ("1 0 0 0 0 1 2\n2 0 0 0 0 1 3\n3 0 0 0 0 1 1\n", "line 1: node 1 is its own ancestor"),
        ("9 0 0 0 0 1 -1\n1 0 0 0 0 1 3\n3 0 0 0 0 1 2\n2 0 0 0 0 1 3\n", "line 4: node 2 is its"),
        ("", "no nodes"),
        ("# nothing\n\n", "no nodes"),
        ("# OFFSET 1 2\n" + ROWS, "line 1: expected three numbers after OFFSET"),
        ("# OFFSET nan 0 0\n" + ROWS, "line 1: expected three numbers after OFFSET"),
        ("# OFFSET 1 2 3\n" + ROWS + "# OFFSET 1 2 4\n", "line 5: a second OFFSET"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=rf"neuron\.swc.*{message}"):
        read(tmp_path, text)


def test_paths_that_hold_no_skeleton(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_skeletons(tmp_path / "missing", PLAIN)
    with pytest.raises(InputError, match=r"no \.swc file"):
        read_skeletons(tmp_path, PLAIN)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match="not a zip archive"):
        read_skeletons(tmp_path / "bad.zip", PLAIN)


def test_names_must_be_unique(tmp_path: Path):
    archive = tmp_path / "t.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("x/a.swc", ROWS)
        target.writestr("y/a.swc", ROWS)
    with pytest.raises(InputError, match=r"called a: .*x/a\.swc and .*y/a\.swc"):
        read_skeletons(archive, PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": ("y",)}, "volume_shape"),
        ({"flip": ("q",), "volume_shape": (1, 1, 1)}, "flip"),
        ({"flip": ("y", "y"), "volume_shape": (1, 1, 1)}, "flip"),
        ({"axes": "xyx"}, "axes"),
        ({"unit": "mm"}, "unit"),
        ({"voxel_size_nm": (1, 0, 1)}, "voxel_size_nm"),
        ({"voxel_size_nm": (1, float("nan"), 1)}, "voxel_size_nm"),
        ({"offset_vox": (0, 0, float("inf"))}, "offset_vox"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        SwcOptions(**{"voxel_size_nm": VOXEL, **options})


def forest(seed: int, count: int) -> Skeleton:
    """Edges (child, parent), parents first, some roots."""
    rng = np.random.default_rng(seed)
    parent = np.array(
        [-1] + [-1 if rng.random() < 0.1 else rng.integers(i) for i in range(1, count)]
    )
    child = np.flatnonzero(parent >= 0)
    return Skeleton(
        f"f{seed}",
        np.where(rng.random((count, 3)) < 0.3, rng.integers(0, 9999, (count, 3)), 0)
        + rng.normal(0, 1e4, (count, 3)) * (rng.random((count, 3)) < 0.7),
        np.stack([child, parent[child]], axis=1),
        rng.uniform(0, 900, count),
        rng.integers(0, 7, count),
    )


@pytest.mark.parametrize("unit", ["voxel", "um", "nm"])
def test_what_is_written_is_read_again(tmp_path: Path, unit: str):
    options = SwcOptions(voxel_size_nm=(1000, 333.3, 7.77), unit=unit)
    for seed in range(12):
        skeleton = forest(seed, 1 + 9 * seed)
        path = tmp_path / f"{skeleton.name}.swc"
        write_swc(
            path, skeleton, voxel_size_nm=options.voxel_size_nm, unit=unit, header=["by hand"]
        )
        (got,) = read_skeletons(path, options)
        assert got.name == skeleton.name
        assert np.allclose(got.nodes, skeleton.nodes, rtol=0, atol=1e-6)
        assert np.array_equal(np.floor(got.nodes), np.floor(skeleton.nodes))
        assert np.array_equal(got.edges, skeleton.edges)
        assert np.allclose(got.radii_nm, skeleton.radii_nm)
        assert np.array_equal(got.types, skeleton.types)


def test_placement_counts_nodes_outside():
    inside = Skeleton("a", [[0, 0, 0], [3.9, 4.9, 5.9]], [])
    half = Skeleton("b", [[0, 0, -0.1], [4, 0, 0], [1, 1, 1]], [])
    assert check_placement([inside, half], (4, 5, 6)).tolist() == [0, 2]


def test_placement_refuses_the_wrong_place_and_the_wrong_unit():
    away = Skeleton("a", [[10, 10, 10], [11, 10, 10]], [])
    with pytest.raises(InputError, match=r"no node lies in the volume.*\[10, 10, 10\]"):
        check_placement([away], (4, 5, 6))
    large = Skeleton("a", [[1, 1, 1], [1, 1, 90]], [])
    with pytest.raises(InputError, match="nm or um"):
        check_placement([large], (4, 5, 6))


WIDE = SwcOptions(voxel_size_nm=(400.0, 80.0, 40.0))
GLOBAL = {"offset_vox": (-70.0, -500.0, -900.0)}


@pytest.mark.parametrize(
    ("written", "used", "offset", "message"),
    [
        ({"unit": "nm"}, {}, (0, 0, 0), "ten times larger.* With unit nm 100% of the nodes"),
        ({"unit": "voxel"}, {"unit": "um"}, (0, 0, 0), "no node lies.* With unit voxel 100%"),
        ({"axes": "zyx"}, {}, (0, 0, 0), "no node lies.* With axes zyx 100%"),
        ({"axes": "zyx", "unit": "nm"}, {}, (0, 0, 0), "With unit nm and axes (zyx|xzy) 100%"),
        (GLOBAL, {}, (70, 500, 900), r"With offset \[-70, -500, -900\] voxels \(z, y, x\) 100%"),
        (GLOBAL, {}, (0, 0, 0), r"fit with an offset of about \[-70, -620, -1211\] voxels"),
        ({}, {"offset_vox": (-99.5, 0, 0)}, (0, 0, 0), r"With offset \[0, 0, 0\] voxels"),
        ({"flip": ("y",)}, {"flip": ("y",), "unit": "nm"}, (0, 0, 0), None),
        (GLOBAL, {"unit": "um"}, (70, 500, 900), "With unit voxel and offset .* 100%"),
    ],
)
def test_an_error_names_the_settings_that_would_fit(written, used, offset, message):
    """A thin volume, voxels of three lengths; the tracing read with other options than its own."""
    shape = (30, 300, 400)
    nodes = np.array([[z, 120 + z, 311 + 2 * z] for z in range(30)]) + 0.5
    right = replace(WIDE, volume_shape=shape, **written)
    wrong = replace(WIDE, volume_shape=shape, **used)
    columns = to_columns(nodes, right)
    back = Skeleton("a", to_voxels(columns, right), [])
    assert check_placement([back], shape, right, offset).tolist() == [0]
    skeleton = Skeleton("a", to_voxels(columns, wrong), [])
    if message is None:  # all in a corner of the volume: nothing that this check could see
        assert check_placement([skeleton], shape, wrong, offset).tolist() == [0]
        return
    with pytest.raises(InputError, match=message):
        check_placement([skeleton], shape, wrong, offset)
    with pytest.raises(
        InputError, match=r"nodes span \[.*\], the volume|the volume \(30, 300, 400"
    ):
        check_placement([skeleton], shape)


def test_no_settings_are_named_where_none_fits():
    nodes = np.array([[100.0 + 9 * i, 1000 + 50 * i, -5000 - 90 * i] for i in range(40)])
    with pytest.raises(InputError, match=r"an offset between tracing and volume$"):
        check_placement([Skeleton("a", nodes, [])], (30, 300, 400), WIDE)
    # In nm, 8 of 40 nodes would lie inside.
    nodes = np.array([[100.0 + i, 1000.0 + i, 2000.0 * i] for i in range(40)])
    in_nm = Skeleton("a", to_voxels(nodes[:, ::-1], replace(WIDE, unit="nm")), [])
    assert check_placement([in_nm], (30, 300, 400)).tolist() == [32]
    with pytest.raises(InputError, match=r"crop the tracings first$"):
        check_placement([Skeleton("a", nodes, [])], (30, 300, 400), WIDE)


def snake(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random walk of voxel centres and its mask; nothing about it is symmetric."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([-1, 0, 1], (400, 3), p=[0.25, 0.5, 0.25])
    walk = np.clip(np.array([4, 7, 30]) + np.cumsum(steps, axis=0), 0, np.array(shape) - 1)
    mask = np.zeros(shape, bool)
    mask[tuple(walk.T)] = True
    return walk + 0.5, mask


@pytest.mark.parametrize("unit", ["voxel", "um"])
def test_every_orientation_is_found(tmp_path: Path, unit: str):
    """Coordinates written wrongly in each way; the hint must name the way back."""
    shape = (20, 45, 70)
    nodes, mask = snake(shape, 5)
    found = 0
    for axes, flips in product(("xyz", "zyx", "yzx"), ((), ("y",), ("z", "x"))):
        options = SwcOptions(
            voxel_size_nm=VOXEL, unit=unit, axes=axes, flip=flips, volume_shape=shape
        )
        columns = np.empty_like(nodes)
        for axis, letter in enumerate("zyx"):
            along = nodes[:, axis] if letter not in flips else shape[axis] - nodes[:, axis]
            columns[:, axes.index(letter)] = along * options.units_per_voxel[axis]
        text = "\n".join(f"{i} 0 {x} {y} {z} 1 -1" for i, (x, y, z) in enumerate(columns.tolist()))
        right = read(tmp_path, text, options)
        assert mask[tuple(node_voxels(right).T)].all()
        used = SwcOptions(voxel_size_nm=VOXEL, unit=unit)
        wrong = read(tmp_path, text, used)
        hint = judged([wrong], mask, used)
        assert judged([right], mask, options).warning is None
        if (axes, flips) == ("xyz", ()):
            assert (hint.better, hint.warning) == (None, None)
            continue
        assert hint.better is not None
        assert (hint.better.axes, hint.better.flip, hint.better.share) == (axes, flips, 1.0)
        named = [f"axes: {axes}"] if axes != "xyz" else []
        named += [f"flip: [{', '.join(flips)}]"] if flips else []
        assert f"with {' and '.join(named)} 100% would" in str(hint.warning)
        found += 1
    assert found == 8


def judged(skeletons, mask, options=None):
    used = options or SwcOptions(voxel_size_nm=VOXEL)
    return judge_placement(skeletons, lambda v: mask[tuple(v.T)], mask.shape, used)


def test_a_placement_that_fits_is_not_looked_at_further():
    nodes, mask = snake((20, 45, 70), 5)
    looks = []

    def is_foreground(voxels):
        looks.append(len(voxels))
        return mask[tuple(voxels.T)]

    used = SwcOptions(voxel_size_nm=VOXEL)
    found = judge_placement([Skeleton("a", nodes, [])], is_foreground, mask.shape, used)
    assert found.used == Orientation("xyz", (), len(nodes), len(nodes), len(nodes))
    assert found.used.share == found.used.share_inside == 1.0
    assert (found.better, found.warning) == (None, None)
    assert looks == [len(nodes)]


@pytest.mark.parametrize(
    ("used", "named"),
    [
        ({"flip": ("y",)}, "with flip: [] 100% would"),
        ({"axes": "zyx"}, "with axes: xyz 100% would"),
        ({"axes": "zyx", "flip": ("z", "x")}, "with axes: xyz and flip: [] 100% would"),
    ],
)
def test_a_wrong_placement_is_told_with_the_setting_that_helps(used, named):
    shape = (20, 45, 70)
    nodes, mask = snake(shape, 5)
    options = SwcOptions(voxel_size_nm=VOXEL, volume_shape=shape, **used)
    wrong = Skeleton("a", to_voxels(nodes[:, ::-1].copy(), options), [])
    found = judged([wrong], mask, options)
    inside = inside_roi(node_voxels(wrong), Roi((0, 0, 0), shape))
    bright = mask[tuple(node_voxels(wrong)[inside].T)].sum()
    assert (found.used.inside, found.used.bright) == (inside.sum(), bright)
    assert found.warning is not None
    share = bright / inside.sum() if inside.any() else 0.0
    assert found.warning.startswith(f"only {share:.0%} of the tracings' nodes lie on bright voxels")
    assert named in found.warning
    outside = f"({(~inside).sum()} of {len(nodes)} nodes looked at are outside)"
    assert (outside in found.warning) == (not inside.all())


ORIENTATIONS = [
    ("".join(axes), flip)
    for axes in permutations("xyz")
    for count in range(4)
    for flip in combinations("zyx", count)
]


@pytest.mark.parametrize(("axes", "flip"), ORIENTATIONS)
def test_each_of_the_48_orientations_is_named_on_a_segmentation(axes, flip):
    """Labels, not a mask; asked three times at most, for a bounded number of nodes."""
    shape = (20, 45, 70)
    nodes, mask = snake(shape, 5)
    labels = np.where(mask, np.uint64(2**64 - 1), np.uint64(0))
    right = SwcOptions(voxel_size_nm=VOXEL, unit="um", axes=axes, flip=flip, volume_shape=shape)
    used = SwcOptions(voxel_size_nm=VOXEL, unit="um")
    columns = to_columns(np.repeat(nodes, 30, axis=0), right)
    wrong = Skeleton("a", to_voxels(columns, used), [])
    asked = []

    def is_labelled(voxels):
        asked.append(len(voxels))
        return labels[tuple(voxels.T)] != 0

    found = judge_placement([wrong], is_labelled, shape, used, SEGMENTATION)
    if (axes, flip) == ("xyz", ()):
        assert (found.warning, found.better) == (None, None)
        return
    assert found.better is not None
    assert (found.better.axes, found.better.flip, found.better.share) == (axes, flip, 1.0)
    assert "labelled voxels" in str(found.warning)
    assert "bright" not in str(found.warning)
    assert "image" not in str(found.warning)
    assert "Set it in the options of the tracings if" in str(found.warning)
    assert len(asked) <= 3
    assert sum(asked) <= 4096 + 49 * 1024


@pytest.mark.parametrize("counts", [[], [0], [7], [3, 0, 5, 1, 9], [1] * 20, [4095, 4098, 7]])
def test_nodes_are_looked_at_evenly_over_all_tracings(counts):
    nodes = np.arange(3.0 * sum(counts)).reshape(-1, 3)
    parts = np.split(nodes, np.cumsum(counts)[:-1]) if counts else []
    for most in (1, 4, 4096):
        step = max(1, -(-len(nodes) // most))
        found = _sampled([Skeleton("a", part, []) for part in parts], most)
        assert found.tolist() == nodes[::step].tolist()


def test_nodes_off_the_neurite_that_no_flip_brings_back():
    nodes, mask = snake((20, 45, 70), 5)
    nowhere = np.zeros_like(mask)
    found = judged([Skeleton("a", nodes, [])], nowhere)
    assert found.better is None
    assert found.warning is not None
    assert "only 0% of the tracings' nodes lie on bright voxels, and no other" in found.warning
    assert "offset" in found.warning
    assert judged([], mask).warning is None
    assert judged([Skeleton("a", nodes[:0], [])], mask).warning is None


def test_a_crop_of_a_larger_tracing_is_judged_by_what_is_inside():
    nodes, mask = snake((20, 45, 70), 5)
    away = np.column_stack([np.full((9000, 2), 500.0), np.arange(9000)])
    right = judged([Skeleton("a", np.concatenate([nodes, away]), [])], mask)
    assert right.used.share < 0.1
    assert right.used.share_inside == 1.0
    assert right.warning is None
    flipped = SwcOptions(voxel_size_nm=VOXEL, flip=("y",), volume_shape=mask.shape)
    columns = np.concatenate([nodes, away])[:, ::-1].copy()
    wrong = judged([Skeleton("a", to_voxels(columns, flipped), [])], mask, flipped)
    assert wrong.better is not None
    assert wrong.better.flip == ()
    assert "with flip: [] 100% would" in str(wrong.warning)


UM, NM = {"unit": "um"}, {"unit": "nm"}


@pytest.mark.parametrize(
    ("written", "used", "named"),
    [
        (UM, NM, "With unit um 100% of the nodes would lie inside"),
        ({}, NM, None),  # twenty voxels are no corner
        ({"axes": "zyx", **UM}, {"axes": "zyx", **NM}, "With unit um 100%"),
        ({"flip": ("y",), **UM}, {"flip": ("y",), **NM}, "With unit um 100%"),
        ({"axes": "zyx", **UM}, NM, "With unit um and axes zyx 100%"),
        (UM, UM, None),
    ],
)
@pytest.mark.parametrize("bright", [True, False])
def test_tracings_a_thousand_times_too_small_are_told(written, used, named, bright):
    """All in one corner: whether that is bright or not, the unit is what is wrong."""
    shape = (60, 300, 900)
    nodes = np.array([[10 + i % 5, 20 + i // 4, 30 + i] for i in range(800)]) + 0.5
    right = SwcOptions(voxel_size_nm=(400.0, 80.0, 40.0), volume_shape=shape, **written)
    wrong = replace(SwcOptions(voxel_size_nm=(400.0, 80.0, 40.0), volume_shape=shape), **used)
    shrunk = Skeleton("a", to_voxels(to_columns(nodes, right), wrong), [])
    assert check_placement([shrunk], shape, wrong).tolist() == [0]
    found = judge_placement([shrunk], lambda v: np.full(len(v), bright), shape, wrong, SEGMENTATION)
    assert suggest_unit([shrunk], shape, wrong, SEGMENTATION) == found.unit
    if named is None:
        assert found.unit is None
        return
    assert named in str(found.unit)
    assert "the longest side of the segmentation has 900. " in str(found.unit)
    assert str(found.warning).endswith(str(found.unit))
    assert ("labelled voxels" in str(found.warning)) == (not bright)
    assert "no other flip" not in str(found.warning)


def test_a_unit_is_named_only_for_a_tiny_box_that_another_unit_unfolds():
    """A voxel is 2 um: in um a coordinate is half, in nm a two-thousandth of a voxel."""
    options = SwcOptions(voxel_size_nm=(2000.0,) * 3, unit="um")
    shape = (1000, 1000, 1000)

    def hint(*ends: float, more: Sequence[float] = ()) -> str | None:
        along = np.concatenate([np.linspace(*ends, 91), np.asarray(more, float)])
        nodes = np.column_stack([along, along, along])
        return suggest_unit([Skeleton("a", nodes, [])], shape, options)

    # 90 % of the nodes count for the box: 5.5 * 0.9 < 5 = 1000 / 200 < 5.6 * 0.9. In no unit do
    # so few voxels fill a twentieth; with a voxel of a 25th of a um they do, from 50 / 25 on.
    assert hint(1, 6.5) is None
    options = replace(options, voxel_size_nm=(25_000.0,) * 3)
    assert "unit voxel" in str(hint(1, 6.5))
    assert hint(1, 6.7) is None
    assert "unit voxel" in str(hint(1, 3.1))
    assert hint(1, 2.9) is None
    # Some nodes may lie apart, but not many.
    assert "unit voxel" in str(hint(1, 4, more=[900.0] * 3))
    assert hint(1, 4, more=[900.0] * 10) is None
    assert suggest_unit([], shape, options) is None
    assert suggest_unit([Skeleton("a", [[1, 1, 1]], [])], shape, options) is None


def written_as(folder: Path, files: dict[str, str], kind: str) -> Path:
    if kind == "folder":
        for name, text in files.items():
            (folder / f"{name}.swc").write_text(text)
        return folder
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in reversed(files.items()):
            archive.writestr(f"{name}.swc", text)
    return folder / "all.zip"


@pytest.mark.parametrize("threads", ["1", "2", "7"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_threads_read_what_one_reads_and_tell_the_same_error(tmp_path, monkeypatch, kind, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    # The first files are the longest: what fails behind them fails earlier.
    long = "\n".join(f"{i} 2 {i}.25 2 {i / 7!r} 1 {i - 1 if i else -1}" for i in range(3000))
    files = {f"n{i:02d}": long if i < 3 else f"{i} 2 1 2 {i} 1 -1" for i in range(30)}
    path = written_as(tmp_path, files, kind)
    found = read_skeletons(path, PLAIN)
    assert [s.name for s in found] == sorted(files)
    assert [s.nodes[0, 0] for s in found[3:]] == list(range(3, 30))
    assert len(found[0].nodes) == 3000
    wrong = files | {"n02": long + "\n1 2 0 0 0 1 -1", "n05": "1 2 x 0 0 1 -1", "n29": ""}
    with pytest.raises(InputError, match=r"n02\.swc, line 3001: id 1 was used before"):
        read_skeletons(written_as(tmp_path, wrong, kind), PLAIN)


@pytest.mark.parametrize(("third", "message"), [("", "two skeletons"), ("1 2", "c.swc, line 1")])
def test_two_files_of_one_name_are_told_unless_one_before_is_wrong(tmp_path, third, message):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/x.swc", "d/x.swc", "e/y.swc"):
            archive.writestr(name, "1 2 0 0 0 1" if name.startswith("e") else ROWS)
        archive.writestr("c/c.swc", third or ROWS)
    with pytest.raises(InputError, match=message) as told:
        read_skeletons(path, PLAIN)
    if not third:
        assert f"called x: {path}:a/x.swc and {path}:d/x.swc. Rename" in str(told.value)


def data_folder() -> Path:
    default = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("AXONLOOM_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    return folder


@pytest.mark.data
def test_real_tracings_are_read():
    trees = {}
    for path in sorted(data_folder().rglob("*.swc")):
        (skeleton,) = read_skeletons(path, SwcOptions(voxel_size_nm=VOXEL, unit="um"))
        assert len(skeleton.nodes) > 100
        trees[path.stem] = len(skeleton.nodes) - len(skeleton.edges)
    assert trees["754538881"] == 2
    assert trees["6656_2304_22016_gold"] == 30
    assert len(trees) == 19


@pytest.mark.data
def test_header_offset_brings_four_annotators_together():
    folder = data_folder() / "swc_annotators"
    um = SwcOptions(voxel_size_nm=(1000, 1000, 1000), unit="um")
    skeletons = {s.name: s for s in read_skeletons(folder, um)}
    assert len(skeletons) == 5
    roots = np.array([s.nodes[0] for s in skeletons.values()])
    assert np.ptp(roots, axis=0).max() < 30
    length = skeletons["consensus"].edge_lengths_nm(um.voxel_size_nm).sum() / 1000
    assert length == pytest.approx(114090, abs=1)


@pytest.mark.data
def test_fly_neuron_needs_a_flip_of_y():
    """Its integers are voxel centres, so half a voxel is added: row = 414 - round(y)."""
    tifffile = pytest.importorskip("tifffile")
    volume = tifffile.imread(data_folder() / "lm_fly_neuron" / "stack.tif")
    path = data_folder() / "lm_fly_neuron" / "trace.swc"
    half = (0.5, 0.5, 0.5)
    plain = SwcOptions(voxel_size_nm=(1, 1, 1), offset_vox=half)
    flipped = SwcOptions(
        voxel_size_nm=(1, 1, 1), offset_vox=half, flip=("y",), volume_shape=volume.shape
    )
    wrong, right = read_skeletons(path, plain), read_skeletons(path, flipped)
    labels, inside = labels_at_nodes(right[0], volume)
    assert inside.all()
    assert round(float((labels > 0).mean()), 2) == 0.96
    centred = node_voxels(wrong[0])
    assert (node_voxels(right[0])[:, 1] == 414 - centred[:, 1]).all()
    assert right[0].edge_lengths_nm((1, 1, 1)).sum() == pytest.approx(1576, abs=1)

    def is_foreground(voxels: np.ndarray) -> np.ndarray:
        return volume[tuple(voxels.T)] > 0

    hint = judge_placement(wrong, is_foreground, volume.shape, plain)
    assert "with flip: [y] 96% would" in str(hint.warning)
    assert judge_placement(right, is_foreground, volume.shape, flipped).warning is None


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("# OFFSET 0 1 0\n1 2 0 -1.324 0 1 -1", {"unit": "um", "offset_vox": (0, 0.5, 0)}, "y -40"),
        ("1 2 0.04085 0 0 1 -1", {"unit": "um", "offset_vox": (0, 0, -0.5)}, "x 9"),
        ("# OFFSET -0.35 0 0\n1 2 4.35 0 0 1 -1", {"unit": "voxel"}, "x 4"),
        ("1 2 4.35 0 0 1 -1", {"unit": "voxel", "offset_vox": (0, 0, -0.35)}, "x 4"),
        ("1 2 3.9999999999999996 0 0 1 -1", {"unit": "voxel"}, "x 3.9999999999999996"),
    ],
)  # fmt: skip
def test_sums_that_miss_a_face_by_rounding_lie_on_it(tmp_path, text, options, expected):
    """-0.324 um are -40.5 voxels of 8 nm; 0.04085 um are 9.5 voxels of 4.3 nm."""
    (tmp_path / "a.swc").write_text(text + "\n")
    size = (4.3,) * 3 if "0.04085" in text else (8.0,) * 3
    (skeleton,) = read_skeletons(tmp_path / "a.swc", SwcOptions(voxel_size_nm=size, **options))
    axis, _, value = expected.partition(" ")
    assert skeleton.nodes[0, "zyx".index(axis)] == float(value)
