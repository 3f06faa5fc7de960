"""Sites of errors as a table and as tracings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.arrays.error_sites import Sites, find_sites
from pipeline.arrays.metrics import build_forest, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, InputError
from pipeline.storage.site_files import SITES_SCHEMA, read_sites, write_site_swc, write_sites
from pipeline.storage.swc import SwcOptions, read_skeletons

VOXEL = (40.0, 9.0, 7.0)
TOP = 2**64 - 1


def line(name: str, count: int, y: float) -> Skeleton:
    nodes = np.array([(0.5, y, float(x)) for x in range(count)])
    return Skeleton(name, nodes, np.array([(i + 1, i) for i in range(count - 1)]))


def made(*cases: tuple[Skeleton, list[int]]):
    skeletons = [skeleton for skeleton, _ in cases]
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    scores = score(skeletons, [np.array(v, np.uint64) for _, v in cases], VOXEL)
    return find_sites(skeletons, forests, scores, VOXEL), skeletons, forests, scores


def with_errors():
    return made(
        (line("näive b", 3, 4), [TOP, TOP, 3]),
        (line("a", 7, 0), [1, 0, 0, 3, TOP, TOP, 0]),
        (line("c", 2, 50), [7, 7]),
    )


def without_errors():
    return made((line("c", 2, 50), [7, 7]))


def assert_equal(a: Sites, b: Sites) -> None:
    assert a.names == b.names
    for field in fields(Sites)[1:]:
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert (left.dtype, left.shape) == (right.dtype, right.shape), field.name
        np.testing.assert_array_equal(left, right, err_msg=field.name)


@pytest.mark.parametrize("case", [with_errors, without_errors])
def test_a_table_gives_the_sites_back(tmp_path, case):
    sites = case()[0]
    path = tmp_path / "sites.parquet"
    write_sites(path, sites)
    assert_equal(read_sites(path), sites)
    assert pq.read_schema(path).equals(SITES_SCHEMA)
    assert [p.name for p in tmp_path.iterdir()] == ["sites.parquet"]
    first = path.read_bytes()
    write_sites(path, sites)
    assert path.read_bytes() == first


def test_columns_as_another_program_sees_them(tmp_path):
    sites = with_errors()[0]
    write_sites(tmp_path / "sites.parquet", sites)
    table = pq.read_table(tmp_path / "sites.parquet")
    assert table.schema.field("label_a").type == pa.uint64()
    assert table.schema.field("label_b").type == pa.uint64()
    rows = table.to_pylist()
    assert [row["site"] for row in rows] == list(range(1, len(sites) + 1))
    (dangling,) = (row for row in rows if row["extent"] == "dangling")
    assert dangling["kind"] == "omission"
    assert (dangling["neuron_a"], dangling["label_a"], dangling["label_b"]) == ("a", TOP, 0)
    assert [dangling[f"{axis}_vox"] for axis in "zyx"] == [0.5, 0, 6]
    assert [dangling[f"{axis}_nm"] for axis in "zyx"] == [20, 0, 42]
    assert [dangling[f"end_a_{axis}_vox"] for axis in "zyx"] == [0.5, 0, 5]
    assert dangling["cable_nm"] == 7.0
    merges = [row for row in rows if row["kind"] == "merge"]
    assert {(row["neuron_a"], row["neuron_b"]) for row in merges} == {("a", "näive b")}
    assert all(row["extent"] == "" for row in merges)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "sites.parquet"
    with pytest.raises(InputError, match="no such file"):
        read_sites(path)
    write_sites(path, with_errors()[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a Parquet table, or a damaged one"):
        read_sites(path)
    pq.write_table(pa.table({"site": [1]}), path)
    with pytest.raises(DataError, match=r"expected the columns .* got site"):
        read_sites(path)


@pytest.mark.parametrize("unit", ["um", "nm", "voxel"])
def test_swc_of_the_neurons_with_errors(tmp_path: Path, unit):
    sites, *scored = with_errors()
    folder = tmp_path / "new" / "swc"
    paths = write_site_swc(folder, sites, *scored, VOXEL, unit=unit)
    assert [p.name for p in paths] == ["a.errors.swc", "näive b.errors.swc"]
    assert sorted(folder.iterdir()) == paths
    text = paths[0].read_text(encoding="utf-8").splitlines()
    assert text[0] == "# sites of errors on a; types: 10 split, 11 merge, 12 omission"
    a = [row for row in range(len(sites)) if "a" in (sites.names[sites.neuron_a[row]],)]
    for tree, row in enumerate(a, start=1):
        kind = ("split", "merge", "omission")[sites.kind[row]]
        cable = sites.cable_nm[row]
        assert text[tree] == f"# tree {tree}: site {row + 1}, {kind}, cable {cable:.1f} nm"
    found = read_skeletons(folder, SwcOptions(voxel_size_nm=VOXEL, unit=unit))
    back = {s.name: s for s in found}["a.errors"]
    omitted = back.nodes[back.types == 12]
    np.testing.assert_allclose(omitted[:, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(sorted(omitted[:, 2]), [0, 1, 2, 3, 5, 6], atol=1e-6)
    np.testing.assert_allclose(sorted(back.nodes[back.types == 10][:, 2]), [0, 1, 2, 3, 3, 4])
    assert (back.types == 11).sum() == 4
    first = [p.read_bytes() for p in paths]
    write_site_swc(folder, sites, *scored, VOXEL, unit=unit)
    assert [p.read_bytes() for p in paths] == first


def test_only_files_of_sites_are_removed(tmp_path):
    sites, *scored = with_errors()
    write_site_swc(tmp_path, sites, *scored, VOXEL)
    kept = tmp_path / "a.swc"
    kept.write_text("1 0 0 0 0 0 -1\n")
    clean, *fine = without_errors()
    assert write_site_swc(tmp_path, clean, *fine, VOXEL) == []
    assert list(tmp_path.iterdir()) == [kept]


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    sites, *scored = made((line("../a", 3, 0), [1, 2, 2]))
    with pytest.raises(InputError, match=r"'\.\./a': its name cannot be that of a file"):
        write_site_swc(tmp_path / "swc", sites, *scored, VOXEL)
    assert list(tmp_path.rglob("*.swc")) == []
