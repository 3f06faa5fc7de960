"""Whether tracings and a volume fit together: nodes outside it, nodes off its bright voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import inside_roi, node_span
from pipeline.errors import InputError
from pipeline.geometry import Roi, Triple, triple
from pipeline.storage.swc_frame import SwcOptions, to_columns, to_voxels

# Few nodes are on foreground if it is less than this share of them ...
_FEW = 0.5
# ... and another orientation is better if it has twice as many, and so much more of all nodes.
_GAIN = 0.2
_SAMPLED_NODES = 4096
# Forty-seven other orientations are tried on fewer nodes: each node is a look into the volume.
_TRIED_NODES = 1024
# Tracings in the right unit are at least this part of the volume's longest side ...
_FILLED = 1 / 20
# ... and those that are shorter than this part may have been read in the wrong one ...
_TINY = 1 / 200
# ... leaving this share of the nodes off either end of an axis: some may lie apart.
_APART = 0.05

IsForeground = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""For voxels (M, 3) int64, z, y, x, all inside the volume: (M,) bool."""


def check_placement(
    skeletons: Sequence[Skeleton],
    volume_shape: Triple,
    options: SwcOptions | None = None,
    volume_offset: Triple = (0, 0, 0),
) -> NDArray[np.int64]:
    """How many nodes of each skeleton lie outside the volume.

    Args:
        skeletons: as read.
        volume_shape: z, y, x.
        options: those the skeletons were read with (of precomputed ones `options_for`); with them
            an error names the unit, the order of the axes or the offset that would fit.
        volume_offset: the first voxel of the volume in coordinates of its format
            (`source_offset`), z, y, x; named where tracings fit that are moved by it.

    Raises:
        InputError: skeletons that are more than ten times as long as the volume, or wholly outside.
    """
    volume = Roi((0, 0, 0), volume_shape)
    spans = [node_span(skeleton, volume) for skeleton in skeletons]
    outside = np.array([span.nodes - span.inside for span in spans], np.int64)
    filled = [span for span in spans if span.nodes]
    if not filled:
        return outside
    low = np.min([span.low for span in filled], axis=0)
    high = np.max([span.high for span in filled], axis=0)
    seen = (
        f"nodes span {low.tolist()} to {high.tolist()} voxels (z, y, x), the volume {volume_shape}"
    )

    def advice() -> str:
        if options is None:
            return ""
        fits = _settings_that_fit(skeletons, volume_shape, options, volume_offset)
        return f". {fits}" if fits else ""

    if (high - low).max() > 10 * max(volume_shape):
        raise InputError(
            f"tracings are more than ten times larger than the volume: {seen}. Are their "
            f"coordinates in nm or um? Set the unit and the voxel size, or crop the tracings first"
            f"{advice()}"
        )
    if not any(span.inside for span in spans):
        raise InputError(
            f"no node lies in the volume: {seen}. Check the unit, the voxel size, the order of the "
            f"axes, and an offset between tracing and volume{advice()}"
        )
    return outside


def _settings_that_fit(
    skeletons: Sequence[Skeleton],
    volume_shape: Triple,
    used: SwcOptions,
    volume_offset: Triple,
) -> str | None:
    """A sentence with the fewest settings that bring at least half of the nodes inside, if any do.

    Tried are 48 orientations with the offset as it is, without, and less that of the volume; then a
    shift, for tracings no larger than the volume, and the other units. Any tracing fits if it is
    shrunk to a point, so a unit counts only if enough of the volume is filled.
    """
    nodes = _sampled(skeletons, _TRIED_NODES)
    moved = tuple(u - v for u, v in zip(used.offset_vox, volume_offset, strict=True))
    offsets = dict.fromkeys((used.offset_vox, moved, (0.0, 0.0, 0.0)))
    candidates = [
        replace(used, axes=axes, flip=flip, offset_vox=offset, volume_shape=volume_shape)
        for (axes, flip), offset in product(_orientations(used), offsets)
    ]
    found = _best_fit(nodes, candidates, used)
    if found:
        return found
    units = [unit for unit in ("voxel", "um", "nm") if unit != used.unit]
    others = [replace(tried, unit=unit) for tried, unit in product(candidates, units)]
    sentences = [_best_fit(nodes, others, used, least_span=max(volume_shape) * _FILLED)]
    low, high = np.floor(nodes.min(axis=0)), np.floor(nodes.max(axis=0))
    if (high - low < volume_shape).all():
        at = [_plain(o - v) for o, v in zip(used.offset_vox, low, strict=True)]
        sentences.append(f"The tracings would fit with an offset of about {at} voxels (z, y, x)")
    return ". ".join(filter(None, sentences)) or None


