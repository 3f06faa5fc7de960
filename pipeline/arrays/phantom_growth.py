"""Synthetic neurons: branching neurites with the shapes of real ones, that touch but never mix.

Each neurite is a persistent random walk in nanometres. Before a step is taken, its line of voxels
and a shrunken tube around it are checked against the territory of everything grown before; a step
that enters foreign territory is turned away, or the neurite ends. So no two neurons share a line
voxel, while their surfaces may touch. Contacts are made on purpose: a walk is steered to a
neighbour's neurite, crosses it or runs beside it, and parts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.phantom_spec import GrowthSpec
from pipeline.arrays.phantom_territory import CLEAR_OF_PARENT, TRIES_PER_STEP, Bud, Territory
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.geometry import Triple, check_indexable, triple

Vector = NDArray[np.float64]

_TRIES_PER_NEURON = 60
_FEWEST_NODES = 6  # a shorter branch is a stub
_SHORTEST_TRUNK = 30  # nodes, in volumes that have room for it
_TOUCHING = 0.9  # distance of two axes in contact, in sums of their radii


def grow(
    shape: Triple,
    voxel_size_nm: tuple[float, float, float],
    neurons: int,
    seed: int,
    spec: GrowthSpec,
) -> list[Skeleton]:
    """Trees "neuron_001", "neuron_002", ... inside a volume; the same for the same arguments.

    Lines of voxels along the edges of two trees never share a voxel, so tubes drawn around them
    (`rasterise_tubes`) keep each tree in one 6-connected piece. Edges are (child, parent), node 0
    is the root, steps are 2.5 of the smallest voxel size. SWC types: 1 soma, 2 neurite.

    Raises:
        InputError: the arguments make no sense, or there is no room for so many neurons.
    """
    check_indexable(triple(shape, "shape"))
    if neurons < 0 or min(shape) < 16:
        raise InputError(
            f"a phantom needs at least 16 voxels along each axis and a number of neurons, "
            f"got {shape} and {neurons}"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    territory = Territory(shape, voxel_size_nm)
    grown: list[_Tree] = []
    # Somata first: they need room.
    somata = np.sort(rng.random(neurons) < spec.soma_share)[::-1]
    for number in range(1, neurons + 1):
        grown.append(_grow_neuron(number, bool(somata[number - 1]), grown, territory, spec, rng))
    return [tree.skeleton(np.asarray(voxel_size_nm)) for tree in grown]


@dataclass
class _Tree:
    """A neuron under way; positions in nm."""

    number: int
    nodes: list[Vector] = field(default_factory=list)
    radii: list[Vector] = field(default_factory=list)
    parents: list[NDArray[np.int64]] = field(default_factory=list)
    types: list[NDArray[np.int64]] = field(default_factory=list)
    size: int = 0

    def add(self, nodes: Vector, radii: Vector, parent: int, soma_nm: float) -> int:
        """Append a chain that hangs on node `parent` (-1: the root); returns its first index."""
        first = self.size
        along = np.arange(first - 1, first + len(nodes) - 1)
        along[0] = parent
        self.nodes.append(nodes)
        self.radii.append(radii)
        self.parents.append(along)
        self.types.append(np.where(radii > soma_nm, 1, 2))
        self.size += len(nodes)
        return first

    def skeleton(self, voxel_size_nm: Vector) -> Skeleton:
        parents = np.concatenate(self.parents)
        child = np.flatnonzero(parents >= 0)
        return Skeleton(
            f"neuron_{self.number:03d}",
            np.concatenate(self.nodes) / voxel_size_nm,
            np.stack([child, parents[child]], axis=1),
            np.concatenate(self.radii),
            np.concatenate(self.types),
        )


def _grow_neuron(
    number: int,
    soma: bool,
    others: list[_Tree],
    territory: Territory,
    spec: GrowthSpec,
    rng: np.random.Generator,
) -> _Tree:
    # A trunk goes some way through the volume, or it is not worth a name.
    trunk = max(_FEWEST_NODES, int(0.5 * float(territory.extent_nm.min()) / territory.step_nm))
    trunk = min(trunk, _SHORTEST_TRUNK)
    for _ in range(_TRIES_PER_NEURON):
        tree = _Tree(number)
        buds = _roots(soma, territory, spec, rng)
        left = spec.cable_nm
        contacts = int(rng.poisson(spec.contacts))
        while buds and left > 0:
            bud = buds.popleft()
            chain = _grow_chain(bud, number, others, contacts > 0, territory, spec, rng)
            contacts -= 1
            if len(chain[0]) < (_FEWEST_NODES if tree.size else trunk):
                continue
            buds.extend(_hang(chain, bud, tree, territory, spec, rng))
            left -= len(chain[0]) * territory.step_nm
        if tree.size:
            return tree
    raise InputError(
        f"no room for neuron {number}: ask for fewer neurons, thinner neurites or a larger volume"
    )


def _hang(
    chain: tuple[Vector, Vector],
    bud: Bud,
    tree: _Tree,
    territory: Territory,
    spec: GrowthSpec,
    rng: np.random.Generator,
) -> list[Bud]:
    """Add a grown chain to its tree and its territory; returns the buds along it."""
    nodes, radii = chain
    if bud.parent < 0 and tree.size:
        # A further neurite of the same root: it starts at node 0 and does not repeat it.
        first, attached = tree.add(nodes[1:], radii[1:], 0, 0.6 * bud.soma_nm), nodes[1:]
    elif bud.parent < 0:
        first, attached = tree.add(nodes, radii, -1, 0.6 * bud.soma_nm or np.inf), nodes
    else:
        first, attached = tree.add(nodes[1:], radii[1:], bud.parent, np.inf), nodes[1:]
    territory.claim(nodes, radii, tree.number)
    return _buds_along(first, attached, radii[-len(attached) :], bud.soma_nm, spec, rng)


def _roots(
    soma: bool, territory: Territory, spec: GrowthSpec, rng: np.random.Generator
) -> deque[Bud]:
    """First neurites: several from a soma inside, else one that enters through a face."""
    extent, step = territory.extent_nm, territory.step_nm
    radius = rng.uniform(*spec.radius_nm)
    body = rng.uniform(*spec.soma_radius_nm) if soma else 0.0
    # A soma fits even into a small volume.
    body = min(body, 0.2 * float(extent.min()))
    for _ in range(_TRIES_PER_NEURON):
        start = rng.uniform(0.15, 0.85, 3) * extent
        if not soma:
            faces = np.repeat(1.0 / extent, 2)
            face = int(rng.choice(6, p=faces / faces.sum()))
            start[face // 2] = 0.4 * step if face % 2 else extent[face // 2] - 0.4 * step
        if territory.is_free(start, max(body, radius)):
            break
    else:
        return deque()
    count = int(rng.integers(3, 6)) if soma else 1
    buds: deque[Bud] = deque()
    for _ in range(count):
        direction = _unit(rng.standard_normal(3))
        if not soma:
            # Inward: toward a random point of the middle.
            direction = _unit(rng.uniform(0.3, 0.7, 3) * extent - start)
        buds.append(Bud(-1, start, direction, radius, spec.cable_nm, body))
    return buds


def _buds_along(
    first: int,
    nodes: Vector,
    radii: Vector,
    soma_nm: float,
    spec: GrowthSpec,
    rng: np.random.Generator,
) -> list[Bud]:
    """Branch points at random along a chain whose nodes are `first`, `first` + 1, ..."""
    step = float(_length(nodes[1] - nodes[0]))
    buds = []
    for i in np.flatnonzero(rng.random(len(nodes)) < step / spec.branch_spacing_nm):
        if not 2 <= i < len(nodes) - 2 or i * step < 2 * soma_nm:
            continue
        along = _unit(nodes[i + 1] - nodes[i - 1])
        angle = np.deg2rad(rng.uniform(*spec.branch_angle_deg))
        away = _unit(np.cross(along, rng.standard_normal(3)))
        direction = np.cos(angle) * along + np.sin(angle) * away
        length = float(rng.gamma(2.0, spec.branch_length_nm / 2.0))
        radius = max(0.8 * float(radii[max(i - 2, 0) : i + 3].min()), spec.thinnest_nm)
        buds.append(Bud(first + int(i), nodes[i], direction, radius, length))
    return buds


def _grow_chain(
    bud: Bud,
    number: int,
    others: list[_Tree],
    contact: bool,
    territory: Territory,
    spec: GrowthSpec,
    rng: np.random.Generator,
) -> tuple[Vector, Vector]:
    """Nodes and radii of one neurite, the bud's own node first."""
    step = territory.step_nm
    # Nothing goes on for ever: a walk that wanders inside ends after a few crossings.
    longest = 3.0 * float(_length(territory.extent_nm))
    steps = int(min(bud.length_nm, longest) / step)
    turns = rng.standard_normal((steps, TRIES_PER_STEP, 3))
    # Half of a turn is carried into the next step, so each adds up to twice its size.
    turns *= 0.5 * np.sqrt(step / spec.persistence_nm)
    radii = _radii(bud, steps + 1, step, spec, rng)
    way = np.zeros((0, 3))
    if contact and others:
        way = _way_to_contact(bud, others, territory, rng)
    nodes = territory.walk(bud, radii, turns, way, number)
    return np.concatenate([bud.start[None], nodes]), radii[: len(nodes) + 1]


