"""Bad input: one message, the right exit code, nothing written, before anything is computed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr

SHAPE = (20, 30, 40)
NM = (1000.0, 400.0, 400.0)


def save(path, data, **options):
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    if data.size:
        array[:] = data
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Good inputs, and every kind of bad one, made once."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 1000, SHAPE).astype(np.uint16)
    affinities = rng.integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    labels = (image > 500).astype(np.uint64)
    save(folder / "image.zarr", image)
    save(folder / "affinities.zarr", affinities)
    save(folder / "labels.zarr", labels)
    save(folder / "float64.zarr", image.astype(np.float64))
    save(folder / "complex.zarr", image.astype(np.complex64))
    save(folder / "bool_affinities.zarr", affinities > 9)
    save(folder / "int32_affinities.zarr", affinities.astype(np.int32))
    save(folder / "float64_affinities.zarr", affinities.astype(np.float64))
    save(folder / "float_labels.zarr", labels.astype(np.float32))
    save(folder / "small_labels.zarr", labels[:-1])
    save(folder / "two_channels.zarr", affinities[:2])
    save(folder / "small_affinities.zarr", affinities[:, :, :-1])
    save(folder / "flat.zarr", image[0])
    save(folder / "empty.zarr", np.zeros((0, 30, 40), np.uint16))
    save(folder / "empty_affinities.zarr", np.zeros((3, 20, 0, 40), np.uint8))
    tifffile.imwrite(folder / "flat.tif", image[0])
    tifffile.imwrite(folder / "image.tif", image)
    content = (folder / "image.tif").read_bytes()
    (folder / "cut.tif").write_bytes(content[:100])
    (folder / "noise.tif").write_bytes(b"not a tiff at all")
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / "nothing").mkdir()
    (folder / "a_file").write_text("in the way")
    for name, rows in SWC.items():
        (folder / f"{name}.swc").write_text(rows)
    zipped = folder / "broken.zip"
    zipped.write_bytes(b"PK\x03\x04 broken")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.json").write_text('{"format": "of somebody else"}')
    return folder


SWC = {
    "good": "1 2 5 5 5 1 -1\n2 2 20 5 5 1 1\n3 2 30 20 15 1 2\n",
    "outside": "1 2 500 500 500 1 -1\n2 2 510 500 500 1 1\n",
    "letters": "1 2 five 5 5 1 -1\n",
    "short": "1 2 5 5\n",
    "orphan": "1 2 5 5 5 1 -1\n2 2 6 5 5 1 77\n",
    "circle": "1 2 5 5 5 1 2\n2 2 6 5 5 1 1\n",
    "empty": "# nothing\n",
    "nan": "1 2 nan 5 5 1 -1\n2 2 6 5 5 1 1\n",
}


def refused(done, out, *words):
    assert done.code == 2, (done.code, done.err)
    assert done.err.startswith("error: "), done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in done.err, (word, done.err)
    assert not out.exists(), list(out.rglob("*"))


CASES = {
    # ingest
    "no image": ("ingest --image {d}/absent.zarr", "absent.zarr", "no such"),
    "no known kind": ("ingest --image {d}/image.png", "image.png", "expected"),
    "a folder without an image": ("ingest --image {d}/nothing", "nothing"),
    "float64 image": ("ingest --image {d}/float64.zarr --voxel-size 9 4 4", "float64"),
    "complex image": ("ingest --image {d}/complex.zarr --voxel-size 9 4 4", "complex64"),
    "2-D TIFF": ("ingest --image {d}/flat.tif --voxel-size 9 4 4", "flat.tif", "(30, 40)"),
    "2-D zarr": ("ingest --image {d}/flat.zarr --voxel-size 9 4 4", "(30, 40)"),
    "cut TIFF": ("ingest --image {d}/cut.tif --voxel-size 9 4 4", "cut.tif"),
    "no TIFF": ("ingest --image {d}/noise.tif --voxel-size 9 4 4", "noise.tif"),
    "empty volume": ("ingest --image {d}/empty.zarr --voxel-size 9 4 4", "empty", "(0, 30, 40)"),
    "affinities as image": ("ingest --image {d}/affinities.zarr --voxel-size 9 4 4", "3 channels"),
    "no voxel size": ("ingest --image {d}/image.zarr", "--voxel-size"),
    "negative voxel size": ("ingest --image {d}/image.zarr --voxel-size -9 4 4", "positive"),
    "zero voxel size": ("ingest --image {d}/image.zarr --voxel-size 0 4 4", "positive"),
    "block of zero": ("ingest --image {d}/image.zarr --voxel-size 9 4 4 --block 0 8 8", "block"),
    # segment
    "no affinities": ("segment --affinities {d}/absent.zarr", "absent.zarr"),
    "two channels": ("segment --affinities {d}/two_channels.zarr", "(3, z, y, x)", "(2, 20, 30"),
    "no channels": ("segment --affinities {d}/image.zarr", "(3, z, y, x)", "(20, 30, 40)"),
    "bool affinities": ("segment --affinities {d}/bool_affinities.zarr", "bool", "uint8"),
    "int32 affinities": ("segment --affinities {d}/int32_affinities.zarr", "int32", "uint8"),
    "float64 affinities": ("segment --affinities {d}/float64_affinities.zarr", "float64"),
    "empty affinities": ("segment --affinities {d}/empty_affinities.zarr", "empty"),
    "low above high": (
        "segment --affinities {d}/affinities.zarr --low 0.9 --high 0.3", "0.9", "0.3",
    ),
    "low of 0": ("segment --affinities {d}/affinities.zarr --low 0", "low"),
    "high above 1": ("segment --affinities {d}/affinities.zarr --high 1.5", "1.5"),
    "threshold above 1": ("segment --affinities {d}/affinities.zarr --threshold 2", "[0, 1]"),
    "threshold below 0": ("segment --affinities {d}/affinities.zarr --threshold -0.1", "[0, 1]"),
    "threshold nan": ("segment --affinities {d}/affinities.zarr --threshold nan", "nan"),
    "unknown order": ("segment --affinities {d}/affinities.zarr --order sideways", "sideways"),
    # train
    "labels of another shape": (
        "train --image {d}/image.zarr --labels {d}/small_labels.zarr --voxel-size 9 4 4",
        "(19, 30, 40)", "(20, 30, 40)",
    ),
    "labels of fractions": (
        "train --image {d}/image.zarr --labels {d}/float_labels.zarr --voxel-size 9 4 4", "float32",
    ),
    "nothing to learn from": ("train --image {d}/image.zarr --voxel-size 9 4 4", "--labels"),
    "patch larger than the volume": (
        "train --image {d}/image.zarr --labels {d}/labels.zarr --voxel-size 9 4 4",
        "patch", "(48, 48, 48)", "(20, 30, 40)",
    ),
    # predict
    "no checkpoint": (
        "predict --image {d}/image.zarr --checkpoint {d}/nothing --voxel-size 9 4 4", "nothing",
    ),
    "no checkpoint folder": (
        "predict --image {d}/image.zarr --checkpoint {d}/absent --voxel-size 9 4 4", "absent",
    ),
    "a checkpoint that is a file": (
        "predict --image {d}/image.zarr --checkpoint {d}/a_file --voxel-size 9 4 4", "a_file",
    ),
    "a foreign checkpoint": (
        "predict --image {d}/image.zarr --checkpoint {d}/checkpoint --voxel-size 9 4 4",
        "model.json",
    ),
    "unknown device": (
        "predict --image {d}/image.zarr --checkpoint {d}/checkpoint --voxel-size 9 4 4 "
        "--device tpu", "tpu",
    ),
    # skeletonize, proofread
    "segments of fractions": (
        "skeletonize --segmentation {d}/float_labels.zarr --voxel-size 9 4 4", "float32",
    ),
    "segments without voxel size": ("skeletonize --segmentation {d}/labels.zarr", "--voxel-size"),
    "image of another shape": (
        "proofread --segmentation {d}/small_labels.zarr --image {d}/image.zarr --voxel-size 9 4 4",
        "(19, 30, 40)", "(20, 30, 40)",
    ),
    # evaluate
    "no tracing": (
        "evaluate --segmentation {d}/labels.zarr --skeletons {d}/absent.swc --voxel-size 9 4 4",
        "absent.swc",
    ),
    "a folder without tracings": (
        "evaluate --segmentation {d}/labels.zarr --skeletons {d}/nothing --voxel-size 9 4 4",
        ".swc",
    ),
    "broken archive": (
        "evaluate --segmentation {d}/labels.zarr --skeletons {d}/broken.zip --voxel-size 9 4 4",
        "broken.zip",
    ),
    "unknown axes": (
        "evaluate --segmentation {d}/labels.zarr --skeletons {d}/good.swc --voxel-size 9 4 4 "
        "--axes abc", "abc",
    ),
    "score without voxel size": (
        "evaluate --segmentation {d}/labels.zarr --skeletons {d}/good.swc", "--voxel-size",
    ),
    **{
        f"tracing: {name}": (
            f"evaluate --segmentation {{d}}/labels.zarr --skeletons {{d}}/{name}.swc "
            "--voxel-size 9 4 4", "no node lies" if name == "outside" else f"{name}.swc",
        )
        for name in SWC if name != "good"
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused(axonloom, data, tmp_path, case):
    command, *words = CASES[case]
    out = tmp_path / "out"
    done = axonloom(*command.format(d=data).split(), "--out", out, "--serial")
    refused(done, out, *words)


@pytest.mark.parametrize("out", ["a_file", "a_file/below", "a_file/below/further"])
def test_an_output_below_a_file(axonloom, data, out):
    done = axonloom("segment", "--affinities", data / "affinities.zarr", "--out", data / out)
    refused(done, data / out / "never", "a_file")
    assert (data / "a_file").read_text() == "in the way"


# --- configurations


def config_of(data, tmp_path, **sections):
    values = {
        "run_dir": str(tmp_path / "run"),
        "input": {
            "image": str(data / "image.zarr"),
            "labels": str(data / "labels.zarr"),
            "voxel_size_nm": [9, 4, 4],
        },
        "network": {"width": 4, "levels": 2},
        "train": {"patch": [16, 16, 16], "pretrain_steps": 2, "finetune_steps": 0},
        "predict": {"tile": [16, 16, 16], "context": [4, 4, 4]},
        "execution": {"kind": "serial"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


CONFIGS = {
    "unknown section": ({"segmnet": {"low": 0.5}}, "segmnet: unknown key"),
    "unknown key": ({"segment": {"lo": 0.5}}, "segment.lo: unknown key"),
    "wrong type": ({"train": {"batch": "many"}}, "train.batch", "many"),
    "patch beyond the region": (
        {"regions": {"train": {"begin": [0, 0, 0], "end": [20, 30, 12]}}}, "patch", "(20, 30, 12)",
    ),
    "patch that the network cannot take": ({"train": {"patch": [16, 15, 16]}}, "stride", "15"),
    "tile that the network cannot take": ({"predict": {"tile": [16, 17, 16]}}, "tile", "17"),
    "region beyond the volume": (
        {"regions": {"train": {"begin": [0, 0, 0], "end": [20, 30, 41]}}}, "regions.train",
    ),
    "score region beyond the volume": (
        {"regions": {"score": {"begin": [0, 0, 0], "end": [21, 30, 40]}}}, "regions.score",
    ),
    "region turned around": (
        {"regions": {"train": {"begin": [0, 9, 0], "end": [20, 9, 40]}}}, "begin < end",
    ),
    "nothing to do": ({"input": {"image": None, "labels": None}}, "input"),
    "tracings that are not there": ({"targets": {"source": "skeletons"}}, "skeletons"),
    "percentiles turned around": ({"ingest": {"low_percentile": 99.95}}, "99.95"),
    "kind without address": ({"execution": {"kind": "address"}}, "address"),
    "no workers": ({"execution": {"workers": 0}}, "workers"),
    "affinities of another shape than the image": (
        {"input": {"affinities": "small_affinities.zarr"}}, "(20, 29, 40)", "(20, 30, 40)",
    ),
    "segments of another shape than the image": (
        {"input": {"segments": "small_labels.zarr"}}, "(19, 30, 40)", "(20, 30, 40)",
    ),
    "chunks of zero": ({"ingest": {"chunk": [0, 64, 64]}}, "ingest.chunk"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_configuration_is_refused(axonloom, data, tmp_path, case):
    sections, *words = CONFIGS[case]
    given = sections.get("input", {})
    paths = {k: str(data / v) if isinstance(v, str) else v for k, v in given.items()}
    sections = sections | ({"input": paths} if paths else {})
    done = axonloom("run", config_of(data, tmp_path, **sections))
    refused(done, tmp_path / "run", *words)


@pytest.mark.parametrize(
    "content",
    [b"input: [unclosed", b"a: b: c", b"\xff\xfe\x00bad", b"- a\n- list\n", b"", b"just text"],
    ids=repr,
)
def test_what_is_no_yaml_mapping_is_refused(axonloom, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    done = axonloom("run", path)
    refused(done, tmp_path / "run", "config.yaml")


def test_a_configuration_that_is_not_there(axonloom, tmp_path):
    refused(axonloom("run", tmp_path / "no.yaml"), tmp_path / "run", "no.yaml", "no such")
    refused(axonloom("run", tmp_path), tmp_path / "run", str(tmp_path))
    refused(axonloom("status", tmp_path), tmp_path / "run", "not a run directory")


# --- inputs and outputs in one another


def test_an_input_is_never_replaced(axonloom, data, tmp_path):
    image = save(tmp_path / "run" / "image.zarr", np.ones(SHAPE, np.uint16))
    before = sorted(p for p in tmp_path.rglob("*"))
    for overwrite in ([], ["--overwrite"]):
        done = axonloom(
            "ingest", "--image", image, "--out", tmp_path / "run", "--voxel-size", *NM,
            "--serial", *overwrite,
        )  # fmt: skip
        assert done.code == 2
        assert "choose another folder" in done.err
        assert sorted(p for p in tmp_path.rglob("*")) == before


def test_the_image_of_a_run_is_not_removed_as_its_old_output(axonloom, data, tmp_path):
    """The second run names the first one's own output as its input, in the same folder."""
    arguments = ["--out", tmp_path / "run", "--voxel-size", *NM, "--serial"]
    assert axonloom("ingest", "--image", data / "image.zarr", *arguments).code == 0
    image = tmp_path / "run" / "image.zarr"
    done = axonloom("ingest", "--image", image, *arguments, "--overwrite")
    assert done.code == 2
    assert "choose another folder" in done.err
    assert image.exists()