def _best_fit(
    nodes: NDArray[np.float64],
    candidates: list[SwcOptions],
    used: SwcOptions,
    least_span: float = 0.0,
) -> str | None:
    """The options with most nodes inside, of equals those that change least; None below half."""
    columns = to_columns(nodes, used)
    best: tuple[int, int, list[str]] = (0, 0, [])
    for tried in candidates:
        turned = to_voxels(columns, tried)
        inside = np.all((turned >= 0) & (turned < triple(tried.volume_shape)), axis=1)
        if not inside.any() or np.ptp(turned[inside], axis=0).max() < least_span:
            continue
        changes = _changes(tried, used)
        best = max(best, (int(inside.sum()), -len(changes), changes), key=lambda found: found[:2])
    if not best[2] or best[0] < _FEW * len(nodes):
        return None
    return f"With {' and '.join(best[2])} {best[0] / len(nodes):.0%} of the nodes would lie inside"


def _changes(tried: SwcOptions, used: SwcOptions) -> list[str]:
    """The settings in which two differ, as a person would write them."""
    found = []
    if tried.unit != used.unit:
        found.append(f"unit {tried.unit}")
    if tried.offset_vox != used.offset_vox:
        found.append(f"offset {[_plain(v) for v in tried.offset_vox]} voxels (z, y, x)")
    if tried.axes != used.axes:
        found.append(f"axes {tried.axes}")
    if set(tried.flip) != set(used.flip):
        found.append(f"flip {', '.join(_ordered(tried.flip)) or 'of no axis'}")
    return found


def _plain(value: float) -> float:
    """A whole number without its point."""
    return int(value) if float(value).is_integer() else float(value)


@dataclass(frozen=True)
class Orientation:
    """Axes and flips of tracings, and how the nodes that were looked at lie with them.

    Attributes:
        axes: order of the coordinate columns.
        flip: axes that run the other way, in the order z, y, x.
        nodes: looked at.
        inside: of them in the volume.
        bright: of them on foreground.
    """

    axes: str
    flip: tuple[str, ...]
    nodes: int
    inside: int
    bright: int

    @property
    def share(self) -> float:
        """Share of all nodes on foreground."""
        return self.bright / self.nodes if self.nodes else 0.0

    @property
    def share_inside(self) -> float:
        """Share of the nodes in the volume on foreground."""
        return self.bright / self.inside if self.inside else 0.0

    def beats(self, other: Orientation) -> bool:
        """Whether it has so much more on foreground that the other is likely wrong.

        Tracings may be larger than the volume: only what lies inside can be on foreground.
        """
        gain = _GAIN * max(self.inside / self.nodes, other.inside / other.nodes)
        return self.share >= max(2 * other.share, other.share + gain) > 0


@dataclass(frozen=True)
class Wording:
    """How a warning calls things.

    Attributes:
        foreground: that nodes should lie on.
        volume: that they should lie in.
        settings: where axes, flip, unit and offset are set.
    """

    foreground: str = "bright voxels"
    volume: str = "image"
    settings: str = "input.swc"


SEGMENTATION = Wording("labelled voxels", "segmentation", "the options of the tracings")
"""For foreground that is any label but 0."""


