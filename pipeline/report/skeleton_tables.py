"""What tracing and joining did to make skeletons, as tables of words and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.report.facts import SkeletonFacts


@dataclass(frozen=True)
class WorkRow:
    """One thing that was done: how often, and to how much cable; None where it has no meaning."""

    what: str
    count: float | None = None
    cable_nm: float | None = None


@dataclass(frozen=True)
class WorkTable:
    """What one step did."""

    title: str
    rows: tuple[WorkRow, ...]

    @property
    def has_cable(self) -> bool:
        """Whether any row tells of cable."""
        return any(row.cable_nm is not None for row in self.rows)


_TRACED = {
    "components": "connected components, block by block",
    "skipped": "left out for their size",
    "single_nodes": "so small that one node stands for them",
    "tangled": "of too many tips for kimimaro, drawn by own paths",
    "limited": "limited to the ways to the faces of their block",
    "limited_voxels": "voxels of those limited",
    "loops": "rings of the object closed",
}
# Each with the name of the cable that belongs to the count.
_JOINED = {
    "welded": ("seams joined: nodes that blocks share", ""),
    "gaps_joined": ("gaps joined", ""),
    "somata": ("somata drawn together into one node", ""),
    "loops_opened": ("loops opened, made by the faces of blocks", ""),
    "loops_kept": ("loops kept, those of the object", ""),
    "doubled": ("strands doubled or bent by the faces, removed", "doubled_nm"),
    "ticks_removed": ("ticks removed", "ticks_nm"),
    "dust_removed": ("dust removed", "dust_nm"),
}
_FUSED = {
    "fragments": "fragments",
    "joints": "contacts tied",
    "without_skeleton": "contacts of fragments without a skeleton, not tied",
    "rings": "loops kept",
    "ticks_removed": "ticks removed",
    "dust_removed": "dust removed",
}


def work_tables(facts: SkeletonFacts) -> list[WorkTable]:
    """A table for each step that was taken, in order."""
    traced = [WorkRow(what, facts.traced.get(name, 0)) for name, what in _TRACED.items()]
    end = WorkRow("cable after smoothing", cable_nm=float(np.sum(facts.cable_nm)))
    joined = list(_joined(facts.joined))
    tables = [WorkTable("Tracing", tuple(traced))]
    if facts.fused is None:
        return [*tables, WorkTable("Joining across blocks", (*joined, end))]
    fused = (*_fused(facts.fused), end)
    return [
        *tables,
        WorkTable("Joining fragments across blocks", tuple(joined)),
        WorkTable("Fusing fragments by the lookup", fused),
    ]


def _joined(did: Mapping[str, float]) -> Iterator[WorkRow]:
    yield WorkRow("cable of the pieces", cable_nm=did.get("cable_in_nm", 0.0))
    for name, (what, cable) in _JOINED.items():
        yield WorkRow(what, did.get(name), did.get(cable, 0.0) if cable else None)
    yield WorkRow("cable joined", cable_nm=did.get("cable_out_nm", 0.0))


def _fused(did: Mapping[str, float]) -> Iterator[WorkRow]:
    yield WorkRow("cable of the fragments", cable_nm=did.get("cable_in_nm", 0.0))
    for name, what in _FUSED.items():
        yield WorkRow(what, did.get(name, 0))
    yield WorkRow("longest tie", cable_nm=did.get("longest_joint_nm", 0.0))
    yield WorkRow("cable fused", cable_nm=did.get("cable_out_nm", 0.0))
