"""Betti numbers against flood fills, homology of cell complexes and known shapes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.betti import Betti, betti_errors, betti_numbers, euler_characteristic
from pipeline.errors import DtypeError, InputError, ShapeError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
DUAL = {8: 4, 4: 8, 26: 6, 18: 6, 6: 26}
FAR = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}
CASES = [(2, 8), (2, 4), (3, 26), (3, 18), (3, 6)]


def random_mask(seed, axes, most=6):
    rng = np.random.default_rng(seed)
    return rng.random(rng.integers(1, most + 1, axes)) < rng.choice([0.2, 0.5, 0.8])


def steps(axes, connectivity):
    """Neighbours differ by at most 1 along each axis, and along at most so many axes."""
    return [
        s
        for s in itertools.product((-1, 0, 1), repeat=axes)
        if 0 < sum(map(abs, s)) <= FAR[connectivity]
    ]


def flood_components(mask, connectivity):
    """Sets of voxels, one voxel at a time."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    found = []
    while left:
        stack = [left.pop()]
        component = set(stack)
        while stack:
            at = stack.pop()
            for step in steps(mask.ndim, connectivity):
                near = tuple(a + b for a, b in zip(at, step, strict=True))
                if near in left:
                    left.remove(near)
                    component.add(near)
                    stack.append(near)
        found.append(component)
    return found


def flood_cavities(mask, connectivity):
    """Background components other than the one outside."""
    return len(flood_components(~np.pad(mask, 1), DUAL[connectivity])) - 1


def closed_complex(mask):
    """Cells of the union of closed squares or cubes, as corners in half voxels: odd is extended."""
    cells = set()
    for voxel in np.argwhere(mask).tolist():
        cells |= set(itertools.product(*((2 * i, 2 * i + 1, 2 * i + 2) for i in voxel)))
    return cells


def dual_complex(mask):
    """Voxels are vertices; 2, 4 or 8 of them in a block are an edge, a square, a cube."""
    voxels = set(map(tuple, np.argwhere(mask).tolist()))
    cells = set()
    for voxel in voxels:
        for extended in itertools.product((0, 1), repeat=mask.ndim):
            block = itertools.product(
                *((i, i + 1) if e else (i,) for i, e in zip(voxel, extended, strict=True))
            )
            if all(v in voxels for v in block):
                cells.add(tuple(2 * i + e for i, e in zip(voxel, extended, strict=True)))
    return cells


def rank(rows):
    """Over GF(2); rows are integers."""
    pivots = {}
    for row in rows:
        while row and row.bit_length() in pivots:
            row ^= pivots[row.bit_length()]
        if row:
            pivots[row.bit_length()] = row
    return len(pivots)


def homology(cells):
    """b0, b1, b2 from ranks of boundary matrices, without any count of components."""
    of_dimension = [[] for _ in range(4)]
    for cell in sorted(cells):
        of_dimension[sum(i % 2 for i in cell)].append(cell)
    ranks = [0]
    for faces, whole in itertools.pairwise(of_dimension):
        place = {cell: 1 << k for k, cell in enumerate(faces)}
        rows = []
        for cell in whole:
            row = 0
            for axis, i in enumerate(cell):
                if i % 2:
                    for end in (i - 1, i + 1):
                        row ^= place[(*cell[:axis], end, *cell[axis + 1 :])]
            rows.append(row)
        ranks.append(rank(rows))
    ranks.append(0)
    return tuple(len(of_dimension[d]) - ranks[d] - ranks[d + 1] for d in range(3))


def parted_corners(mask):
    """Three times as fine; cubes that met in a corner alone do not, the others as before."""
    fine = np.pad(mask, 1)
    fine = fine.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    padded = np.pad(mask, 1)
    for corner in itertools.product(*(range(n - 1) for n in padded.shape)):
        block = padded[tuple(slice(i, i + 2) for i in corner)]
        if block.sum() == 2:
            first, second = np.argwhere(block)
            if abs(first - second).sum() == 3:
                fine[
                    tuple(3 * (i + f) + (0 if f else 2) for i, f in zip(corner, first, strict=True))
                ] = 0
    return fine


