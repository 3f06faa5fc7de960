"""Sites of errors on hand-made tracings, computed by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from pipeline.arrays.error_site_tracings import SWC_TYPES, trace_sites
from pipeline.arrays.error_sites import KINDS, Sites, find_sites
from pipeline.arrays.metrics import Scores, ScoringOptions, build_forest, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError, ShapeError

VOXEL = (40.0, 9.0, 7.0)
TOP = 2**64 - 1


def line(name: str, xs: list[float], y: float = 0.0, z: float = 0.0) -> Skeleton:
    nodes = [(z, y, x) for x in xs]
    return Skeleton(name, np.array(nodes), np.array([(i + 1, i) for i in range(len(xs) - 1)]))


def star(name: str, arms: list[tuple[float, float, float]]) -> Skeleton:
    """Node 0 at the origin, joined to the others."""
    nodes = np.array([(0.0, 0.0, 0.0), *arms])
    return Skeleton(name, nodes, np.array([(i + 1, 0) for i in range(len(arms))]))


def as_labels(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def sites_of(
    *cases: tuple[Skeleton, list[int]], options: ScoringOptions | None = None
) -> tuple[Sites, Scores]:
    skeletons = [skeleton for skeleton, _ in cases]
    scores = score(skeletons, [as_labels(labels) for _, labels in cases], VOXEL, options)
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    return find_sites(skeletons, forests, scores, VOXEL), scores


def rows(sites: Sites, kind: str) -> list[int]:
    return np.flatnonzero(sites.kind == KINDS.index(kind)).tolist()


def only(sites: Sites, kind: str) -> int:
    (row,) = rows(sites, kind)
    return row


def check(sites: Sites, row: int, **expected: object) -> None:
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(sites, name)[row], value, err_msg=name)


def test_no_error_no_site():
    sites, _ = sites_of((line("a", [0, 1, 2]), [5, 5, 5]), (line("b", [0], y=4), [6]))
    assert len(sites) == 0
    assert sites.names == ("a", "b")
    assert sites.extent == []
    full, _ = sites_of((line("a", [0, 1, 2]), [0, 5, 6]))
    for field in fields(Sites)[1:]:
        empty, some = getattr(sites, field.name), getattr(full, field.name)
        assert (empty.dtype, empty.shape[1:]) == (some.dtype, some.shape[1:]), field.name


def test_types_of_the_columns():
    sites, _ = sites_of((line("a", [0, 1, 2]), [0, 5, 6]), (line("b", [0, 1]), [6, 6]))
    places = ("position_vox", "position_nm", "end_a_vox", "end_b_vox")
    for field in fields(Sites)[1:]:
        values = getattr(sites, field.name)
        assert values.shape == ((len(sites), 3) if field.name in places else (len(sites),))
        if field.name in places or field.name.endswith("_nm"):
            assert values.dtype == np.float64
        elif field.name.startswith("label_"):
            assert values.dtype == np.uint64
        else:
            assert values.dtype == (np.uint8 if field.name == "kind" else np.int64), field.name


def test_a_split_edge():
    sites, scores = sites_of((line("a", [0, 1, 2, 4, 5]), [TOP, TOP, TOP, 2, 2]))
    assert len(sites) == scores.overall["splits"] == 1
    check(
        sites, 0, kind=0, neuron_a=0, neuron_b=0, label_a=2, label_b=TOP, node_a=3, node_b=2,
        node=-1, edge=2, position_vox=(0, 0, 3), position_nm=(0, 0, 21), end_a_vox=(0, 0, 4),
        end_b_vox=(0, 0, 2), gap_nm=14.0, background_nodes=0, labelled_ends=2, cable_a_nm=7.0,
        cable_b_nm=14.0, cable_nm=7.0, site=1, extent="",
    )  # fmt: skip


def test_a_gap_between_two_labels():
    # 49 nm from x = 1 to x = 8; the middle lies on the long edge, nearest to x = 3.
    sites, _ = sites_of((line("a", [0, 1, 2, 3, 7, 8, 10]), [1, 1, 0, 0, 0, 2, 2]))
    assert [KINDS[kind] for kind in sites.kind] == ["omission", "split"]
    check(
        sites, only(sites, "split"), label_a=1, label_b=2, node_a=1, node_b=5, edge=-1,
        position_vox=(0, 0, 4.5), position_nm=(0, 0, 31.5), gap_nm=49.0, background_nodes=3,
        cable_a_nm=7.0, cable_b_nm=14.0, cable_nm=7.0, site=2,
    )  # fmt: skip
    check(
        sites, only(sites, "omission"), label_a=1, label_b=2, node_a=1, node_b=5, node=3, edge=-1,
        position_vox=(0, 0, 3), gap_nm=0.0, background_nodes=3, labelled_ends=2, cable_nm=49.0,
        cable_a_nm=7.0, cable_b_nm=14.0, extent="inside", site=1,
    )  # fmt: skip


# On the last edge, on the middle one, on the first, at a node.
@pytest.mark.parametrize("xs", [[0, 1, 2, 8], [0, 1, 9, 10], [0, 6, 7, 8], [0, 2, 3, 4]])
def test_the_middle_of_a_path_lies_where_half_its_length_is(xs):
    sites, _ = sites_of((line("a", xs), [1, 0, 0, 2]))
    check(sites, only(sites, "split"), position_vox=(0, 0, xs[-1] / 2))


def test_a_gap_of_one_label_is_bridged_and_no_site():
    case = (line("a", [0, 1, 2, 3]), [1, 0, 0, 1])
    assert len(sites_of(case)[0]) == 0
    sites, scores = sites_of(case, options=ScoringOptions(repair=False))
    assert scores.overall["splits"] == 1
    check(sites, only(sites, "split"), label_a=1, label_b=1, node_a=0, node_b=3, gap_nm=21.0)


def test_a_dangling_end():
    sites, _ = sites_of((line("a", [0, 1, 2, 3, 4]), [1, 1, 1, 0, 0]))
    assert len(sites) == 1
    check(
        sites, 0, kind=2, label_a=1, label_b=0, node_a=2, node_b=-1, node=3,
        position_vox=(0, 0, 3), end_a_vox=(0, 0, 2), end_b_vox=(0, 0, 3), background_nodes=2,
        labelled_ends=1, cable_a_nm=14.0, cable_b_nm=0.0, cable_nm=14.0, extent="dangling",
    )  # fmt: skip


def test_a_neuron_wholly_omitted():
    sites, scores = sites_of((line("a", [0, 1, 2]), [0, 0, 0]), (line("b", [0], y=5), [0]))
    assert scores.overall["splits"] == 0
    assert len(sites) == 2
    check(
        sites, 0, kind=2, neuron_a=0, label_a=0, label_b=0, node_a=-1, node_b=-1, node=1,
        position_vox=(0, 0, 1), end_a_vox=(0, 0, 1), end_b_vox=(0, 0, 1), background_nodes=3,
        labelled_ends=0, cable_a_nm=0.0, cable_b_nm=0.0, cable_nm=14.0, extent="tree",
    )  # fmt: skip
    check(sites, 1, neuron_a=1, node=0, background_nodes=1, cable_nm=0.0, position_vox=(0, 5, 0))


def test_two_merged_neurons():
    # Label 9 on x = 3..6 of a (21 nm) and on both nodes of b (7 nm); closest at x = 4.
    sites, scores = sites_of(
        (line("b", [4, 5], y=2), [9, 9]),
        (line("a", [0, 1, 2, 3, 4, 6]), [8, 8, 8, 9, 9, 9]),
    )
    assert scores.overall["merges_total"] == 1
    row = only(sites, "merge")
    check(
        sites, row, neuron_a=1, neuron_b=0, label_a=9, label_b=9, node_a=4, node_b=0, node=-1,
        edge=-1, position_vox=(0, 1, 4), position_nm=(0, 9, 28), end_a_vox=(0, 0, 4),
        end_b_vox=(0, 2, 4), gap_nm=18.0, background_nodes=0, cable_a_nm=21.0, cable_b_nm=7.0,
        cable_nm=28.0, extent="",
    )  # fmt: skip
    check(sites, only(sites, "split"), neuron_a=1, edge=2, label_a=8, label_b=9, cable_nm=14.0)


def test_anisotropy_decides_which_nodes_are_closest():
    # One step of z is 40 nm, four of y are 36: the second node of b is closer, though not in voxels
    b = Skeleton("b", np.array([(1.0, 0.0, 0.0), (0.0, 4.0, 0.0)]), np.array([(1, 0)]))
    sites, _ = sites_of((line("a", [0]), [3]), (b, [3, 3]))
    check(sites, 0, node_a=0, node_b=1, gap_nm=36.0, position_vox=(0, 2, 0), cable_a_nm=0.0)


def test_a_label_on_three_neurons_joins_neighbours():
    sites, scores = sites_of(
        (line("c", [0, 1], y=13), [4, 4]),
        (line("a", [0, 1, 2, 3]), [4, 4, 4, 4]),
        (line("b", [0, 1, 2], y=3), [4, 4, 4]),
    )
    assert scores.overall["merges_total"] == len(sites) == 2
    pairs = [
        (sites.names[a], sites.names[b], gap, cable)
        for a, b, gap, cable in zip(
            sites.neuron_a, sites.neuron_b, sites.gap_nm, sites.cable_nm, strict=True
        )
    ]
    # a has 21 nm of the label, b 14, c 7. Equal distances: the first by coordinates.
    assert pairs == [("a", "b", 27.0, 35.0), ("b", "c", 90.0, 21.0)]
    np.testing.assert_array_equal(sites.position_vox, [(0, 1.5, 0), (0, 8, 0)])


def test_a_merge_counts_only_where_the_label_reaches_the_tolerance():
    cases = [
        (line("a", [0, 1, 2]), [4, 4, 4]),
        (line("b", [0, 1], y=1), [5, 4]),
        (line("c", [0, 1], y=9), [4, 4]),
    ]
    sites, _ = sites_of(*cases, options=ScoringOptions(merge_min_nodes=2))
    row = only(sites, "merge")
    check(sites, row, neuron_a=0, neuron_b=2, gap_nm=81.0, cable_nm=21.0)
    assert len(rows(sites_of(*cases)[0], "merge")) == 2


def test_background_on_two_neurons_is_no_merge():
    sites, _ = sites_of((line("a", [0, 1]), [1, 0]), (line("b", [0, 1], y=1), [2, 0]))
    assert rows(sites, "merge") == rows(sites, "split") == []
    assert len(rows(sites, "omission")) == 2


def test_two_branches_of_a_neuron_with_one_label_are_no_merge():
    sites, scores = sites_of((line("a", [0, 1, 2, 3]), [1, 2, 1, 1]))
    assert rows(sites, "merge") == []
    assert len(rows(sites, "split")) == scores.overall["splits"] == 2
    check(sites, 0, label_a=1, label_b=2, node_a=0, node_b=1, cable_nm=0.0, edge=0)
    check(sites, 1, label_a=1, label_b=2, node_a=2, node_b=1, cable_nm=0.0, edge=1)


def test_several_roots_are_no_split():
    nodes = np.array([(0.0, 0.0, float(x)) for x in range(7)])
    skeleton = Skeleton("a", nodes, np.array([(1, 0), (3, 2), (4, 3), (6, 5)]))
    sites, scores = sites_of((skeleton, [1, 1, 2, 0, 3, 0, 0]))
    assert len(rows(sites, "split")) == scores.overall["splits"] == 1
    check(sites, only(sites, "split"), label_a=2, label_b=3, node_a=2, node_b=4, gap_nm=14.0)
    first, second = rows(sites, "omission")
    check(sites, first, node=3, cable_nm=14.0, extent="inside")
    check(sites, second, node=5, cable_nm=7.0, extent="tree", background_nodes=2)


def test_three_labels_around_background_are_joined_by_the_shortest_paths():
    # Arms of 14, 27 and 40 nm from a background hub: 14 + 27 and 14 + 40, not 27 + 40.
    sites, scores = sites_of((star("a", [(0, 0, 2), (0, 3, 0), (1, 0, 0)]), [0, 5, 6, 7]))
    assert scores.overall["splits"] == 2
    first, second = rows(sites, "split")
    found = {sites.label_b[row]: row for row in (first, second)}
    check(sites, found[6], label_a=5, gap_nm=41.0, background_nodes=1, node_a=1, node_b=2)
    check(sites, found[7], label_a=5, gap_nm=54.0, background_nodes=1, node_a=1, node_b=3)
    # Half of 41 is 6.5 beyond the hub on an edge of 27; half of 54 is 13 beyond, on one of 40.
    np.testing.assert_allclose(sites.position_vox[found[6]], (0, 3 * 6.5 / 27, 0), rtol=1e-15)
    np.testing.assert_allclose(sites.position_vox[found[7]], (13 / 40, 0, 0), rtol=1e-15)
    row = only(sites, "omission")
    check(sites, row, labelled_ends=3, cable_nm=81.0, node=0, label_a=5, label_b=6)


def test_an_omission_names_the_labels_of_the_longest_components_beside_it():
    nodes = np.array(
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, -1), (0, 0, -3), (0, 2, 0)], np.float64
    )
    edges = np.array([(1, 0), (2, 0), (3, 0), (4, 3), (5, 2)])
    sites, _ = sites_of((Skeleton("a", nodes, edges), [0, 5, 8, 7, 7, 8]))
    row = only(sites, "omission")
    check(
        sites, row, label_a=7, label_b=8, node_a=3, node_b=2, cable_a_nm=14.0, cable_b_nm=9.0,
        labelled_ends=3, cable_nm=23.0,
    )  # fmt: skip


def test_equal_arms_are_joined_through_the_first_by_coordinates():
    arms = [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.0, 7 / 9, 0.0), (0.0, -7 / 9, 0.0)]
    expected = None
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        skeleton = star("a", [arms[i] for i in order])
        sites, _ = sites_of((skeleton, [0, *(i + 1 for i in order)]))
        kept = rows(sites, "split")
        pairs = list(zip(sites.label_a[kept], sites.label_b[kept], strict=True))
        assert all(4 in pair for pair in pairs), "y = -7 / 9 comes first"
        expected = expected or pairs
        assert pairs == expected


def test_the_table_is_ordered_by_cable_and_sites_are_numbered():
    sites, _ = sites_of(
        (line("a", list(range(9))), [1, 1, 1, 2, 2, 0, 3, 3, 3]),
        (line("b", [0, 1, 2, 3], y=4), [3, 3, 3, 9]),
    )
    assert (np.diff(sites.cable_nm) <= 0).all()
    np.testing.assert_array_equal(sites.site, np.arange(1, len(sites) + 1))
    assert [KINDS[kind] for kind in sites.kind] == [
        "merge", "omission", "split", "split", "split",
    ]  # fmt: skip
    assert sites.cable_nm.tolist() == [28.0, 14.0, 7.0, 7.0, 0.0]


def test_nothing_is_changed_and_views_are_taken():
    skeleton = line("a", [0, 1, 2, 3, 4])
    wide = np.zeros((5, 6))
    wide[:, ::2] = skeleton.nodes
    strided = Skeleton("a", wide[:, ::2], np.asfortranarray(skeleton.edges))
    assert not strided.nodes.flags.c_contiguous
    labels = np.zeros(10, np.uint64)
    labels[::2] = [1, 0, 0, 2, 2]
    scores = score([strided], [labels[::2]], VOXEL)
    kept = scores.node_labels[0].copy(), strided.nodes.copy()
    for values in (*scores.node_labels, *scores.components, *scores.edge_classes):
        values.setflags(write=False)
    sites = find_sites([strided], [build_forest(strided, VOXEL)], scores, VOXEL)
    plain, _ = sites_of((skeleton, [1, 0, 0, 2, 2]))
    for field in fields(Sites):
        np.testing.assert_array_equal(getattr(sites, field.name), getattr(plain, field.name))
    np.testing.assert_array_equal(scores.node_labels[0], kept[0])
    np.testing.assert_array_equal(strided.nodes, kept[1])


def test_a_label_on_many_neurons_far_apart_and_close():
    # More nodes than one box holds; neuron i at y = i^2 / 9: neighbours are 2 i + 1 nm apart.
    cases = [(line(f"{i:02}", list(range(40)), y=i * i / 9), [1] * 40) for i in range(12)]
    sites, _ = sites_of(*cases)
    pairs = sorted(zip(sites.neuron_a, sites.neuron_b, sites.gap_nm, strict=True))
    for i, (a, b, gap) in enumerate(pairs):
        assert (a, b) == (i, i + 1)
        assert gap == pytest.approx(2 * i + 1, rel=1e-12)
    # All of a neuron's nodes are equally close: the first by coordinates.
    np.testing.assert_array_equal(sites.position_vox[:, 2], 0)
    np.testing.assert_array_equal(sites.cable_nm, 2 * 39 * 7.0)


def test_input_that_does_not_belong_together_is_refused():
    a, b = line("a", [0, 1]), line("b", [0, 1, 2])
    scores = score([a, b], [as_labels([1, 2]), as_labels([1, 2, 2])], VOXEL)
    forests = [build_forest(a, VOXEL), build_forest(b, VOXEL)]
    with pytest.raises(ShapeError, match="2 skeletons, 1 forests, scores of 2"):
        find_sites([a, b], forests[:1], scores, VOXEL)
    with pytest.raises(ShapeError, match="skeleton b with 3 nodes and 2 edges"):
        find_sites([b, a], forests, scores, VOXEL)
    longer = line("b", [0, 1, 2, 3])
    with pytest.raises(ShapeError, match="forest is b with 3 nodes"):
        find_sites([a, longer], forests, scores, VOXEL)
    with pytest.raises(ShapeError, match="1 edges"):
        find_sites(
            [a, b], forests, replace(scores, edge_classes=scores.edge_classes[:1] * 2), VOXEL
        )
    for size in ((1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0)):
        with pytest.raises(InputError, match="three positive lengths"):
            find_sites([a, b], forests, scores, size)


def traced(*cases: tuple[Skeleton, list[int]]):
    sites, scores = sites_of(*cases)
    skeletons = [skeleton for skeleton, _ in cases]
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    return trace_sites(skeletons, forests, scores, sites), sites


def test_tracings_hold_a_tree_for_each_site():
    tracings, sites = traced(
        (line("b", [0, 1], y=3), [4, 4]),
        (line("a", [0, 1, 2, 3, 4, 5, 6]), [1, 0, 0, 3, 4, 4, 0]),
        (line("c", [0, 1], y=50), [7, 7]),
    )
    assert [t.skeleton.name for t in tracings] == ["a", "b"]
    a, b = tracings
    assert sites.neuron_b[b.sites].tolist() == [0]
    np.testing.assert_array_equal(b.skeleton.nodes, [(0, 0, 4), (0, 3, 1)])
    assert b.skeleton.types.tolist() == [SWC_TYPES["merge"]] * 2
    trees: list[tuple[int, list[float]]] = []
    forest = build_forest(a.skeleton, VOXEL)
    tree = forest.by_node(forest.tree)
    for number in range(len(a.sites)):
        members = np.flatnonzero(tree == number)
        (kind,) = set(a.skeleton.types[members].tolist())
        trees.append((kind, sorted(a.skeleton.nodes[members, 2].tolist())))
    by_kind = [list(SWC_TYPES.values())[sites.kind[row]] for row in a.sites]
    assert [kind for kind, _ in trees] == by_kind
    assert sorted(trees) == [
        (SWC_TYPES["split"], [0, 1, 2, 3]),
        (SWC_TYPES["split"], [3, 4]),
        (SWC_TYPES["merge"], [1, 4]),
        (SWC_TYPES["omission"], [0, 1, 2, 3]),
        (SWC_TYPES["omission"], [5, 6]),
    ]


def test_no_sites_no_tracings():
    assert traced((line("a", [0, 1]), [1, 1]))[0] == []
