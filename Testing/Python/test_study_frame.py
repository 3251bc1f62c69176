"""What all studies share: work that is kept, training that goes on, results, page, scene, shell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import SaliencyExplainLib as sx
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.errors import Cancelled, SceneError, StudyError
from SaliencyExplainLib.studies import Study, StudyResult, studies
from SaliencyExplainLib.studies.results import (
    Case,
    Comparison,
    StudyFigure,
    StudyPlot,
    StudyTable,
)
from SaliencyExplainLib.studies.training import seeded, train
from SaliencyExplainLib.studies.work import Work

AFFINE = np.array([[2.0, 0, 0, -9], [0, 3, 0, 4], [0, 0, 4, 11], [0, 0, 0, 1]])


def _explanation(image: sx.Volume) -> sx.Explanation:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1))
    model = sx.load_model(network, task="segmentation", labels=["background", "spot"])
    return sx.explain(model, image.as_image(), sx.Target(output=1, region="everywhere"), "gradient")


@pytest.fixture(scope="module")
def result() -> StudyResult:
    from matplotlib.figure import Figure

    chance = np.random.default_rng(3)
    image = sx.Volume(chance.normal(size=(8, 7, 6)), AFFINE, "scan")
    labels = sx.Volume((chance.uniform(size=(8, 7, 6)) > 0.5).astype(np.float32), AFFINE)
    figure = Figure(figsize=(2, 1))
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0, 1])
    return StudyResult(
        name="made_up",
        title="A made-up study",
        paper="Nobody 2020",
        question="Does it hold?",
        answer=("It holds in 3 of 4 cases.",),
        comparisons=(Comparison("Dice", "0.99", "0.75", "differs", "other data | less of it"),),
        differs=("Nothing is real.",),
        tables=(
            StudyTable("dice", "Dice by tissue", ("tissue", "Dice", "voxels"), (("GM", 0.5, 7),)),
            StudyTable("gaps", "Gaps", ("name", "value"), (("a", math.nan), ("b", None))),
        ),
        figures=(StudyFigure("made_up-map", "A line.", figure),),
        plots=(
            StudyPlot("by_name", "By name", "method", "Dice", ("a", "b"), {"ours": (1, 2)}, "bar"),
            StudyPlot("curve", "Curve", "mm", "Dice", (0.0, 1.0), {"a": (1, 2), "b": (3, 4)}),
        ),
        cases=(
            Case(
                "case 1",
                image,
                {"truth": (labels, {1: "spot", 2: "absent"})},
                (_explanation(image),),
                {"mask": labels},
            ),
        ),
        settings={"quick": False, "seed": 4, "steps": 20},
        seconds=12.0,
        versions={"torch": "2"},
    )


# -- work


def test_cases_that_are_measured_are_not_measured_again(tmp_path):
    asked = []

    def measure(key):
        asked.append(key)
        return {"value": key * 0.5, "gap": math.nan}

    with Work("one", tmp_path) as work:
        first = work.cases("dice", [1, 2], measure)
    with Work("one", tmp_path) as work:
        second = work.cases("dice", [2, 1, 3], measure)
    assert asked == [1, 2, 3]
    assert [one["value"] for one in second] == [1.0, 0.5, 1.5]
    assert math.isnan(first[0]["gap"])
    assert math.isnan(second[0]["gap"])


def test_half_a_line_of_a_killed_run_is_measured_again(tmp_path):
    with Work("one", tmp_path) as work:
        work.cases("dice", ["a", "b"], lambda key: {"key": key})
    file = tmp_path / "work/dice.jsonl"
    file.write_text(file.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    asked = []
    with Work("one", tmp_path) as work:
        found = work.cases("dice", ["a", "b"], lambda key: asked.append(key) or {"key": key})
    assert asked == ["b"]
    assert [one["key"] for one in found] == ["a", "b"]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


def test_a_damaged_line_is_told_in_a_sentence(tmp_path):
    with Work("one", tmp_path) as work:
        work.cases("dice", ["a"], lambda key: {"key": key})
    (tmp_path / "work/dice.jsonl").write_text("nonsense\n", encoding="utf-8")
    with Work("one", tmp_path) as work, pytest.raises(StudyError, match=r"damaged .*--restart"):
        work.cases("dice", ["a"], lambda key: {"key": key})


def test_the_time_of_earlier_runs_counts(tmp_path):
    with Work("one", tmp_path):
        pass
    (tmp_path / "work/seconds.json").write_text("100.0", encoding="utf-8")
    with Work("one", tmp_path) as work:
        assert 100 < work.seconds() < 130


@pytest.mark.parametrize(
    ("name", "options"), [("two", {}), ("one", {"quick": True}), ("one", {"seed": 9})]
)
def test_a_folder_of_another_study_or_setting_is_refused(tmp_path, name, options):
    with Work("one", tmp_path):
        pass
    with pytest.raises(StudyError, match=r"holds the study one \(standard, seed 1\); asked for"):
        Work(name, tmp_path, **options)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(StudyError, match="cannot be written"):
        Work("one", blocked)


def test_parts_nest_and_what_is_told_lies_inside_of_them():
    told = []
    work = Work("one", progress=lambda fraction, _message: told.append(round(fraction, 6)))
    with work.part(0.5, 1.0):
        work.tell(0.0, "")
        with work.part(0.5, 1.0):
            work.tell(0.0, "")
            work.tell(2.0, "")
    work.tell(0.25, "")
    assert told == [0.5, 0.75, 1.0, 0.25]


def test_a_value_is_made_once_and_comes_back_as_json_gives_it(tmp_path):
    made = []
    for _ in range(2):
        with Work("one", tmp_path) as work:
            value = work.remembered("facts", lambda: made.append(1) or {"a": (1, 2)})
            assert value == {"a": [1, 2]}
    assert len(made) == 1


# -- training


def _net() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )


def _loss(network: torch.nn.Module, chance: np.random.Generator) -> torch.Tensor:
    given = torch.tensor(chance.normal(size=(16, 3)), dtype=torch.float32)
    return ((network(given)[:, 0] - given.sum(1)) ** 2).mean()


def test_training_brings_the_loss_down_and_leaves_a_network_to_explain():
    network = seeded(_net, 1)
    losses = train(Work("one"), "net", network, _loss, steps=300, learning_rate=0.02)
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:20])
    assert not network.training
    assert all(one.grad is None for one in network.parameters())


def test_a_stopped_training_ends_like_one_that_was_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("SaliencyExplainLib.studies.training._KEEP_EVERY_S", 0.0)
    whole = seeded(_net, 1)
    expected = train(Work("one"), "net", whole, _loss, steps=30)
    steps = []
    with pytest.raises(Cancelled), Work("one", tmp_path, cancelled=lambda: len(steps) > 11) as work:
        train(work, "net", seeded(_net, 1), lambda n, c: steps.append(1) or _loss(n, c), steps=30)
    again = seeded(_net, 1)
    with Work("one", tmp_path) as work:
        losses = train(work, "net", again, lambda n, c: steps.append(1) or _loss(n, c), steps=30)
    assert len(steps) == 30
    assert losses == expected
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    kept = seeded(_net, 2)
    with Work("one", tmp_path) as work:
        assert train(work, "net", kept, _loss, steps=30) == expected
    assert torch.equal(next(kept.parameters()), next(whole.parameters()))


def test_the_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (next(seeded(_net, seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


# -- results


def test_what_is_saved_comes_back(result, tmp_path):
    files = result.save(tmp_path)
    assert files[0] == tmp_path / "made_up.md"
    assert all(file.is_file() for file in files)
    back = StudyResult.load(tmp_path)
    for name in ("name", "title", "answer", "comparisons", "differs", "settings", "seconds"):
        assert getattr(back, name) == getattr(result, name)
    assert back.table("dice") == result.table("dice")
    assert back.table("gaps").rows == (("a", None), ("b", None))
    assert [(one.x, dict(one.series)) for one in back.plots] == [
        (one.x, dict(one.series)) for one in result.plots
    ]
    case, expected = back.cases[0], result.cases[0]
    np.testing.assert_array_equal(case.image.voxels, expected.image.voxels)
    np.testing.assert_allclose(case.image.affine, AFFINE, atol=1e-9)
    assert case.labels["truth"][1] == {1: "spot", 2: "absent"}
    np.testing.assert_array_equal(case.volumes["mask"].voxels, expected.volumes["mask"].voxels)
    np.testing.assert_array_equal(case.maps[0].map.voxels[0], expected.maps[0].map[0].numpy())


def test_an_image_of_twelve_channels_comes_back_in_order(tmp_path):
    voxels = np.arange(12.0)[:, None, None, None] * np.ones((12, 2, 2, 2))
    made = StudyResult("n", "t", "", "q", (), cases=(Case("c", sx.Volume(voxels, AFFINE)),))
    made.save(tmp_path)
    np.testing.assert_array_equal(StudyResult.load(tmp_path).cases[0].image.voxels, voxels)


def test_the_page_shows_question_answer_and_both_figures(result):
    from SaliencyExplainLib.studies.page import page

    text = page(result)
    assert "# A made-up study" in text
    assert "- It holds in 3 of 4 cases." in text
    assert r"| Dice | 0.99 | 0.75 | differs | other data \| less of it |" in text
    assert "| GM | 0.500 | 7 |" in text
    assert "![A line.](made_up-map.png)" in text
    assert "study made_up --seed 4 --output DIR" in text


def test_a_folder_without_a_study_is_told_in_a_sentence(tmp_path):
    with pytest.raises(StudyError, match="holds no finished study"):
        StudyResult.load(tmp_path)


def test_tables_plots_and_verdicts_that_do_not_fit_are_refused():
    with pytest.raises(StudyError, match="has 2 columns; a row has 1"):
        StudyTable("t", "T", ("a", "b"), ((1,),))
    with pytest.raises(StudyError, match="has 1 values for 2 positions"):
        StudyPlot("p", "P", "x", "y", (1, 2), {"s": (1,)})
    with pytest.raises(StudyError, match="line, bar or scatter"):
        StudyPlot("p", "P", "x", "y", (), {}, "pie")
    with pytest.raises(StudyError, match="'maybe' is unknown"):
        Comparison("a", "b", "c", "maybe", "d")


def test_an_unknown_table_is_told_with_the_known_ones(result):
    with pytest.raises(StudyError, match="Its tables are dice, gaps"):
        result.table("none")


# -- scene


def test_a_study_in_a_scene_comes_back_from_a_file(result, tmp_path):
    scene = sx.scene.new_scene()
    try:
        nodes = sx.scene.publish_study(result, scene)
        assert [one.GetName() for one in nodes.volumes] == ["case 1", "case 1 mask"]
        assert len(nodes.maps) == 1
        assert (
            nodes.maps[0].volumes[0].GetNodeReferenceID("SaliencyExplain.inputVolume")
            == nodes.volumes[0].GetID()
        )
        assert [one.GetNumberOfPlotSeriesNodes() for one in nodes.charts] == [1, 2]
        sx.scene.save_mrb(scene, tmp_path / "study.mrb")
    finally:
        sx.scene.release_scene(scene)
    back = sx.scene.load_mrb(tmp_path / "study.mrb")
    try:
        table = back.GetFirstNodeByName("Dice by tissue")
        assert [table.GetTable().GetValue(0, index).ToString() for index in range(3)] == [
            "GM",
            "0.5",
            "7",
        ]
        compared = back.GetFirstNodeByName("A made-up study: published figures beside ours")
        assert compared.GetTable().GetValue(0, 3).ToString() == "differs"
        segmentation = back.GetFirstNodeByName("case 1 truth").GetSegmentation()
        assert segmentation.GetNumberOfSegments() == 1
    finally:
        sx.scene.release_scene(back)


def test_a_study_that_cannot_be_published_leaves_the_scene_as_it_was(result, monkeypatch):
    import SaliencyExplainLib.scene.study as home

    scene = sx.scene.new_scene()
    try:
        kept = sx.scene.add_image(scene, result.cases[0].image, "mine")[0]
        hierarchy_of = home.slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode
        before = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
        items = hierarchy_of(scene).GetNumberOfItems()

        def refuse(*_args, **_options):
            raise SceneError("no room")

        monkeypatch.setattr(home, "publish", refuse)
        with pytest.raises(SceneError, match="no room"):
            sx.scene.publish_study(result, scene)
        after = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
        added = [scene.GetNodeByID(one).GetClassName() for one in after - before]
        assert set(added) <= {"vtkMRMLSubjectHierarchyNode"}
        assert hierarchy_of(scene).GetNumberOfItems() <= items
        assert scene.IsNodePresent(kept)
    finally:
        sx.scene.release_scene(scene)


# -- a study, and the shell


@pytest.fixture
def made_up(monkeypatch, result):
    """Put a study of three cases in place of all; the list gets each key that was measured."""
    asked: list[int] = []

    def conduct(work: Work) -> StudyResult:
        found = work.cases("dice", [1, 2, 3], lambda key: asked.append(key) or {"dice": key / 4})
        answer = f"The mean is {np.mean([one['dice'] for one in found]):.2f}."
        return StudyResult(
            "", "", "", "", (answer,), tables=result.tables[:1], settings={"cases": 3}
        )

    study = Study("made_up", "A made-up study", "Does it hold?", "Nobody 2020", 3, 0.1, conduct)
    monkeypatch.setattr("SaliencyExplainLib.cli.study.studies", lambda: {"made_up": study})
    return study, asked


def test_a_cancelled_study_goes_on_where_it_was_stopped(made_up, tmp_path):
    study, asked = made_up
    with pytest.raises(Cancelled, match="What is done is kept in"):
        study(tmp_path, cancelled=lambda: len(asked) == 2)
    assert not (tmp_path / "study.json").exists()
    found = study(tmp_path)
    assert asked == [1, 2, 3]
    assert found.answer == ("The mean is 0.50.",)
    assert found.settings == {"quick": False, "seed": 1, "cases": 3}
    assert found.title == "A made-up study"


def test_a_run_that_is_cancelled_inside_a_study_tells_what_is_kept(tmp_path):
    def conduct(work: Work) -> StudyResult:
        if work.cancelled():
            raise Cancelled("The run was cancelled. Nothing was changed.")
        raise AssertionError

    study = Study("made_up", "A made-up study", "Does it hold?", "", 1, 1, conduct)
    with pytest.raises(Cancelled, match=r"study was cancelled\. What is done is kept in"):
        study(tmp_path, cancelled=lambda: True)


def test_a_study_without_a_folder_writes_nothing(made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study, _ = made_up
    assert study().answer == ("The mean is 0.50.",)
    assert list(tmp_path.iterdir()) == []


def test_the_shell_runs_a_study_and_restarts_it_on_demand(made_up, tmp_path, capsys):
    _, asked = made_up
    output = tmp_path / "out"
    command = ["study", "made_up", "--output", str(output), "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "The mean is 0.50." in said
    assert "GM      0.500  7" in said
    assert main([*command, "--restart", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["cases"] == 3
    assert asked == [1, 2, 3, 1, 2, 3]
    assert (output / "made_up.md").is_file()


def test_the_shell_writes_a_scene_of_a_study(made_up, tmp_path, capsys):
    assert main(["study", "made_up", "--output", str(tmp_path), "--scene", "--quiet"]) == 0
    scene = sx.scene.load_mrb(tmp_path / "scene.mrb")
    try:
        assert scene.GetFirstNodeByName("Dice by tissue") is not None
    finally:
        sx.scene.release_scene(scene)
    assert "made_up.md" in capsys.readouterr().out


def test_the_shell_says_what_is_kept_of_a_study_that_was_stopped(
    made_up, tmp_path, capsys, monkeypatch
):
    _, asked = made_up

    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "__call__", stop)
    assert main(["study", "made_up", "--output", str(tmp_path), "--quiet"]) == 130
    assert "What is done is kept in" in capsys.readouterr().err
    assert asked == []


def test_the_shell_lists_the_studies(made_up, capsys):
    assert main(["study"]) == 0
    assert "made_up  (about 3 minutes, quick 0.1)" in capsys.readouterr().out
    assert main(["study", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"][0]["paper"] == "Nobody 2020"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none", "--output", "x"], "There is no study 'none'. The studies are made_up."),
        (["made_up"], "Say where the results go: --output DIR."),
    ],
)
def test_the_shell_says_what_is_wrong_with_a_study(made_up, capsys, words, sentence):
    assert main(["study", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_every_study_says_what_it_is_without_torch():
    import subprocess
    import sys

    script = (
        "import sys; from SaliencyExplainLib.studies import studies\n"
        "for name, one in studies().items():\n"
        "    assert one.name == name and one.title and one.question.endswith('?') and one.paper\n"
        "    assert one.minutes <= 20 and one.quick_minutes <= 2\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(studies()) == 5
