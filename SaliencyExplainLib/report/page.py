"""The report as one file: everything inside the page, nothing from elsewhere, no script."""

from __future__ import annotations

import datetime as dt
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SaliencyExplainError
from ..volume import Volume
from . import facts, plots, sections
from .markup import Html, image, joined, tag
from .style import STYLE
from .verdict import Verdict, verdict_of
from .words import number, percent, score

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..quality import Comparison, Evaluation, Ranking, SanityCheck
    from ..regions import RegionTable

__all__ = ["FIGURES", "NAME", "write_report"]

#: Names of the page and of the folder of its figures.
NAME, FIGURES = "report.html", "figures"
#: Maps a picture: what fits on a page.
_ROWS = 3
_MAP_DPI = 170
#: The browser is told to load nothing and to run nothing, even if something had slipped in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_HEADS = {
    "question": "Question",
    "maps": "Maps",
    "regions": "Segments",
    "checks": "Checks",
    "metrics": "Metrics",
    "sanity": "Sanity check",
    "ranking": "Which method?",
    "provenance": "Provenance",
}
_READ_MAPS = (
    "Radiological convention: the patient's right is at the left. In a signed map red speaks for "
    "the output and blue against it; magnitudes below a twentieth of the colour bar's end are not "
    "drawn. A map shows what the network used, not what is true of the patient."
)


@dataclass(frozen=True)
class _Found:
    """Everything that a report tells."""

    image: MetaTensor
    explanation: Explanation
    regions: RegionTable | None
    evaluation: Evaluation | None
    sanity: SanityCheck | None
    ranking: Ranking | None
    comparison: Comparison | None
    drawing: dict[str, Any]


def write_report(
    explanation: Explanation,
    image: MetaTensor,
    folder: str | Path,
    *,
    regions: RegionTable | None = None,
    evaluation: Evaluation | None = None,
    sanity: SanityCheck | None = None,
    ranking: Ranking | None = None,
    comparison: Comparison | None = None,
    contour: MetaTensor | None = None,
    contour_name: str = "mask",
    window: tuple[float, float] | None = None,
    title: str = "Explanation report",
    made: str | None = None,
) -> list[Path]:
    """Write ``report.html``, which needs no other file, and its figures as PNG.

    Parameters
    ----------
    explanation : Explanation
        The map that the report is about.
    image : MetaTensor, shape (C, I, J, K)
        The anatomy; its first channel is shown.
    folder : path
        Made if it is missing; gets ``report.html`` and ``figures/``.
    regions, evaluation, sanity, ranking, comparison : optional
        What was found; a section each. The verdict tells what was not checked.
    contour : MetaTensor, shape (1, I, J, K), optional
        Mask whose outline is drawn over the maps; ``contour_name`` says what it is.
    contour_name : str
        What the outline is.
    window : (low, high), optional
        Intensities shown as black and white.
    title : str
        Of the page.
    made : str, optional
        When it was made, in words; now (UTC) when left out.

    Returns
    -------
    list of Path
        The page first. They appear together, or not at all.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    SaliencyExplainError
        If the folder cannot be written.
    """
    from ..figure import require_matplotlib

    require_matplotlib()
    drawing: dict[str, Any] = {"window": window, "contour_name": contour_name}
    found = _Found(
        image=_as_image(image),
        explanation=_drawable(explanation),
        regions=regions,
        evaluation=evaluation,
        sanity=sanity,
        ranking=ranking,
        comparison=comparison,
        drawing=drawing | {"contour": None if contour is None else _as_image(contour)},
    )
    when = made or dt.datetime.now(dt.timezone.utc).strftime("%d %B %Y, %H:%M UTC")
    page, figures = _page(found, title, when)
    return _write(Path(folder), page, figures)


def _page(found: _Found, title: str, when: str) -> tuple[str, dict[str, bytes]]:
    """The whole page, and its figures by file name."""
    told = found.explanation
    verdict = verdict_of(told, found.evaluation, found.sanity)
    files: dict[str, bytes] = {}
    parts = [
        joined(_opening(found, files)),
        sections.checks_section(verdict.checks),
        *_measured(found, files),
        facts.provenance_section(told, when),
    ]
    body = joined(parts)
    target = str(told.target.get("output_name", "output"))
    head = f"{told.title} for “{target}” in {told.image.get('name') or 'the volume'}"
    content = joined(
        [
            tag("header", tag("h1", title), tag("p", head), tag("p", when, class_="small faint")),
            tag(
                "main",
                facts.summary(verdict, _answer(found, verdict)),
                _navigation(body),
                body,
            ),
            tag("footer", tag("p", _READ_MAPS), tag("p", _colophon(told))),
        ]
    )
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", f"{title}: {head}"),
            tag("style", Html(STYLE)),
        ),
        tag("body", content),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n", files


def _opening(found: _Found, files: dict[str, bytes]) -> list[Html]:
    """Question and maps."""
    extra = (
        {"Outline": found.drawing["contour_name"]} if found.drawing["contour"] is not None else {}
    )
    return [
        facts.question_section(found.explanation, extra),
        tag(
            "section",
            tag("h2", _HEADS["maps"], id="maps"),
            *_maps(found, [found.explanation], "maps", files),
            aria_labelledby="maps",
        ),
    ]