def test_an_output_inside_its_input_is_refused(axonloom, data, tmp_path):
    """It would change the input's fingerprint: no run could ever be continued."""
    planes = tmp_path / "planes"
    planes.mkdir()
    for z in range(4):
        tifffile.imwrite(planes / f"{z}.tif", np.ones((20, 20), np.uint8))
    done = axonloom(
        "ingest", "--image", planes, "--out", planes / "run", "--voxel-size", *NM, "--serial"
    )
    refused(done, planes / "run", "choose another folder")


# --- other parameters in --out


def test_other_parameters_need_overwrite(axonloom, data, tmp_path):
    command = ["segment", "--affinities", data / "affinities.zarr", "--out", tmp_path / "out",
               "--serial"]  # fmt: skip
    assert axonloom(*command).code == 0
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    done = axonloom(*command, "--low", 0.6)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert "low" in done.err
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files
    done = axonloom(*command)
    assert done.code == 0, "the same parameters go on"
    assert "already done" in done.err
    done = axonloom(*command, "--low", 0.6, "--overwrite")
    assert done.code == 0
    assert "already done" not in done.err


def test_files_of_somebody_else_stay_even_with_overwrite(axonloom, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "segments.zarr").mkdir()
    (out / "segments.zarr" / "precious").write_text("keep")
    for overwrite in ([], ["--overwrite"]):
        done = axonloom("segment", "--affinities", data / "affinities.zarr", "--out", out,
                        "--serial", *overwrite)  # fmt: skip
        assert done.code == 2
        assert "segments.zarr exists" in done.err
        assert [p.name for p in out.rglob("*")] == ["segments.zarr", "precious"]