@dataclass(frozen=True)
class Placement:
    """How tracings lie in a volume.

    Attributes:
        used: as they were read.
        better: the orientation that has most nodes on foreground, if few are now and it has many
            more.
        unit: what `suggest_unit` says.
        wording: what foreground, volume and settings are called.
    """

    used: Orientation
    better: Orientation | None = None
    unit: str | None = None
    wording: Wording = field(default_factory=Wording, compare=False)

    @property
    def warning(self) -> str | None:
        """What to tell the user.

        Nothing where at least half of the nodes are on foreground and the unit seems right.
        """
        used, better, wording = self.used, self.better, self.wording
        if not used.nodes or used.share_inside >= _FEW:
            return self.unit
        found = f"only {used.share_inside:.0%} of the tracings' nodes lie on {wording.foreground}"
        if used.inside < used.nodes:
            astray = f"{used.nodes - used.inside:,} of {used.nodes:,} nodes looked at"
            found += f" of those inside the {wording.volume} ({astray} are outside)"
        if self.unit is not None:
            return f"{found}; {self.unit}"
        if better is None:
            return (
                f"{found}, and no other flip or order of the axes does much better; check the "
                f"unit, the voxel size and the offset of the tracings ({wording.settings})"
            )
        return (
            f"{found}; with {_settings(better, used)} {better.share_inside:.0%} would. Set it in "
            f"{wording.settings} if that is how the tracings run"
        )


def judge_placement(
    skeletons: Sequence[Skeleton],
    is_foreground: IsForeground,
    volume_shape: Triple,
    options: SwcOptions,
    wording: Wording | None = None,
) -> Placement:
    """How many nodes are on foreground, and which other orientation has many more if few are.

    At most 4,096 nodes are looked at, evenly spread; where few of them are on foreground, the 8
    flips of the 6 orders of the axes are tried on at most 1,024.

    Args:
        skeletons: as read.
        is_foreground: see `IsForeground`.
        volume_shape: z, y, x.
        options: those the skeletons were read with (of precomputed ones `options_for`).
        wording: for the warning; None: of an image. `SEGMENTATION` is that of labels.
    """
    wording = wording or Wording()
    nodes = _sampled(skeletons, _SAMPLED_NODES)
    used = _looked_up(nodes, is_foreground, volume_shape, options)
    unit = suggest_unit(skeletons, volume_shape, options, wording)
    if used.share_inside >= _FEW or not len(nodes):
        return Placement(used, None, unit, wording)
    fewer = _sampled(skeletons, _TRIED_NODES)
    best = _best(_tried(fewer, is_foreground, volume_shape, options))
    # Compared on the same nodes.
    now = _looked_up(fewer, is_foreground, volume_shape, options)
    return Placement(used, best if best.beats(now) else None, unit, wording)


def suggest_unit(
    skeletons: Sequence[Skeleton],
    volume_shape: Triple,
    options: SwcOptions,
    wording: Wording | None = None,
) -> str | None:
    """A sentence with the unit that would fit, if tracings seem to be read in one far too large.

    They do if most of their nodes lie in a box shorter than 1/200 of the volume's longest side, and
    with another unit at least half of the nodes lie in the volume and reach over 1/20 of that side.
    At most 1,024 nodes are looked at, and no voxel.

    Args:
        As of `judge_placement`.
    """
    nodes = _sampled(skeletons, _TRIED_NODES)
    longest = max(volume_shape)
    if not len(nodes):
        return None
    low, high = np.quantile(nodes, (_APART, 1 - _APART), axis=0)
    extent = float((high - low).max())
    if extent >= longest * _TINY:
        return None
    fits = _best_fit(
        nodes, _other_units(options, volume_shape), options, least_span=longest * _FILLED
    )
    volume = (wording or Wording()).volume
    return fits and (
        f"most nodes of the tracings lie in a box of {extent:.2g} voxels, and the longest side of "
        f"the {volume} has {longest:,}. {fits}"
    )