def _measured(found: _Found, files: dict[str, bytes]) -> list[Html]:
    """Segments, metrics, sanity check and ranking, as far as there are any."""
    made: list[Html] = []

    def kept(plot: plots.Plot | None) -> plots.Plot | None:
        if plot is not None:
            files[f"{plot.name}.png"] = plot.png
        return plot

    if found.regions is not None:
        rows = () if found.evaluation is None else found.evaluation.rows
        ends = {
            row.metric.partition(".")[2]: row.interval
            for row in rows
            if row.metric.startswith("density_ratio.") and row.interval is not None
        }
        plot = kept(plots.region_plot(found.regions))
        made.append(sections.regions_section(found.regions, plot, ends))
    if found.evaluation is not None:
        plot = kept(plots.curves_plot(found.evaluation))
        has_regions = found.regions is not None
        made.append(sections.metrics_section(found.evaluation, plot, has_regions=has_regions))
    if found.sanity is not None and found.sanity.stages:
        made.append(sections.sanity_section(found.sanity, kept(plots.sanity_plot(found.sanity))))
    if found.ranking is not None:
        plot = plots.ranking_plot(found.ranking)
        kept(plot)
        # A ranking that was read back has no maps.
        known = found.ranking.explanations
        others = [_drawable(known[one.name]) for one in found.ranking.methods if one.name in known]
        pictures = [tag("h3", "The maps, best method first")] if others else []
        pictures += _maps(found, others, "methods", files) if others else []
        made.append(sections.ranking_section(found.ranking, plot, pictures, found.comparison))
    return made


def _maps(
    found: _Found, explanations: Sequence[Explanation], name: str, files: dict[str, bytes]
) -> list[Html]:
    """Maps over the anatomy, in as many pictures as fit on pages."""
    from ..figure import draw
    from ..planes import peak_ras_mm

    # Several methods are compared at one place: the peak of the map that the report is about.
    at: Any = "peak" if len(explanations) == 1 else tuple(peak_ras_mm(found.explanation.map))
    made = []
    for start in range(0, len(explanations), _ROWS):
        rows = explanations[start : start + _ROWS]
        buffer = io.BytesIO()
        figure = draw(found.image, rows, at=at, **found.drawing)
        figure.savefig(buffer, format="png", dpi=_MAP_DPI, facecolor="white")
        number_ = f"_{start // _ROWS + 1}" if len(explanations) > _ROWS else ""
        files[f"{name}{number_}.png"] = buffer.getvalue()
        titles = ", ".join(one.title for one in rows)
        target = found.explanation.target.get("output_name", "the output")
        alternative = (
            f"Maps over the anatomy in an axial, a coronal and a sagittal plane: {titles}, for "
            f"{target}."
        )
        made.append(tag("figure", image(buffer.getvalue(), "image/png", alternative)))
    return made


def _navigation(body: str) -> Html:
    links = [
        tag("li", tag("a", title, href=f"#{identity}"))
        for identity, title in _HEADS.items()
        if f'id="{identity}"' in body
    ]
    return tag("nav", tag("ul", *links), aria_label="Sections")


def _answer(found: _Found, verdict: Verdict) -> str:
    """What was found, as the end of the summary."""
    told = found.explanation
    output = told.target.get("output_name", "the output")
    parts = [f"{told.title} explains “{output}”, whose score is {score(told)}."]
    rows = () if found.regions is None else found.regions.rows
    inside = [row for row in rows if row.label and row.voxels and row.share == row.share]
    if inside:
        dense = max(inside, key=lambda row: row.density_ratio)
        large = max(inside, key=lambda row: row.share)
        parts.append(
            f"The attribution is densest in {dense.name} ({number(dense.density_ratio, 2)} times "
            f"the volume's mean); {percent(large.share)} of it lies in {large.name}."
        )
    if found.ranking is not None:
        parts.append(found.ranking.answer)
    if verdict.state != "passed":
        parts.append("The checks below give the reasons.")
    return " ".join(parts)


def _colophon(explanation: Explanation) -> str:
    version = explanation.versions.get("saliency-explain")
    told = f"SaliencyExplain {version}" if version else "SaliencyExplain"
    return f"Made with {told}. For research; not a medical device, and not for diagnosis."


def _as_image(volume: MetaTensor | Volume) -> MetaTensor:
    """An image that figures can cut; a Volume becomes one."""
    if isinstance(volume, Volume):
        made: MetaTensor = volume.as_image()
        return made
    return volume


def _drawable(explanation: Explanation) -> Explanation:
    """An explanation whose maps are images."""
    return replace(explanation, maps=_as_image(explanation.maps))


def _write(folder: Path, page: str, figures: dict[str, bytes]) -> list[Path]:
    """Everything, or nothing where the folder cannot be written."""
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as name:
            staged = Path(name)
            (staged / NAME).write_text(page, encoding="utf-8")
            for file, data in figures.items():
                (staged / file).write_bytes(data)
            for file in figures:
                (staged / file).replace(folder / FIGURES / file)
            (staged / NAME).replace(folder / NAME)
    except OSError as error:
        raise SaliencyExplainError(
            f"The report cannot be written into {str(folder)!r} ({error.strerror or error}). "
            "Choose another folder."
        ) from error
    return [folder / NAME, *(folder / FIGURES / file for file in figures)]