# --- what only reading the voxels can show: exit code 1


def failed(done, stage, *words):
    assert done.code == 1, (done.code, done.err)
    assert "Traceback" not in done.err
    assert f"error: stage {stage}: " in done.err
    assert "To resume: axonloom" in done.err
    for word in words:
        assert word in done.err, (word, done.err)


@pytest.mark.parametrize("value", [np.nan, 1.25, -0.5, np.inf])
def test_affinities_that_are_no_probabilities(axonloom, tmp_path, value):
    affinities = np.full((3, *SHAPE), 0.8, np.float32)
    affinities[1, 15, 7, 9] = value
    path = save(tmp_path / "a.zarr", affinities)
    done = axonloom("segment", "--affinities", path, "--out", tmp_path / "out", "--serial",
                    "--block", 10, 30, 40)  # fmt: skip
    failed(done, "fragments", "block 1 [10:20, 0:30, 0:40]", "NaN or outside [0, 1]", "DataError")
    assert "1 of 2 blocks failed" in done.err
    zarr.open_array(path, mode="r+")[1, 15, 7, 9] = 0.8
    done = axonloom("segment", "--affinities", path, "--out", tmp_path / "out", "--serial",
                    "--block", 10, 30, 40, "--overwrite")  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_truncated_chunk_of_a_foreign_input(axonloom, tmp_path, zarr_format):
    rng = np.random.default_rng(1)
    affinities = rng.integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    path = save(tmp_path / "a.zarr", affinities, chunks=(3, 10, 30, 40), zarr_format=zarr_format)
    chunk = path / ("0.1.0.0" if zarr_format == 2 else "c/0/1/0/0")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    command = ["segment", "--affinities", path, "--out", tmp_path / "out", "--serial",
               "--block", 5, 30, 40]  # fmt: skip
    done = axonloom(*command)
    failed(done, "fragments", "block 2 [10:15, 0:30, 0:40]", "block 3", "a.zarr", "cannot read")
    chunk.write_bytes(whole)
    done = axonloom(*command, "--overwrite")
    assert done.code == 0, done.err


