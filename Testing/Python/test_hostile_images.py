"""Volume files from somebody who means harm: nothing elsewhere is read, no memory is taken.

Each is read in a process of its own with 3 GB of address space: one that takes memory without
bound, or crashes ITK, fails there. What each says is compared.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.headers import read_header
from SaliencyExplainLib.volume_files import read_file

ROOT = Path(__file__).resolve().parents[2]
SECRET = b"secret voxels of another folder. " * 4

READER = textwrap.dedent(
    """
    import json, resource, sys
    from pathlib import Path
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    from SaliencyExplainLib.volume_files import read_file
    from SaliencyExplainLib.errors import ImageError
    import SimpleITK
    for name in sys.argv[1:]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            said = f"read {read_file(Path(name)).shape}"
        except ImageError as error:
            said = str(error)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([Path(name).name, said, (after - before) // 1024]), flush=True)
    """
)


def nifti(size: tuple[int, int, int], voxels: bytes = b"", axes: int = 3) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, axes, *size, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<2f", header, 108, 352.0, 1.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + voxels


def nrrd(sizes: str, encoding: str = "raw", more: str = "", voxels: bytes = b"") -> bytes:
    text = (
        f"NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\n"
        f"endian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n{more}\n"
    )
    return text.encode() + voxels


def metaimage(size: str, file: str, voxels: bytes = b"", more: str = "", axes: str = "3") -> bytes:
    text = (
        f"ObjectType = Image\nNDims = {axes}\nBinaryData = True\n{more}"
        f"ElementSpacing = 1 1 1\nDimSize = {size}\nElementType = MET_UCHAR\n"
        f"ElementDataFile = {file}\n"
    )
    return text.encode() + voxels


ELSEWHERE = "outside its own folder. It was not opened"
TOO_FEW = "cut off or damaged"
PATTERN = "by a pattern that is not understood"

#: Name of the file: what is in it (SECRET stands for the path of another folder's file), what is
#: said.
CASES: dict[str, tuple[bytes, str]] = {
    "huge.nii": (nifti((30000, 30000, 30000)), TOO_FEW),
    "huge.nii.gz": (gzip.compress(nifti((30000, 30000, 3000))), TOO_FEW),
    "large.nii.gz": (gzip.compress(nifti((1000, 1000, 500))), TOO_FEW),
    "bomb.nii.gz": (gzip.compress(nifti((260, 250, 201), bytes(5 * 10**7)), 1), "ends before its"),
    "behind.nii.gz": (
        gzip.compress(nifti((4, 4, 4), bytes(256)) + bytes(3 * 10**8), 1),
        "read (1, 4, 4, 4)",
    ),
    "negative.nii": (nifti((-5, 5, 5)), "could not be read as a volume"),
    "empty.nii": (b"", "could not be read as a volume"),
    "half.nii": (nifti((4, 4, 4))[:200], "could not be read as a volume"),
    "huge.nrrd": (nrrd("30000 30000 30000"), TOO_FEW),
    "overflow.nrrd": (nrrd("4294967296 4294967296 4294967296"), ""),
    "large.nrrd": (nrrd("2000 2000 1000", "gzip", voxels=gzip.compress(b"abc")), TOO_FEW),
    "ascii.nrrd": (nrrd("2000 2000 2000", "ascii", voxels=b"1 2 3"), TOO_FEW),
    "absolute.nrrd": (nrrd("4 4 4", more="data file: SECRET\n"), ELSEWHERE),
    "absolute.nhdr": (nrrd("4 4 4", more="data file: SECRET\n"), ELSEWHERE),
    "joined.nhdr": (nrrd("4 4 4", more="datafile:SECRET\n"), ELSEWHERE),
    "capitals.nhdr": (nrrd("4 4 4", more="Data File: SECRET\n"), ELSEWHERE),
    "upwards.nhdr": (nrrd("4 4 4", more="data file: ../away/secret.raw\n"), ELSEWHERE),
    "link.nhdr": (nrrd("4 4 4", more="data file: link.raw\n"), ELSEWHERE),
    "list.nhdr": (nrrd("4 4 4", more="data file: LIST\n" + "SECRET\n" * 4), ELSEWHERE),
    "pattern.nhdr": (nrrd("4 4 4", more="data file: ../away/%d.raw 1 4 1\n"), ELSEWHERE),
    "text.nhdr": (nrrd("4 4 4", more="data file: %s%n 1 4 1\n"), PATTERN),
    "twice.nhdr": (nrrd("4 4 4", more="data file: a\ndata file: SECRET\n"), "voxels twice"),
    "input.nhdr": (nrrd("4 4 4", more="data file: -\n"), ELSEWHERE),
    "absent.nhdr": (nrrd("4 4 4", more="data file: absent.raw\n"), "which is not there"),
    "long.nhdr": (nrrd("4 4 4", more=f"data file: {'a' * 900}\n"), "which is not there"),
    "line.nrrd": (nrrd("4 4 4", more=f"content: {'A' * 5000}\n"), "more than 1000 letters"),
    "word.nrrd": (nrrd("4 4 4", "A" * 5000), "more than 1000 letters"),
    "endless.nrrd": (b"NRRD0004\n" + b"# nothing\n" * 200_000, "has no end within"),
    "huge.mha": (metaimage("30000 30000 30000", "LOCAL"), TOO_FEW),
    "packed.mha": (
        metaimage("2000 2000 1000", "LOCAL", b"abc", "CompressedData = True\n"), TOO_FEW
    ),
    "absolute.mhd": (metaimage("4 4 4", "SECRET"), ELSEWHERE),
    "absolute.mha": (metaimage("4 4 4", "SECRET"), ELSEWHERE),
    "upwards.mhd": (metaimage("4 4 4", "../away/secret.raw"), ELSEWHERE),
    "link.mhd": (metaimage("4 4 4", "link.raw"), ELSEWHERE),
    "list.mhd": (metaimage("4 4 4", "LIST\n" + "SECRET\n" * 4), ELSEWHERE),
    "colon.mhd": (metaimage("4 4 4", "SECRET").replace(b"File = ", b"File: "), ELSEWHERE),
    "tab.mhd": (metaimage("4 4 4", "SECRET").replace(b"ElementDataFile = ",
                                                     b"\tElementDataFile\t=\t"), ELSEWHERE),
    "unnamed": (metaimage("4 4 4", "SECRET"), ELSEWHERE),
    # This one crashes ITK 5.4.
    "crash.mhd": (metaimage("4 4 4", "/etc/host%s 1 4 1"), PATTERN),
    "crash.mha": (metaimage("4 4 4", "LOCAL", bytes(64), axes="399999999"), "how many axes"),
    "axes.mha": (metaimage("4 4 4", "LOCAL", bytes(64), more="NDims = 99\n"), "how many axes"),
    "none.mha": (b"ObjectType = Image\nNDims = 3\n", "does not say where its voxels are"),
    "zero.mha": (metaimage("0 4 4", "LOCAL"), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hostile")
    (home / "away").mkdir()
    secret = home / "away" / "secret.raw"
    secret.write_bytes(SECRET)
    for index in range(1, 5):
        (home / "away" / f"{index}.raw").write_bytes(SECRET)
    inner = home / "given"
    inner.mkdir()
    (inner / "link.raw").symlink_to(secret)
    for name, (content, _) in CASES.items():
        (inner / name).write_bytes(content.replace(b"SECRET", str(secret).encode()))
    os.mkfifo(inner / "pipe.nii")
    return inner


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, tuple[str, int]]:
    """What reading each said, and by how many MB the process grew."""
    files = [str(folder / name) for name in CASES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READER, *files, str(folder / "pipe.nii"), "/dev/zero"],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    assert run.returncode == 0, f"after {found[-1:]}: {run.stderr[-500:]}"
    return {name: (said, grown) for name, said, grown in found}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_volume_is_refused_in_a_sentence_without_taking_memory(name, answers):
    said, grown = answers[name]
    assert CASES[name][1] in said
    assert CASES[name][1].startswith("read") == said.startswith("read")
    assert "secret" not in said.replace("secret.raw", "")
    # The largest measured is 12 MB, of ITK's own code.
    assert grown < 60


@pytest.mark.parametrize("name", ["pipe.nii", "zero"])
def test_a_pipe_or_a_device_is_no_volume(name, answers):
    assert "is neither a file nor a folder (a device or a pipe)" in answers[name][0]


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_a_header_with_its_voxels_in_its_own_folder_is_read(suffix, tmp_path):
    voxels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"scan.{suffix}"))
    assert len(list(tmp_path.iterdir())) == 2
    read = read_file(tmp_path / f"scan.{suffix}")
    np.testing.assert_array_equal(read.voxels[0], voxels.transpose(2, 1, 0))


def test_slices_listed_or_numbered_in_the_folder_are_read(tmp_path):
    voxels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    for index, one in enumerate(voxels):
        (tmp_path / f"s{index}.raw").write_bytes(one.tobytes())
    names = "".join(f"s{index}.raw\n" for index in range(4))
    listed = nrrd("4 4 4", more=f"data file: LIST 2\n{names}")
    (tmp_path / "list.nhdr").write_bytes(listed.rstrip() + b"\n")
    (tmp_path / "list.mhd").write_bytes(metaimage("4 4 4", f"LIST\n{names}"))
    (tmp_path / "number.nhdr").write_bytes(nrrd("4 4 4", more="data file: s%d.raw 0 3 1 2\n"))
    for name in ("list.nhdr", "list.mhd", "number.nhdr"):
        assert read_header(tmp_path / name).stored_bytes == 64
        read = read_file(tmp_path / name)
        np.testing.assert_array_equal(read.voxels[0], voxels.transpose(2, 1, 0))


def test_long_texts_of_3d_slicer_are_no_damage(tmp_path):
    text = f"Segmentation_ConversionParameters:={'Collapse labelmaps|1|' * 400}\n"
    (tmp_path / "seg.nrrd").write_bytes(nrrd("4 4 4", more=text, voxels=bytes(64)))
    assert read_file(tmp_path / "seg.nrrd").shape == (1, 4, 4, 4)


def test_a_folder_of_links_reads_nothing_that_is_no_dicom(tmp_path, folder):
    for index in range(3):
        (tmp_path / f"{index}.dcm").symlink_to(folder.parent / "away" / "secret.raw")
    with pytest.raises(ImageError, match="holds no DICOM series"):
        read_file(tmp_path)
