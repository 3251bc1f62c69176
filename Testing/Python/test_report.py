"""The report: one page, whole in itself, escaped, valid, readable, the verdict first."""

from __future__ import annotations

import base64
import itertools
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from report_cases import (
    NAMES,
    a_comparison,
    a_labelmap,
    a_map,
    a_ranking,
    a_row,
    a_sanity,
    a_scan,
    an_evaluation,
    curve,
    everything,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib import errors
from SaliencyExplainLib.report import markup, verdict_of, words
from SaliencyExplainLib.report.plots import MOST_BARS, region_plot

WHEN = "21 November 2026, 10:00 UTC"
MINUS = "\N{MINUS SIGN}"
_VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Elements with their attributes and text, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.raw = text
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self._say("\n")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self._say(data)

    def _say(self, data):
        if "style" in self._open:
            return
        self.pieces.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def row(self, start: str) -> list[str]:
        """Cells of the row whose first cell starts so."""
        return next(row for row in self.rows if row and row[0].startswith(start))


def page_of(folder, **changes) -> Page:
    given = {**everything(), **changes}
    written = sx.write_report(
        given.pop("explanation"), given.pop("image"), folder, made=WHEN, **given
    )
    return Page(written[0].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Page and folder of a report with one finding of each kind."""
    folder = tmp_path_factory.mktemp("full")
    return page_of(folder), folder


# One page, whole in itself


def test_the_page_is_valid_html(full):
    html5lib = pytest.importorskip("html5lib", reason="the validity of HTML needs html5lib")
    parser = html5lib.HTMLParser(strict=True)
    parser.parse((full[1] / "report.html").read_bytes())
    assert parser.errors == []
    with pytest.raises(Exception, match=r"."):
        parser.parse("<!DOCTYPE html><title>x</title><p><table></b>")


def test_nothing_comes_from_elsewhere_and_no_script_is_there(full):
    page, _ = full
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"} & {
        name for name, _ in page.tags
    }
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "srcset"]
        assert (attributes.get("src") or "data:").startswith(
            "data:image/"
        ) or "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", page.raw, re.DOTALL).group(1)
    assert not re.search(r"url\(|@import|expression|https?:", style)


def test_the_pictures_inside_load_nothing_either(full):
    kinds = []
    for one in full[0].all("img"):
        head, _, data = one["src"].partition(",")
        kinds.append(head)
        picture = base64.b64decode(data, validate=True)
        if head == "data:image/png;base64":
            assert picture.startswith(b"\x89PNG")
            continue
        for element in ElementTree.fromstring(picture).iter():
            assert not element.tag.endswith(("}script", "}image", "}foreignObject"))
            links = [value for key, value in element.attrib.items() if key.endswith("href")]
            assert all(link.startswith("#") for link in links)
            assert "url(http" not in element.attrib.get("style", "")
    assert set(kinds) == {"data:image/png;base64", "data:image/svg+xml;base64"}


def test_the_browser_is_told_to_load_and_run_nothing(full):
    policy = next(
        one["content"]
        for one in full[0].all("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_the_figures_are_written_as_png_too(full):
    from matplotlib.image import imread

    files = {path.name for path in (full[1] / "figures").iterdir()}
    wanted = {"maps", "regions", "curves", "sanity", "ranking", "methods"}
    assert files == {f"{name}.png" for name in wanted}
    for file in files:
        pixels = imread(full[1] / "figures" / file)
        assert pixels.shape[1] > 1000
        assert pixels[..., :3].std() > 0.05


def test_the_same_findings_give_the_same_page(full, tmp_path):
    page_of(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (full[1] / "report.html").read_bytes()


# Names are text


HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>&amp;'$\\frac{x$"


def test_hostile_names_are_shown_as_text(tmp_path):
    explanation = a_map(
        warnings=(HOSTILE,),
        title=HOSTILE,
        layers=(HOSTILE,),
        unit=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        image={"name": HOSTILE, "shape_cijk": [1, 2, 2, 2]},
        model={"name": HOSTILE, HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        target={"output": 1, "output_name": HOSTILE, "region": "everywhere", "score": "logit",
                "reduce": "sum", "contrast_name": HOSTILE},
    )  # fmt: skip
    row = a_row("deletion.control", 0.1, title=HOSTILE, reading=HOSTILE, unit=HOSTILE)
    found = a_ranking((HOSTILE, "grad_cam", "third"))
    page = page_of(
        tmp_path,
        explanation=explanation,
        regions=sx.region_table(explanation, a_labelmap(), {1: HOSTILE, 2: "spleen"}),
        evaluation=an_evaluation(*curve("deletion", 0.1, 0.2), row, skipped=((HOSTILE, HOSTILE),)),
        sanity=a_sanity(sentence=HOSTILE),
        ranking=found,
        comparison=a_comparison((HOSTILE, "grad_cam", "third")),
        contour=a_labelmap(),
        contour_name=HOSTILE,
        title=HOSTILE,
    )
    assert page.all("script") == []
    assert all(one["src"].startswith("data:") for one in page.all("img"))
    assert not [one for _, one in page.tags if "onerror" in one]
    assert page.text.count(HOSTILE) > 20
    assert page.row(HOSTILE)[0] == HOSTILE


def test_what_html_does_not_allow_is_replaced():
    made = markup.tag("p", "a\x00b\x1bc\u202ed\ud800e\nf", title='"<')
    assert made == '<p title="&quot;&lt;">a\ufffdb\ufffdc\ufffdd\ufffde\nf</p>'
    assert isinstance(made, markup.Html)
    assert markup.joined([made, None, "<"]) == f"{made}&lt;"


def test_a_text_that_looks_escaped_is_escaped_again():
    assert markup.tag("b", "&lt;") == "<b>&amp;lt;</b>"


# What stands in it


def test_the_verdict_and_the_warnings_come_first(full):
    text = full[0].text
    places = [
        text.index(words_)
        for words_ in (
            "No check speaks against this map",
            "Of 3 checks 3 passed.",
            "The layer feeds an instance norm.",
            "Made up explains “output 1”",
            "Which voxels of scan.nii.gz made tissue give “output 1”",
        )
    ]
    assert places == sorted(places)


def test_every_section_has_a_place_in_the_navigation(full):
    links = {one["href"] for one in full[0].all("a")}
    names = ("question", "maps", "regions", "checks", "metrics", "sanity", "ranking", "provenance")
    assert links == {f"#{name}" for name in names}
    ids = [one["id"] for _, one in full[0].tags if "id" in one]
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in links} <= set(ids)


def test_each_metric_has_value_interval_direction_and_words(full):
    row = full[0].row("Faithfulness correlation")
    assert row[1:4] == ["0.640", "0.410 to 0.790", "↑ higher"]
    assert row[4].startswith("What faithfulness_correlation found.")
    assert "Scale: 1: exactly" in row[4]
    assert "Does the map foretell" in row[0]
    assert full[0].row("Deletion curve")[3] == "↓ lower"
    assert full[0].row("Complexity\n")[1] == "11.9 nat"
    assert full[0].row("Completeness error")[1] == "not defined"
    assert "Not measured: vxap needs --truth." in full[0].text


def test_segments_have_numbers_units_and_the_interval_of_their_density(full):
    page, _ = full
    table = everything()["regions"]
    spleen, liver = table["spleen"], table["liver"]
    heads = next(row for row in page.rows if row[0] == "Segment")
    assert heads[1] == "Volume, ml"
    row = page.row("spleen")
    assert row[1] == words.number(spleen.volume_ml)
    assert row[2] == words.percent(spleen.share)
    assert row[heads.index("95% interval")] == "2.90 to 4.10"
    assert row[-1] == f"{MINUS}16.0, 12.0, 15.0"
    # The densest is first; what lies outside all segments is last.
    order = [one[0] for one in page.rows if one[0] in ("spleen", "liver", "outside")]
    assert order == ["spleen", "liver", "outside"]
    assert spleen.density_ratio > liver.density_ratio
    # Told once: not among the metrics again.
    assert page.text.count("What density_ratio.spleen found.") == 0


def test_the_densities_of_segments_stay_metrics_where_there_is_no_table(tmp_path):
    page = page_of(tmp_path, regions=None)
    assert "What density_ratio.spleen found." in page.text


def test_ranking_and_likeness_are_told(full):
    page, _ = full
    row = page.row("Gradient\ngradient")
    assert row[1:4] == ["1.25", "1.00 to 1.50", "75.0%"]
    assert "not told apart from the best" in page.row("Grad_Cam")[0]
    assert "score_cam: It ran out of memory." in page.text
    heads = next(row for row in page.rows if row[0] == "Method")
    assert "deletion ↓" in heads
    assert page.row("grad_cam")[1:] == ["0.37", "1.00"]


def test_a_pair_that_cannot_be_compared_is_said_so(tmp_path):
    names = ("gradient", "grad_cam", "third")
    page = page_of(tmp_path, ranking=a_ranking(names), comparison=a_comparison(names))
    assert page.row("third")[1:] == ["not defined", "0.37", "1.00"]
    assert "Without scikit-image SSIM was left out." in page.text


def test_many_maps_are_numbered_and_drawn_three_a_picture(tmp_path):
    names = tuple(f"method_{number}" for number in range(7))
    page = page_of(tmp_path, ranking=a_ranking(names), comparison=a_comparison(names))
    assert page.row("7. method_6")[-1] == "1.00"
    drawn = sorted(path.name for path in (tmp_path / "figures").glob("methods*"))
    assert drawn == ["methods_1.png", "methods_2.png", "methods_3.png"]


def test_the_stages_of_the_sanity_check_are_told(full):
    row = full[0].row("layer1.conv")
    assert row[0] == "layer1.conv, layer1.norm"
    assert row[1:4] == ["50.0%", "0.31", "0.21"]
    assert row[-1] == "2.00"
    assert full[0].row("layer3")[2] == "0.00"
    assert "2 draws a stage, seed 0" in full[0].text


def test_provenance_lets_the_map_be_made_again(full):
    text = full[0].text
    size = "12 x 14 x 10 voxels of 2 x 2 x 3 mm".replace(" x ", " \N{MULTIPLICATION SIGN} ")
    told = ("19547882c1b5" * 4, "torch 2.13.0", "Parameter blur_mm", WHEN, "431 MB", size)
    assert [one for one in told if one not in text] == []
    assert "-2 0 0 0; 0 2 0 0; 0 0 3 0; 0 0 0 1" in text
    assert "not a medical device" in text


def test_a_map_alone_makes_a_report_that_says_nothing_was_checked(tmp_path):
    written = sx.write_report(a_map(), a_scan(), tmp_path, made=WHEN)
    page = Page(written[0].read_text(encoding="utf-8"))
    assert "Nothing was checked yet" in page.text
    assert "A map that was not checked is a picture, not evidence." in page.text
    assert {path.name for path in tmp_path.rglob("*.png")} == {"maps.png"}
    assert "#metrics" not in {one["href"] for one in page.all("a")}


def test_a_saved_explanation_can_be_reported(tmp_path):
    a_map().save(tmp_path / "saved")
    read = sx.Explanation.load(tmp_path / "saved")
    scan = sx.read_image([_saved_scan(tmp_path)])
    page = Page(sx.write_report(read, scan, tmp_path / "out")[0].read_text(encoding="utf-8"))
    assert "Nothing was checked yet" in page.text


def _saved_scan(folder):
    sx.write_image(a_scan(), folder / "scan.nrrd")
    return folder / "scan.nrrd"


# For everybody


def test_pictures_and_tables_can_be_read_aloud(full):
    page, _ = full
    assert page.all("html") == [{"lang": "en"}]
    assert all(len(one["alt"]) > 30 for one in page.all("img"))
    assert {one["scope"] for one in page.all("th")} <= {"col", "row", "rowgroup"}
    assert len(page.all("caption")) == len(page.all("table")) == 6
    headings = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h\d", name)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    labelled = [one["aria-labelledby"] for one in page.all("section")]
    assert set(labelled) <= {one["id"] for one in page.all("h2")}


def test_states_are_told_by_a_sign_and_a_word_not_by_colour_alone(full):
    badges = [cell for row in full[0].rows for cell in row if cell in ("✓ passed", "○ not judged")]
    assert len(badges) == 6


def luminance(colour: str) -> float:
    parts = [int(part, 16) / 255 for part in re.findall("..", colour.lstrip("#"))]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_texts_have_the_contrast_that_wcag_aa_asks_for(full):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    style = re.search(r"<style>(.*?)</style>", full[0].raw, re.DOTALL).group(1)
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        found = dict(re.findall(r"--([\w-]+): (#\w+)", block))
        colours = {
            key: f"#{''.join(2 * one for one in value[1:])}" if len(value) == 4 else value
            for key, value in found.items()
        }
        pairs = [(name, "paper") for name in ("ink", "faint", "link")]
        pairs += [("ink", "head"), ("faint", "head")]
        pairs += [(name, f"{name}-back") for name in ("good", "bad", "open", "none")]
        pairs += [("ink", f"{name}-back") for name in ("good", "bad", "open", "none")]
        for text, back in pairs:
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)


# Numbers


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (78215, "78,215"),
        (0.04268, "0.0427"),
        (7.2875, "7.29"),
        (-0.5, f"{MINUS}0.500"),
        (3.8e-5, "3.80·10⁻⁵"),
        (1234567.0, "1.23·10⁶"),
        (432.4, "432"),
        (0.0, "0"),
        (None, "not defined"),
        (float("nan"), "not defined"),
        (float("-inf"), f"{MINUS}∞"),
    ],
)
def test_numbers_have_digits_that_mean_something(value, told):
    assert words.number(value) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.1234, "12.3%"), (0.0042, "0.42%"), (0.00951, "1.0%"), (1.0, "100%"), (0.0, "0%"),
     (float("nan"), "not defined"), (None, "not defined")],
)  # fmt: skip
def test_parts_are_percent(share, told):
    assert words.percent(share) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.034, "0.03 s"), (12.34, "12.3 s"), (75, "1 min 15 s"), (59.99, "60.0 s"),
     (5000, "1 h 23 min")],
)  # fmt: skip
def test_times_have_the_unit_that_suits_them(seconds, told):
    assert words.duration(seconds) == told


def test_the_question_tells_rival_and_region():
    target = {"output_name": "tumour", "region": "prediction", "region_voxels": 1234,
              "contrast_name": "cyst"}  # fmt: skip
    asked = words.question(a_map(target=target))
    assert asked == (
        "Which voxels of scan.nii.gz made tissue give “tumour” rather than “cyst” its score where "
        "the network predicts it (1,234 voxels)?"
    )


# The verdict


def state_of(check: str, *rows, sanity=None, **facts) -> str:
    found = verdict_of(a_map(**facts), an_evaluation(*rows) if rows else None, sanity)
    return next(one.state for one in found.checks if one.name == check)


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([*curve("deletion", 0.2, 0.5), *curve("insertion", 0.8, 0.5)], "passed"),
        ([*curve("deletion", 0.5, 0.2), *curve("insertion", 0.5, 0.8)], "failed"),
        ([*curve("deletion", 0.2, 0.5), *curve("insertion", 0.5, 0.8)], "unclear"),
        ([*curve("insertion", 0.5, 0.5)], "failed"),
        ([a_row("deletion", 0.2)], "untested"),
        ([a_row("deletion", None), a_row("deletion.control", 0.2)], "untested"),
    ],
)
def test_a_map_is_held_against_a_random_one(rows, state):
    assert state_of("better than a random map", *rows) == state


@pytest.mark.parametrize(
    ("value", "ends", "state"),
    [(0.5, (0.2, 0.7), "passed"), (0.2, (-0.1, 0.5), "unclear"), (-0.1, (-0.3, 0.2), "failed"),
     (0.0, None, "failed"), (0.4, None, "passed"), (None, None, "untested")],
)  # fmt: skip
def test_foretelling_needs_an_interval_above_zero(value, ends, state):
    row = a_row("faithfulness_correlation", value, interval=ends)
    assert state_of("foretells changes of the score", row) == state


@pytest.mark.parametrize(
    ("error", "state"),
    [(0.0, "passed"), (0.05, "passed"), (0.1, "unclear"), (0.21, "failed"), (None, "untested")],
)
def test_completeness_is_judged_of_methods_that_promise_it(error, state):
    row = a_row("completeness", 0.9)
    assert state_of("adds up to the score", row, completeness_error=error) == state


@pytest.mark.parametrize(
    ("noise", "shift", "state"),
    [(0.95, 0.93, "passed"), (0.95, 0.7, "unclear"), (0.5, 0.95, "failed"),
     (None, 0.95, "passed"), (None, None, "untested")],
)  # fmt: skip
def test_a_map_must_repeat_under_noise_and_shift(noise, shift, state):
    rows = [a_row("repeatability_noise", noise), a_row("repeatability_shift", shift)]
    assert state_of("repeats", *rows) == state


@pytest.mark.parametrize(("mass", "state"), [(0.3, "passed"), (0.1, "failed"), (0.05, "failed")])
def test_known_evidence_must_get_more_than_an_even_map_gives(mass, state):
    row = a_row("relevance_mass", mass, details={"even_map": 0.1})
    assert state_of("finds the known evidence", row) == state


@pytest.mark.parametrize(
    ("verdict", "state"),
    [("sensitive", "passed"), ("insensitive", "failed"), ("unclear", "unclear")],
)
def test_the_sanity_check_has_its_own_verdict(verdict, state):
    assert state_of("depends on what the network learned", sanity=a_sanity(verdict)) == state


def test_a_map_that_ignores_the_weights_is_no_evidence_whatever_else_passes():
    found = verdict_of(a_map(), an_evaluation(), a_sanity("insensitive"))
    assert (found.state, found.headline) == ("failed", "Do not read this map as evidence")
    assert "1 failed (depends on what the network learned)" in found.sentence
    assert found.warnings == ("The layer feeds an instance norm.",)


def test_one_failed_check_is_a_doubt_and_an_unclear_one_a_care():
    good = curve("deletion", 0.2, 0.5)
    bad = a_row("faithfulness_correlation", -0.5)
    open_ = a_row("faithfulness_correlation", 0.1, interval=(-0.1, 0.3))
    assert verdict_of(a_map(), an_evaluation(*good, bad)).headline == "Read this map with doubt"
    assert verdict_of(a_map(), an_evaluation(*good, open_)).headline == "Read this map with care"


def test_a_map_without_content_shows_nothing():
    empty = a_map()
    empty.maps[:] = 0.0
    assert verdict_of(empty, an_evaluation()).headline == "The map shows nothing"


def test_the_verdict_is_json():
    import json

    told = verdict_of(a_map(), an_evaluation(), a_sanity()).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert [one["state"] for one in told["checks"]] == ["passed"] * 3 + ["untested"] * 3


# Plots


def test_bars_are_the_numbers_of_the_table():
    table = everything()["regions"]
    made = region_plot(table)
    text = made.svg.decode()
    for name in NAMES.values():
        assert f">{name}<" in text
        assert f">{100 * table[name].share:.1f}<" in text
        assert f">{table[name].density_ratio:.2f}<" in text
    assert f"density ratio {table['spleen'].density_ratio:.2f}" in made.alternative


def test_a_dollar_sign_in_a_name_starts_no_formula():
    name = r"$\frac{x$"
    table = sx.region_table(a_map(), a_labelmap(), {1: name, 2: "$x^2$"})
    text = region_plot(table).svg.decode()
    assert f">{name}<" in text
    assert ">$x^2$<" in text


def test_a_plot_of_many_segments_shows_the_densest():
    labels = np.zeros((12, 14, 10))
    labels.ravel()[: 40 * 20] = np.repeat(np.arange(1, 41), 20)
    table = sx.region_table(a_map(), sx.make_image(labels, np.diag([-2.0, 2.0, 3.0, 1.0])))
    made = region_plot(table)
    dense = sorted((row for row in table.rows if row.label), key=lambda row: -row.density_ratio)
    shown = re.findall(r">(segment \d+)<", made.svg.decode())
    assert shown == [row.name for row in dense[:MOST_BARS]]
    assert f"The {MOST_BARS} densest of 40." in made.caption


def test_a_table_without_segments_has_no_plot():
    assert region_plot(sx.region_table(a_map(), sx.make_image(np.zeros((12, 14, 10)), np.eye(4)))) \
        is None  # fmt: skip


def test_a_sanity_check_whose_map_vanished_can_be_drawn(tmp_path):
    from dataclasses import replace

    found = a_sanity()
    gone = {"spearman_absolute": float("nan"), "spearman": float("nan"), "everywhere": 0.1}
    stages = tuple(replace(one, similarity=gone) for one in found.stages)
    page = page_of(tmp_path, sanity=replace(found, stages=stages, alike=float("nan")))
    assert page.row("layer0")[2] == "not defined"


# Failures


def test_matplotlib_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.MissingPackageError, match="pip install 'matplotlib"):
        sx.write_report(a_map(), a_scan(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.SaliencyExplainError, match=r"cannot be written .*Choose another"):
        sx.write_report(a_map(), a_scan(), tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_page_that_fails_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("SaliencyExplainLib.report.plots.ranking_plot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_of(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# A real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Run Chromium without a window; its standard output."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next((one for one in found if one), None)
    if program is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    home = tmp_path_factory.mktemp("profile")

    def run(*words_: str) -> str:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
        ]
        command += [f"--user-data-dir={home}", *words_]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_a_real_browser_runs_nothing(browser, tmp_path):
    hostile = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    page_of(
        tmp_path,
        regions=sx.region_table(a_map(), a_labelmap(), {1: hostile, 2: "spleen"}),
        title=hostile,
    )
    told = browser("--dump-dom", f"file://{tmp_path / 'report.html'}")
    assert "<title>run" not in told
    assert "Content Security Policy" not in told
    assert told.count("<h2") == 9


@pytest.mark.slow
def test_a_real_browser_prints_it_on_a4(browser, full, tmp_path):
    pdf = tmp_path / "report.pdf"
    browser(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{full[1] / 'report.html'}")
    raw = pdf.read_bytes()
    assert raw.startswith(b"%PDF")
    sizes = {tuple(float(one) for one in box.split()[2:])
             for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", raw)}  # fmt: skip
    assert len(sizes) == 1
    assert sizes.pop() == pytest.approx((595.3, 841.9), abs=1)
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", raw)) <= 9
