"""The one representation of a tracing or skeleton, shared by readers, metrics and writers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A forest of nodes joined by straight edges.

    Attributes:
        name: what to call it: a file's stem or a segment's id.
        nodes: (N, 3) float64, z, y, x in voxels of the working resolution. Voxel i spans
            [i, i + 1): `floor` gives the voxel that holds a node, i + 0.5 is its centre.
        edges: (E, 2) int64, indices into `nodes`; in an SWC (child, parent).
        radii_nm: (N,) float64, nanometres; 0 or NaN where unknown.
        types: (N,) int64, the SWC structure type; 0 where unknown.
    """

    name: str
    nodes: NDArray[np.float64]
    edges: NDArray[np.int64]
    radii_nm: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    types: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        nodes = np.asarray(self.nodes, np.float64).reshape(-1, 3)
        edges = np.asarray(self.edges, np.int64).reshape(-1, 2)
        if len(edges) and (edges.min() < 0 or edges.max() >= len(nodes)):
            raise ShapeError(f"skeleton {self.name}: an edge names a node beyond {len(nodes)}")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "edges", edges)
        for name, dtype in (("radii_nm", np.float64), ("types", np.int64)):
            values = np.asarray(getattr(self, name), dtype).reshape(-1)
            if not len(values):
                values = np.zeros(len(nodes), dtype)
            if len(values) != len(nodes):
                raise ShapeError(f"skeleton {self.name}: {len(values)} {name}, {len(nodes)} nodes")
            object.__setattr__(self, name, values)

    def edge_lengths_nm(self, voxel_size_nm: tuple[float, float, float]) -> NDArray[np.float64]:
        """(E,) length of each edge in nanometres; `voxel_size_nm` is z, y, x."""
        ends = self.nodes[self.edges] * np.asarray(voxel_size_nm, np.float64)
        return np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1))
