import numpy as np
from scipy import ndimage

from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.threshold import mask_affinities


def test_components_are_those_of_the_mask():
    rng = np.random.default_rng(1)
    mask = rng.random((9, 10, 11)) < 0.35
    shape = mask.shape
    found = extract_fragments(
        mask_affinities(mask), origin=(0, 0, 0), write_shape=shape, volume_shape=shape,
        low=255, high=255,
    )  # fmt: skip
    expected, count = ndimage.label(mask)
    sizes = np.bincount(expected.ravel(), minlength=count + 1)
    kept = np.isin(expected, np.flatnonzero(sizes >= 2)) & mask
    assert ((found.labels > 0) == kept).all()
    pairs = np.unique(np.stack([expected[kept], found.labels[kept]]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected[kept])) == len(found.ids)