# --- known shapes


def ring(shape=(7, 8), thick=1):
    mask = np.ones(shape, bool)
    mask[thick:-thick, thick:-thick] = False
    return mask


def torus():
    z, y, x = np.indices((9, 21, 25))
    return (np.hypot(y - 10, x - 12) - 7) ** 2 + (z - 4) ** 2 <= 9


def hollow_ball():
    d = ((np.indices((13, 14, 15)).T - (6, 6, 7)) ** 2).sum(-1).T
    return (d <= 25) & (d >= 9)


def linked_rings():
    mask = np.zeros((9, 9, 14), bool)
    mask[4, :, :9] = ring((9, 9))
    mask[:, 4, 4:13] |= ring((9, 9))
    return mask


def ball_with_torus_inside():
    mask = np.pad(np.zeros_like(torus()), 2)
    mask[...] = True
    mask[1:-1, 1:-1, 1:-1] = False
    mask[2:-2, 2:-2, 2:-2] |= torus()
    return mask


SHAPES = {
    "ring": (ring(), (1, 1, 0)),
    "two rings": (np.hstack([ring(), np.zeros((7, 1), bool), ring()]), (2, 2, 0)),
    "eight": (np.hstack([ring(), ring()[:, 1:]]), (1, 2, 0)),
    "ring open at the border": (ring((7, 8))[1:], (1, 0, 0)),
    "torus": (torus(), (1, 1, 0)),
    "hollow ball": (hollow_ball(), (1, 0, 1)),
    "linked rings": (linked_rings(), (2, 2, 0)),
    "torus in a box": (ball_with_torus_inside(), (2, 1, 1)),
    "tube through the volume": (np.repeat(ring()[None], 5, 0), (1, 1, 0)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes(name):
    mask, expected = SHAPES[name]
    for connectivity in (8, 4) if mask.ndim == 2 else (26, 18, 6):
        found = betti_numbers(mask, connectivity)
        assert found == expected, connectivity
        assert found.euler == euler_characteristic(mask, connectivity)


def test_hollow_torus_has_two_loops_and_a_cavity():
    z, y, x = np.indices((13, 25, 27))
    d = (np.hypot(y - 12, x - 13) - 7) ** 2 + (z - 6) ** 2
    assert betti_numbers((d <= 20) & (d >= 6)) == (1, 2, 1)


def test_a_cavity_that_reaches_the_border_is_none():
    ball = hollow_ball()
    assert betti_numbers(ball[:7]) == (1, 0, 0)


def test_diagonal_voxels_in_each_connectivity():
    """By edge joined in 18 and 26, by corner in 26 alone."""
    edge, corner = np.zeros((2, 3, 3), bool), np.zeros((2, 3, 3), bool)
    edge[0, 0, 0] = edge[0, 1, 1] = corner[0, 0, 0] = corner[1, 1, 1] = True
    assert [betti_numbers(edge, c).b0 for c in (26, 18, 6)] == [1, 1, 2]
    assert [betti_numbers(corner, c) for c in (26, 18, 6)] == [(1, 0, 0), (2, 0, 0), (2, 0, 0)]
    # A diagonal ring is a loop for 8, and four pieces for 4.
    diamond = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    assert betti_numbers(diamond, 8) == (1, 1, 0)
    assert betti_numbers(diamond, 4) == (4, 0, 0)
    # The background leaves through a corner in 8, not in 4.
    open_square = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    assert betti_numbers(open_square, 8) == (1, 1, 0)
    assert betti_numbers(open_square, 4) == (1, 0, 0)


# --- against slow references


@pytest.mark.parametrize(("axes", "connectivity"), CASES)
@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_components_and_cavities_equal_flood_fills(axes, connectivity, seed):
    mask = random_mask(seed, axes)
    found = betti_numbers(mask, connectivity)
    assert found.b0 == len(flood_components(mask, connectivity))
    outside = flood_cavities(mask, connectivity)
    assert outside == (found.b1 if axes == 2 else found.b2)


@pytest.mark.parametrize(("axes", "connectivity"), [c for c in CASES if c[1] != 18])
@settings(PROPERTY, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_all_numbers_equal_those_of_homology(axes, connectivity, seed):
    mask = random_mask(seed, axes, 5 if axes == 3 else 8)
    cells = closed_complex(mask) if connectivity in (8, 26) else dual_complex(mask)
    assert betti_numbers(mask, connectivity) == homology(cells)
    assert euler_characteristic(mask, connectivity) == sum(
        (-1) ** sum(i % 2 for i in c) for c in cells
    )


@settings(PROPERTY, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_18_is_26_with_corners_parted(seed):
    mask = random_mask(seed, 3, 3)
    assert betti_numbers(mask, 18) == homology(closed_complex(parted_corners(mask)))


@pytest.mark.parametrize(("connectivity", "theirs"), [(26, 3), (6, 1), (8, 2), (4, 1)])
def test_euler_characteristic_equals_that_of_scikit_image(connectivity, theirs):
    euler_number = pytest.importorskip("skimage.measure").euler_number
    mask = np.random.default_rng(1).random((20, 31, 17)) < 0.4
    mask = mask if connectivity in (26, 6) else mask[3]
    assert euler_characteristic(mask, connectivity) == euler_number(mask, connectivity=theirs)


@pytest.mark.parametrize("connectivity", [26, 18, 6])
def test_axes_can_be_turned(connectivity):
    mask = np.random.default_rng(2).random((5, 9, 14)) < 0.5
    found = {
        betti_numbers(mask.transpose(p), connectivity) for p in itertools.permutations(range(3))
    }
    assert len(found) == 1


@pytest.mark.parametrize(("connectivity", "in_space"), [(8, 26), (4, 6)])
def test_one_plane_in_space_is_the_plane(connectivity, in_space):
    mask = np.random.default_rng(3).random((20, 30)) < 0.5
    for axis in range(3):
        assert betti_numbers(np.expand_dims(mask, axis), in_space) == betti_numbers(
            mask, connectivity
        )


# --- chunks


@pytest.mark.parametrize(("axes", "connectivity"), CASES)
@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_euler_characteristics_of_chunks_add(axes, connectivity, seed):
    mask = random_mask(seed, axes, 9)
    chunk = np.random.default_rng(seed).integers(1, 6, axes)
    total = 0
    for start in itertools.product(
        *(range(0, n, c) for n, c in zip(mask.shape, chunk, strict=True))
    ):
        stop = [min(a + c, n) for a, c, n in zip(start, chunk, mask.shape, strict=True)]
        before = tuple(a > 0 for a in start)
        after = tuple(b < n for b, n in zip(stop, mask.shape, strict=True))
        box = tuple(slice(a - h, b) for a, b, h in zip(start, stop, before, strict=True))
        total += euler_characteristic(mask[box], connectivity, before=before, after=after)
    assert total == euler_characteristic(mask, connectivity)


# --- input


@pytest.mark.parametrize(("axes", "connectivity"), CASES)
def test_degenerate_images(axes, connectivity):
    def numbers(mask):
        return betti_numbers(mask, connectivity)

    shape = (4, 5, 6)[:axes]
    assert numbers(np.zeros(shape, bool)) == Betti(0, 0, 0)
    assert numbers(np.ones(shape, bool)) == (1, 0, 0)
    assert numbers(np.ones((1,) * axes, bool)) == (1, 0, 0)
    assert numbers(np.zeros((0, *shape[1:]), bool)) == (0, 0, 0)
    assert numbers(np.zeros((*shape[1:], 0), bool)) == (0, 0, 0)
    assert all(type(n) is int for n in numbers(np.ones(shape, bool)))


@pytest.mark.parametrize("connectivity", [26, 18, 6])
def test_lines_of_few_voxels(connectivity):
    """Every mask of up to five voxels along each axis."""
    for n, axis in itertools.product(range(1, 6), range(3)):
        for code in range(2**n):
            line = np.array([code >> i & 1 for i in range(n)], bool)
            runs = int(np.count_nonzero(np.diff(np.append(0, line.astype(int))) == 1))
            shape = tuple(n if a == axis else 1 for a in range(3))
            assert betti_numbers(line.reshape(shape), connectivity) == (runs, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, np.int16])
def test_integers_are_masks(dtype):
    mask = torus()
    labels = mask.astype(dtype) * np.iinfo(dtype).max
    assert betti_numbers(labels) == (1, 1, 0)


def test_any_memory_layout_and_no_change():
    rng = np.random.default_rng(4)
    wide = rng.random((12, 14, 16)) < 0.5
    part = wide[::2, 1::3, ::-1]
    copy = wide.copy()
    expected = betti_numbers(part.copy())
    assert betti_numbers(part) == expected
    assert betti_numbers(np.asfortranarray(part)) == expected
    part.flags.writeable = False
    assert betti_numbers(part) == expected
    np.testing.assert_array_equal(wide, copy)


def test_what_is_refused():
    plane, space = np.ones((3, 3), bool), np.ones((3, 3, 3), bool)
    with pytest.raises(InputError, match=r"connectivity 26.*2 axes has 8 or 4"):
        betti_numbers(plane, 26)
    with pytest.raises(InputError, match=r"connectivity 8.*3 axes has 26 or 18 or 6"):
        euler_characteristic(space, 8)
    with pytest.raises(ShapeError, match=r"\(Y, X\) or \(Z, Y, X\), got shape \(3,\)"):
        betti_numbers(plane[0])
    with pytest.raises(DtypeError, match=r"float32.*threshold"):
        betti_numbers(plane.astype(np.float32))
    with pytest.raises(ShapeError, match="3 axes"):
        euler_characteristic(space, before=(True, False))
    with pytest.raises(ShapeError, match="does not hold the halo"):
        euler_characteristic(space[:0], before=(True, False, False))


# --- errors


def test_errors_by_hand():
    """A ring against a line in two pieces, and a whole ring against an open one."""
    target = np.zeros((7, 16), bool)
    target[:, :8] = target[:, 8:] = ring()
    target[:, 7:9] = False
    target[:, 6] = target[:, 9] = True
    prediction = target.copy()
    prediction[3, 0] = False  # opens the left ring
    prediction[0, 12] = prediction[6, 12] = False  # cuts the right ring in two
    whole = betti_errors(prediction, target)
    assert whole == (1.0, 2.0, 0.0, 3.0, 1.0, 1)
    left_and_right = betti_errors(prediction, target, patch=(7, 8))
    assert left_and_right == (0.5, 1.0, 0.0, 1.5, 0.5, 2)


def test_opposite_errors_cancel_in_the_whole_and_not_in_windows():
    target = np.zeros((4, 8), bool)
    target[1, 1:3] = target[1, 5:7] = True
    prediction = np.zeros((4, 8), bool)
    prediction[1, 1:3] = prediction[3, 1] = True
    assert betti_errors(prediction, target).e0 == 0
    assert betti_errors(prediction, target, patch=4).e0 == 1
    # Only the missed object counts.
    assert betti_errors(prediction, target, patch=4).e0_gt == 0.5


def test_false_objects_do_not_count_in_e0_gt_and_gaps_do():
    target = np.zeros((5, 11), bool)
    target[2, 1:10] = True
    extra = target.copy()
    extra[0, ::2] = True
    assert betti_errors(extra, target)[:5] == (6.0, 0.0, 0.0, 6.0, 0.0)
    gap = extra.copy()
    gap[2, 5] = False
    assert betti_errors(gap, target).e0_gt == 1.0
    assert betti_errors(target, target, patch=3)[:5] == (0.0,) * 5


def test_cavities_have_their_own_error():
    ball = hollow_ball()
    errors = betti_errors(np.ones_like(ball), ball)
    assert (errors.e0, errors.e1, errors.e2, errors.e) == (0.0, 0.0, 1.0, 0.0)


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.sampled_from(CASES), st.booleans())
def test_errors_equal_those_of_a_loop_over_windows(seed, case, ignoring):
    axes, connectivity = case
    rng = np.random.default_rng(seed)
    target = random_mask(seed, axes, 9)
    prediction = target ^ (rng.random(target.shape) < 0.2)
    patch = tuple(int(n) for n in rng.integers(1, 6, axes))
    ignore = rng.random(target.shape) < 0.5 if ignoring else None
    known = np.ones_like(target) if ignore is None else ~ignore
    rows = []
    for start in itertools.product(
        *(range(0, n, p) for n, p in zip(target.shape, patch, strict=True))
    ):
        box = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
        if known[box].any():
            p, t = (betti_numbers((m & known)[box], connectivity) for m in (prediction, target))
            both = betti_numbers((prediction & target & known)[box], connectivity)
            rows.append([abs(a - b) for a, b in zip(p, t, strict=True)] + [abs(both.b0 - t.b0)])
    found = betti_errors(prediction, target, patch=patch, connectivity=connectivity, ignore=ignore)
    assert found.patches == len(rows)
    if rows:
        e0, e1, e2, e0_gt = np.mean(rows, axis=0)
        assert found[:5] == pytest.approx((e0, e1, e2, e0 + e1, e0_gt))


def test_plane_by_plane():
    rng = np.random.default_rng(5)
    target, prediction = rng.random((2, 6, 12, 13)) < 0.5
    planes = [betti_errors(p, t) for p, t in zip(prediction, target, strict=True)]
    found = betti_errors(prediction, target, patch=(1, 12, 13))
    assert found[:5] == pytest.approx(np.mean(planes, axis=0)[:5])
    assert found.patches == 6


def test_what_lies_under_ignore_does_not_matter():
    rng = np.random.default_rng(6)
    prediction, target, ignore, noise = rng.random((4, 20, 20)) < 0.4
    expected = betti_errors(prediction, target, ignore=ignore, patch=7)
    again = betti_errors(
        np.where(ignore, noise, prediction),
        np.where(ignore, ~noise, target),
        ignore=ignore,
        patch=7,
    )
    assert again == expected


def test_windows_without_a_known_voxel_are_left_out():
    target = np.zeros((4, 8), bool)
    prediction = target.copy()
    prediction[1, 1] = prediction[1, 5] = prediction[3, 5] = True
    ignore = np.zeros_like(target)
    ignore[:, 4:] = True
    assert betti_errors(prediction, target, patch=4, ignore=ignore) == (1.0, 0.0, 0.0, 1.0, 0.0, 1)
    nothing = betti_errors(prediction, target, patch=4, ignore=np.ones_like(target))
    assert nothing == (None, None, None, None, None, 0)
    empty = np.zeros((0, 4), bool)
    assert betti_errors(empty, empty) == (None, None, None, None, None, 0)


def test_the_rest_at_the_border_is_a_window():
    target = np.zeros((1, 10), bool)
    prediction = target.copy()
    prediction[0, 9] = True
    assert betti_errors(prediction, target, patch=4) == (1 / 3, 0.0, 0.0, 1 / 3, 0.0, 3)
    assert betti_errors(prediction, target, patch=np.int64(100)).patches == 1


def test_what_errors_refuse():
    mask = np.ones((4, 4), bool)
    for patch in (0, (4, -1), (4, 4, 4), 2.5, ()):
        with pytest.raises(InputError, match="patch"):
            betti_errors(mask, mask, patch=patch)
    with pytest.raises(ShapeError, match=r"prediction of shape \(4, 4\), target of shape \(3, 4\)"):
        betti_errors(mask, mask[:3])
    with pytest.raises(ShapeError, match=r"ignore of shape \(4,\)"):
        betti_errors(mask, mask, ignore=mask[0])
    with pytest.raises(ShapeError, match="target"):
        betti_errors(mask[0], mask[0])
    with pytest.raises(InputError, match="connectivity 6"):
        betti_errors(mask, mask, connectivity=6)
