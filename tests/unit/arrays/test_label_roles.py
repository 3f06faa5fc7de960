"""What label values stand for."""

import numpy as np
import pytest

from pipeline.arrays.label_roles import assign_roles, check_roles, is_instance, number_pieces
from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError

I = int(IGNORE)  # noqa: E741


def test_classes_become_instances_background_and_the_unknown():
    """The classes of a sparse annotation: unlabelled, background, axon, artefact, edge."""
    labels = np.array([[[0, 1, 2], [3, 4, 2]]], np.uint8)
    roles = assign_roles(labels, ignore=(0, 3, 4), background=(1,))
    assert roles.dtype == np.uint64
    assert roles.tolist() == [[[I, 0, 2], [I, I, 2]]]
    found = is_instance(labels, ignore=(0, 3, 4), background=(1,))
    assert found.tolist() == [[[False, False, True], [False, False, True]]]
    assert labels.tolist() == [[[0, 1, 2], [3, 4, 2]]]


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u4", "u8", "i1", "<i2", "i8"])
def test_without_roles_values_stay(dtype):
    labels = np.arange(60, dtype=dtype).reshape(3, 4, 5)[:, ::-2]
    roles = assign_roles(labels)
    assert roles.tolist() == labels.tolist()
    assert roles is not labels
    roles[:] = 9
    assert labels.max() < 60
    assert labels[0, 0, 0] == 15


def test_the_largest_value_is_unknown_in_every_case():
    labels = np.array([0, 5, 2**64 - 1, 2**64 - 2], np.uint64)
    assert assign_roles(labels).tolist() == [0, 5, I, 2**64 - 2]
    assert assign_roles(labels, ignore=(I,), background=(5,)).tolist() == [0, 0, I, 2**64 - 2]
    assert is_instance(labels).tolist() == [False, True, False, True]


def test_negative_values_need_a_role():
    labels = np.array([-1, 0, 3, -100], np.int16)
    assert assign_roles(labels, ignore=(-1,), background=(-100,)).tolist() == [I, 0, 3, 0]
    with pytest.raises(DataError, match="a label is negative: -100"):
        assign_roles(labels, ignore=(-1,))
    # So that a quick look does not take them for nothing: reading them names them.
    assert is_instance(labels, ignore=(-1,)).tolist() == [False, False, True, True]
    wide = np.array([-1, 2**40], np.int64)
    assert assign_roles(wide, ignore=(-1,)).tolist() == [I, 2**40]


def test_boolean_labels():
    labels = np.array([True, False])
    assert assign_roles(labels).tolist() == [1, 0]
    assert assign_roles(labels, ignore=(0,)).tolist() == [1, I]
    assert assign_roles(labels, background=(1,)).tolist() == [0, 0]
    assert is_instance(labels).tolist() == [True, False]


def test_zero_may_be_ignored_and_background_may_be_repeated():
    assert assign_roles(np.zeros((0, 2, 2), np.uint8), ignore=(0,)).shape == (0, 2, 2)
    assert assign_roles(np.array([0, 1, 1]), ignore=(0, 0), background=(1, 1)).tolist() == [I, 0, 0]


@pytest.mark.parametrize(
    ("dtype", "roles", "error", "message"),
    [
        ("u1", {"ignore": (0, 2), "background": (2,)}, InputError, r"\[2\].*at once"),
        ("u1", {"ignore": (256,)}, InputError, r"labels of uint8 have no values \[256\]"),
        ("u1", {"background": (-1,)}, InputError, r"uint8 have no values \[-1\]"),
        ("i1", {"ignore": (128,)}, InputError, r"int8 have no values \[128\]"),
        ("?", {"ignore": (2,)}, InputError, r"bool have no values \[2\]"),
        ("u8", {"background": (I,)}, InputError, "means unknown"),
        ("f4", {}, DtypeError, "labels must be integers, got float32"),
    ],
)
def test_roles_that_cannot_be_are_refused(dtype, roles, error, message):
    with pytest.raises(error, match=message):
        check_roles(np.dtype(dtype), **roles)
    with pytest.raises(error, match=message):
        assign_roles(np.zeros(3, dtype), **roles)


def test_pieces_of_a_plane_are_named_by_their_first_pixel() -> None:
    plane = np.array([[7, 7, 0, 7], [0, 9, 7, 7], [IGNORE, 9, 0, 7]], np.uint64)
    before = plane.copy()
    expected = np.array([[101, 101, 0, 104], [0, 106, 104, 104], [IGNORE, 106, 0, 104]], np.uint64)
    np.testing.assert_array_equal(number_pieces(plane, first=100), expected)
    np.testing.assert_array_equal(plane, before)
    for value in (0, IGNORE):
        same = np.full((2, 3), value, np.uint64)
        np.testing.assert_array_equal(number_pieces(same, first=5), same)
    for shape in ((1, 1), (1, 2)):
        large = np.full(shape, 2**64 - 2, np.uint64)
        np.testing.assert_array_equal(number_pieces(large, first=5), np.full(shape, 6))
