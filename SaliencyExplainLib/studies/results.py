"""What a study found: answers, tables, figures, plots, and the maps that belong in a scene."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StudyError
from ..explanation import Explanation, write_text
from ..plain_text import cell_text
from ..volume import Volume, as_volume, read_volume, write_volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "VERDICTS",
    "Case",
    "Comparison",
    "StudyFigure",
    "StudyPlot",
    "StudyResult",
    "StudyTable",
]

#: How a figure of ours stands to the published one.
VERDICTS = ("confirmed", "refuted", "differs", "not comparable", "ours alone")
_FACTS = "study.json"


@dataclass(frozen=True)
class StudyTable:
    """A table with a heading.

    Attributes
    ----------
    name : str
        Of its file, without ``.csv``.
    title : str
        For people.
    columns : tuple of str
        Headings, with units.
    rows : tuple of tuple
        Text, whole numbers, floats (NaN: not known) or None.
    note : str
        What a reader must know to read it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        uneven = [row for row in self.rows if len(row) != len(self.columns)]
        if uneven:
            raise StudyError(
                f"The table {self.name!r} has {len(self.columns)} columns; a row has "
                f"{len(uneven[0])} cells: {uneven[0]}."
            )

    def to_csv(self) -> str:
        """All rows, numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(one) for one in row] for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """All rows for a page, numbers with 3 digits."""
        lines = [self.columns, tuple("---" for _ in self.columns)]
        lines += [tuple(in_words(cell) for cell in row) for row in self.rows]
        return "\n".join("| " + " | ".join(escaped(one) for one in line) + " |" for line in lines)


@dataclass(frozen=True)
class Comparison:
    """One published figure or claim beside ours.

    Attributes
    ----------
    what : str
        What is compared.
    published, ours : str
        Both figures in words; "not stated" where the source is silent.
    verdict : str
        One of :data:`VERDICTS`.
    why : str
        The reason in one sentence: what differs in data, network or protocol.
    """

    what: str
    published: str
    ours: str
    verdict: str
    why: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise StudyError(
                f"The verdict {self.verdict!r} is unknown. Choose from {', '.join(VERDICTS)}."
            )


@dataclass(frozen=True)
class StudyFigure:
    """A drawn figure with its caption; `name` is that of its file, without ``.png``."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class StudyPlot:
    """A plot for the scene.

    Attributes
    ----------
    name, title, x_label, y_label : str
        Name of the nodes, and what is written on the chart.
    x : tuple of float or str
        Positions, or the names under bars.
    series : mapping of str to tuple of float
        One line (or set of bars) a name, each as long as `x`.
    kind : {"line", "bar", "scatter"}
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: tuple[Any, ...]
    series: Mapping[str, tuple[float, ...]]
    kind: str = "line"

    def __post_init__(self) -> None:
        if self.kind not in ("line", "bar", "scatter"):
            raise StudyError(f"A plot is a line, bar or scatter, not {self.kind!r}.")
        for name, values in self.series.items():
            if len(values) != len(self.x):
                raise StudyError(
                    f"The series {name!r} of the plot {self.name!r} has {len(values)} values for "
                    f"{len(self.x)} positions."
                )


@dataclass(frozen=True)
class Case:
    """A volume with everything that was made of it, for the scene.

    Attributes
    ----------
    name : str
        For people, and of its folder.
    image : Volume or MetaTensor, shape (C, I, J, K)
    labels : mapping of str to (label map, names of its labels)
        Each becomes a segmentation.
    maps : tuple of Explanation
        Over the image.
    volumes : mapping of str to Volume or MetaTensor
        Further volumes, for example an attention mask or a cleaned image.
    """

    name: str
    image: Any
    labels: Mapping[str, tuple[Any, Mapping[int, str]]] = field(default_factory=dict)
    maps: tuple[Explanation, ...] = ()
    volumes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """All that a study found.

    Attributes
    ----------
    name, title, paper, question : str
        The study's own.
    answer : tuple of str
        The findings, one sentence with its figures each, the most important first.
    comparisons : tuple of Comparison
        Published figures beside ours.
    differs : tuple of str
        What is done otherwise than published, and why.
    tables : tuple of StudyTable
    figures : tuple of StudyFigure
        Empty in a result that was read back: their files are in the folder.
    plots : tuple of StudyPlot
    cases : tuple of Case
    settings : mapping
        All numbers that the study was run with.
    seconds : float
        Time of all its runs together, in s.
    versions : mapping of str to str
    """

    name: str
    title: str
    paper: str
    question: str
    answer: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    differs: tuple[str, ...] = ()
    tables: tuple[StudyTable, ...] = ()
    figures: tuple[StudyFigure, ...] = ()
    plots: tuple[StudyPlot, ...] = ()
    cases: tuple[Case, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    def table(self, name: str) -> StudyTable:
        """Return the table of that name.

        Raises
        ------
        StudyError
            If there is none.
        """
        for one in self.tables:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.tables)
        raise StudyError(f"The study has no table {name!r}. Its tables are {known}.")

    def to_dict(self) -> dict[str, Any]:
        """Everything but volumes and figures, as JSON values."""
        facts: dict[str, Any] = {
            key: getattr(self, key) for key in ("name", "title", "paper", "question", "seconds")
        }
        facts |= {
            "answer": list(self.answer),
            "differs": list(self.differs),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "comparisons": [vars(one) for one in self.comparisons],
            "tables": [vars(one) for one in self.tables],
            "plots": [vars(one) | {"series": dict(one.series)} for one in self.plots],
            "figures": [{"name": one.name, "caption": one.caption} for one in self.figures],
            "cases": [_case_facts(one) for one in self.cases],
        }
        plain: dict[str, Any] = _plain(facts)
        return plain

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``study.json``, tables, figures, volumes, and the page ``<name>.md``.

        Parameters
        ----------
        folder : path
            Made if it is missing.

        Returns
        -------
        list of Path
            The files, the page first.

        Raises
        ------
        StudyError, SaliencyExplainError
            If the folder cannot be written.
        """
        from ..figure import save_figure
        from .page import page

        folder = Path(folder)
        written = [write_text(folder / f"{self.name}.md", page(self))]
        for table in self.tables:
            written.append(write_text(folder / f"{table.name}.csv", table.to_csv()))
        for one in self.figures:
            written.append(save_figure(one.figure, folder / f"{one.name}.png", dpi=110))
        for number, case in enumerate(self.cases):
            written += _save_case(case, folder / f"case_{number}")
        facts = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        written.append(write_text(folder / _FACTS, facts + "\n"))
        return written

    @classmethod
    def load(cls, folder: str | Path) -> StudyResult:
        """Read what :meth:`save` wrote; torch is not needed.

        Raises
        ------
        StudyError
            If the folder holds no finished study.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            tables = tuple(
                StudyTable(
                    **one
                    | {"columns": tuple(one["columns"]), "rows": tuple(map(tuple, one["rows"]))}
                )
                for one in facts["tables"]
            )
            plots = tuple(
                StudyPlot(
                    **one
                    | {
                        "x": tuple(one["x"]),
                        "series": {
                            key: tuple(math.nan if x is None else x for x in values)
                            for key, values in one["series"].items()
                        },
                    }
                )
                for one in facts["plots"]
            )
            return cls(
                **{key: facts[key] for key in ("name", "title", "paper", "question", "seconds")},
                answer=tuple(facts["answer"]),
                differs=tuple(facts["differs"]),
                settings=facts["settings"],
                versions=facts["versions"],
                comparisons=tuple(Comparison(**one) for one in facts["comparisons"]),
                tables=tables,
                plots=plots,
                cases=tuple(
                    _load_case(one, folder / f"case_{number}")
                    for number, one in enumerate(facts["cases"])
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{str(folder)!r} holds no finished study ({error}). Give a folder that the "
                "command study wrote."
            ) from error


def _cell(value: Any) -> Any:
    """A cell of a CSV file: numbers in full, names that no spreadsheet program runs."""
    return "" if value is None else cell_text(value) if isinstance(value, str) else value


def in_words(cell: Any) -> str:
    """Return a cell as a reader wants it: 3 significant digits, nothing for what is not known."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.3f}" if 0.001 <= abs(cell) < 10 else f"{cell:.3g}"