def test_a_damaged_plane_of_a_tiff_folder(axonloom, tmp_path):
    planes = tmp_path / "planes"
    planes.mkdir()
    for z in range(6):
        tifffile.imwrite(planes / f"{z}.tif", np.full((32, 32), z, np.uint8), compression="zlib")
    tifffile.imwrite(planes / "4.tif", np.zeros((32, 30), np.uint8))
    done = axonloom("ingest", "--image", planes, "--out", tmp_path / "out", "--serial",
                    "--voxel-size", *NM)  # fmt: skip
    failed(done, "ingest", "block 0", "4.tif", "(32, 30)")


def test_negative_labels(axonloom, data, tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[3, 4, 5] = -1
    path = save(tmp_path / "labels.zarr", labels)
    done = axonloom("run", config_of(data, tmp_path, input={"labels": str(path)}))
    refused(done, tmp_path / "run", "negative", "labels.zarr")


def test_negative_labels_that_training_alone_reads(axonloom, data, tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[3, 4, 5] = -1
    path = save(tmp_path / "labels.zarr", labels)
    config = config_of(data, tmp_path, input={"labels": str(path)}, segment={"tune": False})
    failed(axonloom("run", config), "targets", "negative", "labels.zarr")


def test_the_command_as_a_process(data, tmp_path):
    """Exit codes and streams as a shell sees them."""

    def run(*arguments):
        code = "from flows.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("segment", "--affinities", data / "two_channels.zarr", "--out", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    assert run("segment", "--affinities", "x", "--out", "y", "--no-such-option").returncode == 2
    assert not Path(tmp_path / "y").exists()