def _other_units(used: SwcOptions, volume_shape: Triple) -> list[SwcOptions]:
    """The other units, with every orientation, the offset as it is or none."""
    units = [unit for unit in ("voxel", "um", "nm") if unit != used.unit]
    offsets = dict.fromkeys((used.offset_vox, (0.0, 0.0, 0.0)))
    here = replace(used, volume_shape=volume_shape)
    return [
        replace(here, unit=unit, axes=axes, flip=flip, offset_vox=offset)
        for (axes, flip), offset, unit in product(_orientations(used), offsets, units)
    ]


def _sampled(skeletons: Sequence[Skeleton], most: int) -> NDArray[np.float64]:
    """(N, 3) nodes, evenly spread over all, at most so many."""
    counts = [len(skeleton.nodes) for skeleton in skeletons]
    step = -(-sum(counts) // most) or 1
    begins = accumulate(counts, initial=0)
    # Every so many nodes of all, laid end to end, without laying them.
    parts = [s.nodes[-begin % step :: step] for s, begin in zip(skeletons, begins, strict=False)]
    return np.concatenate([np.zeros((0, 3)), *parts])


def _looked_up(
    nodes: NDArray[np.float64],
    is_foreground: IsForeground,
    volume_shape: Triple,
    options: SwcOptions,
) -> Orientation:
    return _all_looked_up([(nodes, options)], is_foreground, volume_shape)[0]


def _all_looked_up(
    placed: list[tuple[NDArray[np.float64], SwcOptions]],
    is_foreground: IsForeground,
    volume_shape: Triple,
) -> list[Orientation]:
    """How nodes lie under each of several options, in one look into the volume.

    The orientations have many voxels' surroundings in common, which need be read but once.
    """
    volume = Roi((0, 0, 0), volume_shape)
    voxels = [np.floor(nodes).astype(np.int64) for nodes, _ in placed]
    voxels = [found[inside_roi(found, volume)] for found in voxels]
    everything = np.concatenate(voxels)
    foreground = np.zeros(len(everything), np.bool_)
    if len(everything):
        foreground = np.asarray(is_foreground(everything), np.bool_)
    ends = np.cumsum([len(found) for found in voxels])
    return [
        Orientation(o.axes, _ordered(o.flip), len(nodes), len(found), int(np.count_nonzero(part)))
        for (nodes, o), found, part in zip(
            placed, voxels, np.split(foreground, ends[:-1]), strict=True
        )
    ]


def _tried(
    nodes: NDArray[np.float64],
    is_foreground: IsForeground,
    volume_shape: Triple,
    used: SwcOptions,
) -> list[Orientation]:
    """All 48 orientations of nodes that were read with `used`, those that change least first."""
    columns = to_columns(nodes, used)
    tried = [
        replace(used, axes=axes, flip=flip, volume_shape=volume_shape)
        for axes, flip in _orientations(used)
    ]
    placed = [(to_voxels(columns, options), options) for options in tried]
    return _all_looked_up(placed, is_foreground, volume_shape)


def _best(found: list[Orientation]) -> Orientation:
    """Most nodes on foreground; the first of equals."""
    return max(found, key=lambda orientation: orientation.bright)


def _ordered(flip: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(letter for letter in "zyx" if letter in flip)


def _orientations(used: SwcOptions) -> list[tuple[str, tuple[str, ...]]]:
    """All 48, those that change least first: of equals, the first is suggested."""
    orders = ["".join(order) for order in permutations("xyz")]
    flips = [chosen for count in range(4) for chosen in combinations("zyx", count)]
    pairs = [(axes, flip) for axes in orders for flip in flips]
    moved = {axes: sum(a != b for a, b in zip(axes, used.axes, strict=True)) for axes in orders}
    return sorted(pairs, key=lambda pair: moved[pair[0]] + len(set(pair[1]) ^ set(used.flip)))


def _settings(better: Orientation, used: Orientation) -> str:
    """The settings that change, as a configuration writes them."""
    changed = []
    if better.axes != used.axes:
        changed.append(f"axes: {better.axes}")
    if better.flip != used.flip:
        changed.append(f"flip: [{', '.join(better.flip)}]")
    return " and ".join(changed)