def escaped(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _case_facts(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "labels": [
            {"name": name, "names": {str(key): text for key, text in names.items()}}
            for name, (_, names) in case.labels.items()
        ],
        "maps": len(case.maps),
        "volumes": list(case.volumes),
    }


def _save_case(case: Case, folder: Path) -> list[Path]:
    written = _save_channels(case.image, folder, "image")
    for number, (labels, _) in enumerate(case.labels.values()):
        written.append(write_volume(labels, folder / f"labels_{number}.nrrd"))
    for number, one in enumerate(case.maps):
        written += one.save(folder / f"map_{number}")
    for number, volume in enumerate(case.volumes.values()):
        written.append(write_volume(volume, folder / f"volume_{number}.nrrd"))
    return written


def _save_channels(image: Any, folder: Path, stem: str) -> list[Path]:
    volume = as_volume(image)
    return [
        write_volume(Volume(channel, volume.affine, volume.name), folder / f"{stem}_{number}.nrrd")
        for number, channel in enumerate(volume.voxels)
    ]


def _load_case(facts: Mapping[str, Any], folder: Path) -> Case:
    import numpy as np

    channels = [read_volume(path) for path in sorted(folder.glob("image_*.nrrd"), key=_number)]
    return Case(
        name=facts["name"],
        image=Volume(
            np.concatenate([one.voxels for one in channels]), channels[0].affine, facts["name"]
        ),
        labels={
            one["name"]: (
                read_volume(folder / f"labels_{number}.nrrd"),
                {int(key): text for key, text in one["names"].items()},
            )
            for number, one in enumerate(facts["labels"])
        },
        maps=tuple(Explanation.load(folder / f"map_{number}") for number in range(facts["maps"])),
        volumes={
            name: read_volume(folder / f"volume_{number}.nrrd")
            for number, name in enumerate(facts["volumes"])
        },
    )


def _number(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[1])


def _plain(value: Any) -> Any:
    """JSON values only: NaN and infinity become null, numbers of NumPy those of Python."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