def _radii(
    bud: Bud, count: int, step_nm: float, spec: GrowthSpec, rng: np.random.Generator
) -> Vector:
    """Radius at each node of a neurite: tapering, with swellings, wide inside its soma."""
    along = np.arange(count) * step_nm
    radii = np.maximum(bud.radius_nm * np.exp(-along / spec.taper_nm), spec.thinnest_nm)
    swollen = rng.random(count) < step_nm / spec.varicosity_spacing_nm
    swollen[:CLEAR_OF_PARENT] = False
    radii[swollen] *= rng.uniform(*spec.varicosity_scale, int(swollen.sum()))
    return np.maximum(radii, np.sqrt(np.maximum(bud.soma_nm**2 - along**2, 0.0)))


def _way_to_contact(
    bud: Bud, others: list[_Tree], territory: Territory, rng: np.random.Generator
) -> Vector:
    """Points that lead along the surface of another neuron ahead: (M, 3) nm, maybe none."""
    step = territory.step_nm
    tree = others[int(rng.integers(len(others)))]
    chain = int(rng.integers(len(tree.nodes)))
    nodes, radii = tree.nodes[chain], tree.radii[chain]
    to = nodes - bud.start
    gap = _length(to)
    ahead = _dot(to, bud.direction) > 0.5 * gap
    margin = np.minimum(nodes, territory.extent_nm - nodes).min(axis=1)
    found = np.flatnonzero(ahead & (margin > 6 * step) & (gap > 8 * step) & (gap < 100 * step))
    found = found[(found >= 2) & (found < len(nodes) - 2)]
    if not len(found):
        return np.zeros((0, 3))
    at = int(rng.choice(found))
    tangent = _unit(nodes[at + 1] - nodes[at - 1])
    normal = _unit(_across(-to[at], tangent) + 1e-6 * rng.standard_normal(3))
    forward = 1 if float(_dot(to[at], tangent)) > 0 else -1
    if rng.random() < 0.5:
        return _way_beside(nodes, radii, at, forward, normal, bud.radius_nm, territory)
    middle = nodes[at] + normal * _distance(radii[at], bud.radius_nm, normal, territory.spacing)
    across = _unit(np.cross(tangent, normal)) * float(rng.choice([-1.0, 1.0]))
    over = _unit(across + rng.uniform(0.0, 1.0) * forward * tangent)
    return np.stack([middle - over * step, middle, middle + over * step])


