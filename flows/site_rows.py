"""Sites of errors in words: the rows of the report and of the terminal."""

from __future__ import annotations

import numpy as np

from pipeline.arrays.error_sites import KINDS, MERGE_SITE, OMISSION_SITE, Sites
from pipeline.report.facts import SiteFacts, SiteRow
from pipeline.stages.run import Run
from pipeline.storage.site_files import read_sites

SHOWN = 50
# Of an omission with no, one, and two or more labelled ends.
_EXTENTS = ("whole tree", "at an end", "inside")


def site_facts(run: Run, shown: int = SHOWN) -> SiteFacts:
    """The sites of a run that cost most cable, and how many there are of each kind."""
    sites = read_sites(run.path("sites"))
    numbers = np.bincount(sites.kind, minlength=len(KINDS))
    rows = [_row(sites, i) for i in range(min(shown, len(sites)))]
    return SiteFacts(rows, dict(zip(KINDS, numbers.tolist(), strict=True)))


def _row(sites: Sites, i: int) -> SiteRow:
    kind = KINDS[sites.kind[i]]
    if sites.kind[i] == OMISSION_SITE:
        kind = f"{kind}, {_EXTENTS[min(int(sites.labelled_ends[i]), 2)]}"
    a, b = (sites.names[n] for n in (sites.neuron_a[i], sites.neuron_b[i]))
    labels = [int(label) for label in (sites.label_a[i], sites.label_b[i]) if label]
    merged = sites.kind[i] == MERGE_SITE
    z, y, x = (float(v) for v in sites.position_vox[i])
    nm = tuple(float(v) for v in sites.position_nm[i])
    return SiteRow(
        number=i + 1,
        kind=kind,
        tracings=f"{a}, {b}" if merged else a,
        labels=", ".join(map(str, labels[:1] if merged else labels)),
        position_vox=(z, y, x),
        position_nm=(nm[0], nm[1], nm[2]),
        gap_nm=float(sites.gap_nm[i]),
        cable_nm=float(sites.cable_nm[i]),
    )
