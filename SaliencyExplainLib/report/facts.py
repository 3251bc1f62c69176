"""The sections of what was asked and how it was made, and the box at the top of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .markup import Html, joined, section, tag
from .verdict import STATES, Verdict
from .words import duration, number, question, score

if TYPE_CHECKING:
    from ..explanation import Explanation

__all__ = ["provenance_section", "question_section", "summary"]

_TIMES = " \N{MULTIPLICATION SIGN} "


def summary(verdict: Verdict, answer: str) -> Html:
    """Return the box at the top: verdict and warnings first, then what was found."""
    notes = [tag("li", one) for one in verdict.warnings]
    told = tag("p", tag("strong", "Warnings of the run:")) if notes else None
    state = tag("span", STATES[verdict.state], class_=f"badge {verdict.state}")
    return tag(
        "section",
        tag("h2", verdict.headline, " ", state, id="verdict"),
        tag("p", verdict.sentence),
        told,
        tag("ul", *notes) if notes else None,
        tag("p", answer),
        class_=f"verdict {verdict.state}",
        aria_labelledby="verdict",
    )


def question_section(explanation: Explanation, names: Mapping[str, str]) -> Html:
    """Return what was asked, with all that defines it."""
    target, scan, model = explanation.target, explanation.image, explanation.model
    rows = [
        ("Model", _model(model)),
        ("Volume", _volume(scan)),
        ("Output", f"{target.get('output_name', '')} (number {target.get('output')})"),
        ("Region", _region(target)),
        ("Explained score", score(explanation)),
    ]
    if target.get("contrast_name"):
        rows.append(("Against", str(target["contrast_name"])))
    rows.append(("Method", explanation.title))
    if explanation.layers:
        rows.append(("Layers", ", ".join(explanation.layers)))
    rows += list(names.items())
    return section("question", "Question", tag("p", question(explanation)), _facts(rows))


def provenance_section(explanation: Explanation, made: str) -> Html:
    """Return all that is needed to make the map again."""
    scan = explanation.image
    memory = explanation.peak_memory_mb
    rows = [("Method", f"{explanation.method} ({explanation.title})")]
    rows += [(f"Parameter {key}", _plain(one)) for key, one in explanation.parameters.items()]
    rows += [
        ("Cost of the map", duration(explanation.seconds) + _memory(memory)),
        ("Unit of the map", explanation.unit or "map unit"),
    ]
    rows += [(f"Model: {key}", _plain(one)) for key, one in explanation.model.items()]
    rows += [("Volume", _volume(scan))]
    if "ijk_to_ras" in scan:
        rows += [("Volume: IJK to RAS, mm", _matrix(scan["ijk_to_ras"]))]
    rows += [("Versions", ", ".join(f"{key} {one}" for key, one in explanation.versions.items()))]
    rows += [("Report made", made)]
    return section("provenance", "Provenance", _facts(rows))


def _model(model: Mapping[str, Any]) -> str:
    parts = [str(model.get("name") or model.get("class") or "network in memory")]
    if model.get("title"):
        parts.append(str(model["title"]))
    if model.get("version"):
        parts.append(f"version {model['version']}")
    if model.get("sha256"):
        parts.append(f"SHA-256 {str(model['sha256'])[:12]}…")
    return ", ".join(parts)


def _volume(scan: Mapping[str, Any]) -> str:
    told = str(scan.get("name") or "volume in memory")
    shape = scan.get("shape_cijk")
    if shape:
        told += f", {shape[0]} channel{'s' if shape[0] != 1 else ''}"
        told += f", {_TIMES.join(str(one) for one in shape[1:])} voxels"
    if "ijk_to_ras" in scan:
        sizes = np.linalg.norm(np.asarray(scan["ijk_to_ras"], dtype=float)[:3, :3], axis=0)
        told += f" of {_TIMES.join(f'{one:.3g}' for one in sizes)} mm"
    return told


def _region(target: Mapping[str, Any]) -> str:
    told = str(target.get("region") or "whole output")
    which = target.get("instance")
    if isinstance(which, Mapping):
        told += f" {which.get('number')} of {which.get('of')}"
    if target.get("region_voxels"):
        told += f", {target['region_voxels']:,} voxels"
    if target.get("region_ml"):
        told += f", {number(float(target['region_ml']))} ml"
    return told


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    return "none" if value is None else str(value)


def _matrix(rows: Sequence[Sequence[float]]) -> str:
    return "; ".join(" ".join(f"{one:.6g}" for one in row) for row in rows)


def _memory(memory: float | None) -> str:
    return "" if memory is None else f", {number(memory)} MB at most"


def _facts(rows: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", *(joined([tag("dt", name), tag("dd", told)]) for name, told in rows))
