"""A run: a directory, its configuration, and where each artifact lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipeline.arrays.skeleton import Skeleton
from pipeline.config import RunConfig, load_config
from pipeline.errors import InputError
from pipeline.geometry import Roi, Triple
from pipeline.settings import NmTriple
from pipeline.storage.fingerprint import fingerprint
from pipeline.storage.ledger import Ledger
from pipeline.storage.skeleton_files import options_for, read_skeleton_set, stored_skeletons
from pipeline.storage.source import ImageSource, open_source, source_offset
from pipeline.storage.swc import SwcOptions
from pipeline.storage.volume import Volume

# Where each artifact lies inside a run directory.
ARTIFACTS = {
    "phantom_image": "image.zarr",
    "phantom_labels": "labels.zarr",
    "phantom_swc": "swc",
    "image": "image.zarr",
    "pyramid": "scratch/pyramid",
    "tiles": "scratch/tiles",
    "histograms": "scratch/histograms",
    "statistics": "statistics.json",
    "mask": "mask.zarr",
    "placement": "placement.json",
    "label_placement": "label_placement.json",
    "targets": "targets.zarr",
    "checkpoint": "checkpoint",
    "affinities": "affinities.zarr",
    "tuning": "tuning.json",
    "local_fragments": "scratch/fragments.zarr",
    "block_records": "scratch/block_records",
    "stitch_tree": "scratch/stitch_tree",
    "stitch_told": "scratch/stitch_told",
    "stitch": "scratch/stitch",
    "block_graphs": "scratch/block_graphs",
    "merge_tree": "scratch/merge_tree",
    "merge_runs": "scratch/merge_runs",
    "merge_told": "scratch/merge_told",
    "block_lookups": "scratch/block_lookups",
    "segment_sizes": "scratch/segment_sizes",
    "slab_index": "scratch/slab_index",
    "slab_sizes": "scratch/slab_sizes",
    "slab_tables": "scratch/slab_tables",
    "edges": "edges",
    "history": "history",
    "lookup": "lookup",
    "fragments": "fragments.zarr",
    "segments": "segments.zarr",
    "segment_counts": "scratch/segment_counts",
    "skeleton_pieces": "scratch/skeleton_pieces",
    "skeleton_index": "scratch/skeleton_index",
    "fragment_skeletons": "scratch/fragment_skeletons",
    "scattered_skeletons": "scratch/scattered_skeletons",
    "scatter_index": "scratch/scatter_index",
    "skeletons": "skeletons",
    "skeleton_rows": "scratch/skeleton_rows",
    "node_labels": "scratch/node_labels",
    "baseline": "scratch/baseline",
    "baseline_faces": "scratch/baseline_faces",
    "label_overlap": "scratch/label_overlap",
    "label_background": "scratch/label_background",
    "reference_overlap": "scratch/reference_overlap",
    "reference_background": "scratch/reference_background",
    "label_scores": "label_scores.json",
    "metrics": "metrics.json",
    "neurons": "neurons.csv",
    "neurons_parquet": "neurons.parquet",
    "sites": "sites.parquet",
    "site_swc": "sites/swc",
    "site_layers": "sites/annotations",
    "curves": "curves.json",
    "curves_picture": "curves.png",
    "curves_drawing": "curves.svg",
    "fragment_labels": "scratch/fragment_labels",
    "contingency": "scratch/contingency",
    "sweep": "sweep.json",
    "sweep_table": "sweep.csv",
    "sweep_picture": "sweep.png",
    "sweep_drawing": "sweep.svg",
    "pretrained_results": "comparison/results/pretrained",
    "finetuned_results": "comparison/results/finetuned",
    "loss_costs": "comparison/costs.json",
    "comparison": "comparison/comparison.json",
    "comparison_table": "comparison/comparison.csv",
    "projections": "scratch/projections",
    "precomputed": "precomputed",
    "skeleton_layer": "precomputed/skeletons",
    "segment_properties": "precomputed/segment_properties",
    "truth_layer": "precomputed/truth",
    "swc": "swc",
    "segment_table": "segments.csv",
    "segment_table_parquet": "segments.parquet",
    "viewer_state": "neuroglancer.json",
}

# Foreign inputs that take the place of an artifact.
FOREIGN = ("checkpoint", "affinities", "segments")
# Foreign inputs with a name of their own.
SOURCES = {
    "start_from": "start_from",
    "source_image": "image",
    "source_labels": "labels",
    "source_skeletons": "skeletons",
    "source_fragments": "fragments",
    "source_history": "history",
}
# The same of the section evaluate.
SCORING_SOURCES = {
    "source_reference": "compare_segments",
    "source_lookup": "lookup",
    "source_excluded": "exclude_ids",
}
# The same of the section skeletonize.
SKELETON_SOURCES = {
    "segment_lookup": "lookup",
    "source_soma_mask": "soma_mask",
}


@dataclass(frozen=True)
class Run:
    """A handle that travels to workers: only the directory, never data.

    Attributes:
        directory: of the run, absolute.
        draft: a configuration that is being checked before the directory is made.
    """

    directory: Path
    draft: RunConfig | None = field(default=None, compare=False)

    @property
    def config(self) -> RunConfig:
        """The resolved configuration that lies in the directory, or the draft being checked."""
        if self.draft is not None:
            return self.draft
        path = self.directory / "config.yaml"
        if not path.exists():
            raise InputError(f"{self.directory}: not a run directory, it has no config.yaml")
        stamp = path.stat()
        return _config(path, stamp.st_mtime_ns, stamp.st_ino)

    @property
    def token(self) -> str:
        """Another string whenever the configuration changes; keys what workers keep in memory."""
        if self.draft is not None:
            return self.draft.model_dump_json()
        stamp = (self.directory / "config.yaml").stat()
        return f"{stamp.st_mtime_ns}-{stamp.st_ino}"

    def foreign(self, artifact: str) -> Path | None:
        """Where the configuration says a foreign artifact lies, if it does."""
        if artifact == "source_targets":
            artifact = f"source_{self.target_source}"
        if artifact == "source_tuning":
            artifact = f"source_{self.tuning_source}"
        if artifact in SCORING_SOURCES:
            scoring: Path | None = getattr(self.config.evaluate, SCORING_SOURCES[artifact])
            return scoring
        if artifact in SKELETON_SOURCES:
            named: Path | None = getattr(self.config.skeletonize, SKELETON_SOURCES[artifact])
            return named
        name = SOURCES.get(artifact, artifact if artifact in FOREIGN else None)
        found: Path | None = getattr(self.config.input, name) if name else None
        return found

    def path(self, artifact: str) -> Path:
        """Where an artifact lies."""
        foreign = self.foreign(artifact)
        if foreign is not None:
            return foreign
        if artifact in SCORING_SOURCES:
            raise InputError(f"the configuration names no evaluate.{SCORING_SOURCES[artifact]}")
        if artifact in SKELETON_SOURCES:
            name = SKELETON_SOURCES[artifact]
            raise InputError(f"the configuration names no skeletonize.{name}")
        if artifact in SOURCES:
            raise InputError(f"the configuration names no input.{SOURCES[artifact]}")
        return self.directory / ARTIFACTS[artifact]

    def block_file(self, artifact: str, index: int) -> Path:
        """The file of one block in an artifact that is a folder of tables."""
        return self.path(artifact) / f"{index // 1000:06d}" / f"{index:09d}.arrow"

    def volume(self, artifact: str) -> Volume:
        """The volume of an artifact, open."""
        return Volume.open(self.path(artifact))

    def ledger(self, stage: str) -> Ledger:
        """The ledger of a stage."""
        return Ledger(self.ledger_file(stage))

    def ledger_file(self, stage: str) -> Path:
        """Where the ledger of a stage lies."""
        return self.directory / "ledger" / f"{stage}.jsonl"

    @property
    def target_source(self) -> str:
        """ "labels" or "skeletons": what the network is trained on."""
        given, wanted = self.config.input, self.config.targets.source
        if wanted != "auto":
            return wanted
        return "labels" if given.labels is not None else "skeletons"

    @property
    def tuning_source(self) -> str:
        """ "skeletons" or "labels": what thresholds are chosen by, tracings first."""
        return "skeletons" if self.config.input.skeletons is not None else "labels"

    @property
    def tuned(self) -> bool:
        """Whether low, high and the threshold are chosen on the validation region."""
        given = self.config.input
        known = given.skeletons is not None or given.labels is not None
        return self.config.segment.tune and known and given.segments is None

    @property
    def source(self) -> ImageSource:
        """What fixes the working grid: the image, else affinities, segments or fragments."""
        given = self.config.input
        for path in (given.image, given.affinities, given.segments, given.fragments):
            if path is not None:
                return open_source(path)
        raise InputError("input: name an image, affinities or segments")

    @property
    def shape(self) -> Triple:
        """Extent of the volume, z, y, x."""
        given = self.config.input
        if self.config.phantom is not None and given.image is None:
            return self.config.phantom.shape
        return self.source.shape

    @property
    def roi(self) -> Roi:
        """The whole volume."""
        return Roi((0, 0, 0), self.shape)

    @property
    def voxel_size_nm(self) -> NmTriple:
        """z, y, x; from the configuration, else from the metadata.

        Raises:
            InputError: neither says it.
        """
        found = self.config.input.voxel_size_nm or self.source.voxel_size_nm
        if found is None:
            raise InputError(
                "the voxel size is unknown: the metadata state no unit; "
                "set input.voxel_size_nm (z, y, x) or --voxel-size Z Y X"
            )
        return found

    @property
    def train_roi(self) -> Roi:
        """The box that is learned from."""
        region = self.config.regions.train
        return self._region(region.roi if region else None, "regions.train")

    @property
    def validate_roi(self) -> Roi:
        """The box that thresholds are chosen on; the one learned from, where none is named."""
        region = self.config.regions.validation
        return self._region(region.roi, "regions.validation") if region else self.train_roi

    @property
    def score_roi(self) -> Roi:
        """The box that is scored."""
        region = self.config.regions.score
        return self._region(region.roi if region else None, "regions.score")

    def _region(self, roi: Roi | None, name: str) -> Roi:
        if roi is None:
            return self.roi
        if not self.roi.contains(roi):
            raise InputError(f"{name} {roi} leaves the volume of {self.shape} voxels")
        return roi

    def truth(self) -> list[Skeleton]:
        """The tracings, in voxels of the volume; read once, as long as their files stay."""
        path = self.path("source_skeletons")
        return list(_truth(path, self.truth_stamp, self.swc_options))

    @property
    def truth_stamp(self) -> str:
        """Another string whenever a file of the tracings changes."""
        return fingerprint(stored_skeletons(self.path("source_skeletons")))

    @property
    def swc_options(self) -> SwcOptions:
        """How the tracings' coordinates map to the volume.

        Where the format of the volume says that its first voxel lies elsewhere, tracings are taken
        to be in the coordinates of that format.
        """
        swc = self.config.input.swc
        begin = zip(swc.offset, source_offset(self.source), strict=True)
        z, y, x = (float(own - first) for own, first in begin)
        given = SwcOptions(
            axes=swc.axes,
            unit=swc.unit,
            voxel_size_nm=self.voxel_size_nm,
            offset_vox=(z, y, x),
            flip=swc.flip,
            volume_shape=self.shape,
        )
        return options_for(self.path("source_skeletons"), given)


@lru_cache(maxsize=2)
def _truth(path: Path, _stamp: str, options: SwcOptions) -> tuple[Skeleton, ...]:
    return tuple(read_skeleton_set(path, options))


@lru_cache(maxsize=8)
def _config(path: Path, _mtime_ns: int, _inode: int) -> RunConfig:
    return load_config(path)