def _way_beside(
    nodes: Vector,
    radii: Vector,
    at: int,
    forward: int,
    normal: Vector,
    radius_nm: float,
    territory: Territory,
) -> Vector:
    """Along the neighbour for some nodes on the side of `normal`, then off."""
    way = []
    for i in range(at, at + 7 * forward, forward):
        if not 1 <= i < len(nodes) - 1:
            break
        tangent = _unit(nodes[i + 1] - nodes[i - 1])
        normal = _unit(_across(normal, tangent))
        apart = _distance(float(radii[i]), radius_nm, normal, territory.spacing)
        way.append(nodes[i] + normal * apart)
    away = _unit(forward * tangent + 1.2 * normal)
    way.append(way[-1] + away * 2.0 * territory.step_nm)
    return np.stack(way)


def _distance(radius_nm: float, own_nm: float, normal: Vector, spacing: Vector) -> float:
    """How far apart two axes run in contact: surfaces meet, lines of voxels stay apart."""
    voxel = float(_length(normal * spacing))
    return max(_TOUCHING * (float(radius_nm) + own_nm), 1.4 * voxel)


def _across(vector: Vector, tangent: Vector) -> Vector:
    return vector - _dot(vector, tangent) * tangent


def _dot(a: Vector, b: Vector) -> Vector:
    """Products along the last axis, added in a fixed order: BLAS differs between machines."""
    product = a * b
    return np.asarray(product[..., 0] + product[..., 1] + product[..., 2])


def _length(vector: Vector) -> Vector:
    return np.sqrt(_dot(vector, vector))


def _unit(vector: Vector) -> Vector:
    return vector / _length(vector)
