"""The centre line of one component of a block, by the tracer that suits it.

One voxel is a node. An ordinary component gets own paths, whose cost grows with its voxels. One so
thick that it may be a soma goes to kimimaro, which fills its holes and roots it there; with
`tracer: kimimaro` every component of more than a crumb does. Of those, a tangled one, of 1,024 tips
or more, or as many patches on faces, gets own paths again: the cost of kimimaro grows with tips
times the box. (Not of fewer: an object that is tangled as a whole and ordinary in blocks would
change its length.) A limited one, which fills too much of the block, gets the ways from its root to
its patches by one search.

Own paths follow the rule of kimimaro (price of a voxel, reach of a node inside the object, targets
furthest from the root first), with three differences: the price is paid by length, so that of many
ways of as few voxels the straight one is taken; what is cut is rooted where it is cut, not at its
far end; and a soma is the root but no star runs through it.

Source: TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951, as implemented in kimimaro.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_body import Body
from pipeline.arrays.skeleton_block_kernels import draw_paths, spread, ways_from
from pipeline.arrays.skeleton_block_runs import Component
from pipeline.arrays.skeleton_join_graph import unite
from pipeline.arrays.skeleton_settings import SkeletonSettings, VoxelSize, const_nm

CRUMB_VOXELS = 64
MOST_TIPS = 1024

Kind = Literal["ordinary", "tangled", "limited"]


@dataclass(frozen=True, eq=False)
class Trace:
    """A piece of skeleton on voxels of the block.

    Attributes:
        nodes: (N, 3) int64, voxels of the block.
        edges: (E, 2) int64, indices into `nodes`.
        radii_nm: (N,) float64.
    """

    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    radii_nm: NDArray[np.float64]


def trace_component(
    component: Component,
    body: Body,
    targets: NDArray[np.int64],
    *,
    limited: bool,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
) -> tuple[Trace, Kind]:
    """The skeleton of a component of two voxels or more, through all its patches on faces.

    Args:
        component, body: what to trace.
        targets: (T, 3) int64, the central voxels of its patches.
        limited: draw the ways to the patches alone.
        voxel_size_nm: z, y, x.
        settings: of the method.

    Returns:
        A tree, and which tracer drew it.
    """
    if limited:
        return _limited(body, body.rows(targets), settings), "limited"
    if len(targets) == 1:
        targets = _with_far_end(body, targets, voxel_size_nm)
    kind: Kind = "ordinary"
    if _for_kimimaro(body, voxel_size_nm, settings):
        if len(targets) < MOST_TIPS:
            trace = _kimimaro(component, body, targets, voxel_size_nm, settings)
            if trace is not None and len(trace.nodes):
                return _reach_targets(trace, targets, voxel_size_nm), "ordinary"
            kind = "tangled" if trace is None else "ordinary"
        else:
            kind = "tangled"
    return _own_paths(body, body.rows(targets), voxel_size_nm, settings), kind


def _for_kimimaro(body: Body, voxel_size_nm: VoxelSize, settings: SkeletonSettings) -> bool:
    if len(body.voxels) <= CRUMB_VOXELS:
        return False
    thick = body.radius_nm.max() > settings.soma_detection(voxel_size_nm)
    return bool(thick or settings.tracer == "kimimaro")


def _with_far_end(
    body: Body, targets: NDArray[np.int64], voxel_size_nm: VoxelSize
) -> NDArray[np.int64]:
    """The one patch of a component, and its voxel furthest from it.

    What is cut off at one patch is the end of a neurite. A short one lies within reach of the way
    to the patch and would be drawn no further; in one piece with the rest it is an end.
    """
    voxels = body.voxels
    squares = (((voxels - targets[0]) * np.asarray(voxel_size_nm)) ** 2).sum(axis=1)
    far = voxels[int(np.argmax(squares))]
    return targets if (far == targets[0]).all() else np.stack([targets[0], far])


def single_node(voxel: NDArray[np.int64], voxel_size_nm: VoxelSize) -> Trace:
    """The skeleton of a component of one voxel."""
    return Trace(voxel[None], np.zeros((0, 2), np.int64), np.array([min(voxel_size_nm)]))


def _kimimaro(
    component: Component,
    body: Body,
    targets: NDArray[np.int64],
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
) -> Trace | None:
    """None if it would take more paths than it is good for; nothing of a bare soma."""
    import kimimaro.trace  # takes half a second, and most stages do without

    # Its arrays are x, y, z in Fortran order: transposed ones of ours.
    inside, distance = np.zeros(component.box, np.bool_), np.zeros(component.box, np.float32)
    at = tuple((body.voxels - component.low).T)
    inside[at], distance[at] = True, body.radius_nm
    found = kimimaro.trace.trace(
        inside.T,
        distance.T,
        scale=settings.scale,
        const=const_nm(settings, voxel_size_nm),
        anisotropy=np.array(voxel_size_nm[::-1], np.float32),
        pdrf_scale=settings.centring_weight,
        pdrf_exponent=settings.centring_exponent,
        soma_detection_threshold=settings.soma_detection(voxel_size_nm),
        soma_acceptance_threshold=settings.soma_acceptance(voxel_size_nm),
        soma_invalidation_scale=settings.soma_scale,
        soma_invalidation_const=settings.soma_const_nm,
        manual_targets_before=[tuple(t) for t in (targets - component.low)[:, ::-1].tolist()],
        max_paths=len(targets) + MOST_TIPS,
    )
    nodes = np.rint(found.vertices[:, ::-1]).astype(np.int64).reshape(-1, 3)
    edges = found.edges.astype(np.int64).reshape(-1, 2)
    if (np.bincount(edges.ravel()) == 1).sum() >= MOST_TIPS:
        return None
    edges = _spanning(nodes, edges, voxel_size_nm)
    return Trace(nodes + component.low, edges, found.radii.astype(np.float64))


def _spanning(
    nodes: NDArray[np.int64], edges: NDArray[np.int64], voxel_size_nm: VoxelSize
) -> NDArray[np.int64]:
    """The shortest edges that hold the nodes together, in their order.

    With a soma, kimimaro ties every path to its centre, those as well that have met an earlier one.
    """
    if len(edges) < len(nodes):
        return edges
    ends = nodes[edges] * np.asarray(voxel_size_nm)
    length = np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1))
    order = np.argsort(length, kind="stable")
    return edges[np.sort(order[unite(np.arange(len(nodes)), edges[order])])]


def _reach_targets(trace: Trace, targets: NDArray[np.int64], voxel_size_nm: VoxelSize) -> Trace:
    """Tie each patch centre that is no node (a path ends at a soma) to the nearest node."""
    if not len(targets):
        return trace
    squares = ((trace.nodes[None] - targets[:, None]) * voxel_size_nm) ** 2
    distance = np.sqrt(squares.sum(axis=2))
    nearest = distance.argmin(axis=1)
    gap = distance[np.arange(len(targets)), nearest]
    missed = np.flatnonzero(gap > 0)
    new = len(trace.nodes) + np.arange(len(missed))
    # The distance to the surface falls by no more than the way that one goes.
    least = np.maximum(trace.radii_nm[nearest[missed]] - gap[missed], min(voxel_size_nm))
    return Trace(
        np.concatenate([trace.nodes, targets[missed]]),
        np.concatenate([trace.edges, np.stack([nearest[missed], new], axis=1)]),
        np.concatenate([trace.radii_nm, least]),
    )


def _prices(
    body: Body, away: NDArray[np.float64], settings: SkeletonSettings
) -> NDArray[np.float64]:
    """The price of entering each voxel; the way from the root breaks ties in open spaces."""
    widest = float(body.radius_nm.max()) ** 1.01
    price = np.maximum(1.0 - body.radius_nm / widest, 0.0) ** settings.centring_exponent
    furthest = away.max()
    fall = away / furthest if furthest > 0 else away
    priced: NDArray[np.float64] = price * settings.centring_weight + fall
    return priced


def _own_paths(
    body: Body, targets: NDArray[np.int64], voxel_size_nm: VoxelSize, settings: SkeletonSettings
) -> Trace:
    around = (body.places, body.voxel_at, body.offsets)
    reach = settings.scale * body.radius_nm + const_nm(settings, voxel_size_nm)
    widest = int(np.argmax(body.radius_nm))
    if body.radius_nm[widest] > settings.soma_acceptance(voxel_size_nm):
        root = widest
        reach[root] = settings.soma_scale * body.radius_nm[root] + settings.soma_const_nm
    elif len(targets):
        # Where an object is cut there is no end of it: one that is drawn there would be a spur.
        root = int(targets[0])
    else:
        root = int(np.argmax(spread(np.zeros(1, np.int64), *around, body.lengths_nm)[0]))
    away = spread(np.array([root]), *around, body.lengths_nm)[0]
    drawn, onward = draw_paths(
        root,
        targets,
        np.argsort(-away, kind="stable"),
        _prices(body, away, settings),
        reach,
        *around,
        body.lengths_nm,
        body.voxels * np.asarray(voxel_size_nm),
    )
    return _as_trace(body, drawn, onward)


def _limited(body: Body, targets: NDArray[np.int64], settings: SkeletonSettings) -> Trace:
    """The cheapest ways from the thickest voxel to the patches; without any, to the far end."""
    around = (body.places, body.voxel_at, body.offsets)
    root = int(np.argmax(body.radius_nm))
    away = spread(np.array([root]), *around, body.lengths_nm)[0]
    onward = ways_from(root, _prices(body, away, settings), *around)
    drawn = np.zeros(len(onward), bool)
    drawn[root] = True
    for target in targets.tolist() or [int(np.argmax(away))]:
        voxel = target
        while not drawn[voxel]:
            drawn[voxel] = True
            voxel = int(onward[voxel])
    return _as_trace(body, drawn, onward)


def _as_trace(body: Body, drawn: NDArray[np.bool_], onward: NDArray[np.int64]) -> Trace:
    rows = np.flatnonzero(drawn)
    node = np.cumsum(drawn) - 1
    child = rows[onward[rows] >= 0]
    edges = np.stack([node[child], node[onward[child]]], axis=1)
    return Trace(body.voxels[rows], edges, body.radius_nm[rows])
