"""``regions``: the table of a map that was made before."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RegionError
from .output import print_json, say

__all__ = ["names_of", "read_names", "run_regions"]

#: End of the name of a segmentation that 3D Slicer wrote.
SEGMENTATION = ".seg.nrrd"


def run_regions(options: Any) -> None:
    """Summarise a map in the segments of a label map."""
    from .. import read_image, read_labelmap, region_table

    names = names_of(options)
    table = region_table(read_image(options.map), read_labelmap(options.segments), names)
    if options.output is not None:
        try:
            table.to_csv(options.output)
        except OSError as error:
            reason = error.strerror or error
            raise RegionError(
                f"{str(options.output)!r} could not be written ({reason})."
            ) from error
    if options.json:
        print_json({"regions": [asdict(row) for row in table.rows], "output": options.output})
    else:
        say(table.to_text())


def names_of(options: Any) -> dict[int, str]:
    """Names from the file that was given, or from the segmentation itself."""
    if options.segment_names is not None:
        return read_names(options.segment_names)
    own = options.segments is not None and options.segments.name.lower().endswith(SEGMENTATION)
    return read_names(options.segments) if own else {}


def read_names(path: Path) -> dict[int, str]:
    """Read names of labels.

    Parameters
    ----------
    path : Path
        ``.json``: an object {label: name}; ``.csv``: a label and a name in each line. A first line
        without a number is taken as the columns' titles. ``.seg.nrrd``: the segments' own names.

    Raises
    ------
    RegionError
        If the file is missing or of another form.
    """
    if path.name.lower().endswith(SEGMENTATION):
        return _segment_names(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return {int(label): str(name) for label, name in json.loads(text).items()}
        rows = [row for row in csv.reader(text.splitlines()) if row]
        if rows and not rows[0][0].strip().isdigit():
            rows = rows[1:]
        return {int(row[0]): row[1].strip() for row in rows}
    except OSError as error:
        reason = error.strerror or error
        raise RegionError(f"The segment names {str(path)!r} cannot be read ({reason}).") from error
    except (ValueError, AttributeError, IndexError) as error:
        raise RegionError(
            f"{path.name!r} holds no segment names. Give a .csv with a label and a name in each "
            'line, or a .json such as {"1": "liver", "2": "spleen"}.'
        ) from error


def _segment_names(path: Path) -> dict[int, str]:
    """Names of the segments in a segmentation that 3D Slicer wrote; empty where it has none."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise RegionError(f"The segmentation {str(path)!r} cannot be read.") from error
    found = {}
    for key in reader.GetMetaDataKeys():
        segment, _, field = key.rpartition("_")
        label = f"{segment}_LabelValue"
        if field == "Name" and reader.HasMetaDataKey(label):
            found[int(reader.GetMetaData(label))] = reader.GetMetaData(key)
    return found
