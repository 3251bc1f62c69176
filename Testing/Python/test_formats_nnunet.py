"""nnU-Net v2: preprocessing, windows and labels against what nnunetv2 made of the same scan.

The folder in Testing/Data/nnunet was planned, trained and run by nnunetv2 2.8.1
(Testing/Data/make_nnunet_folder.py); ``expected.npz`` is what it predicted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunet_cases import (
    DATA,
    DATASET,
    SPACINGS,
    TRAINER,
    a_scan,
    built,
    phantom,
    scores_of,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import plan_windows
from SaliencyExplainLib.model.inferer import NnunetWindows
from SaliencyExplainLib.model.nnunet_preprocess import Channel, NnunetPreprocessing


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "nnunet" / "expected.npz"))


@pytest.fixture(scope="module")
def nnunet() -> sx.Model:
    pytest.importorskip("dynamic_network_architectures")
    return sx.load_model(DATASET, device="cpu")


# As nnunetv2 does


@pytest.mark.parametrize("kind", SPACINGS)
def test_the_preprocessing_is_nnunets_own(kind, nnunet, expected):
    prepared = nnunet.prepare(a_scan(kind))
    assert list(prepared.shape[1:]) == expected[f"{kind}_shape"].tolist()
    found = prepared.numpy()[:, ::3, ::3, ::3]
    # Measured: no difference in any bit.
    np.testing.assert_allclose(found, expected[f"{kind}_prepared"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SPACINGS)
def test_the_scores_are_nnunets_own(kind, nnunet, expected):
    found = scores_of(nnunet, nnunet.prepare(a_scan(kind))).numpy()[:, ::3, ::3, ::3]
    wanted = expected[f"{kind}_scores"]
    # nnunetv2 sums windows in half precision: 0.003 of scores up to 22 in the middle, 0.5 where
    # one window's weight is small. With its sums in single precision the difference is 0.
    assert np.median(abs(found - wanted)) < 0.005
    assert abs(found - wanted).max() < 0.6
    assert abs(wanted).max() > 15
    assert (found.argmax(0) == wanted.argmax(0)).all()


@pytest.mark.parametrize("kind", SPACINGS)
def test_the_prediction_is_nnunets_own_on_the_scans_grid(kind, nnunet, expected):
    scan = a_scan(kind)
    labels = sx.predict(nnunet, scan)
    assert torch.equal(labels.affine, scan.affine)
    # Measured: the same label in every voxel.
    assert (labels.numpy()[0] == expected[f"{kind}_labels"]).mean() > 0.9999
    truth = phantom(0, SPACINGS[kind])[1]
    assert (labels.numpy()[0] == truth).mean() > 0.99


@pytest.mark.parametrize("kind", SPACINGS)
def test_the_scores_are_those_of_nnunetv2_when_it_is_installed(kind, nnunet, monkeypatch):
    module = pytest.importorskip(
        "nnunetv2.inference.predict_from_raw_data", reason="nnunetv2 is not installed"
    )

    class Single:
        """torch, but half is single: nnunetv2 sums its windows in half precision."""

        half = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(module, "torch", Single())
    predictor = module.nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(DATASET / TRAINER), (0,))
    prepared = nnunet.prepare(a_scan(kind))
    wanted = predictor.predict_logits_from_preprocessed_data(prepared.as_tensor().clone())
    torch.testing.assert_close(scores_of(nnunet, prepared), wanted, rtol=0, atol=1e-4)


def test_windows_lie_where_nnunet_puts_them():
    # compute_steps_for_sliding_window of nnunetv2, its own example: 110 by 64 at a step of 0.5.
    plan = plan_windows(NnunetWindows((64, 64, 64)), (110, 64, 70))
    starts = [sorted({window[axis].start for window in plan.windows}) for axis in range(3)]
    assert starts == [[0, 23, 46], [0], [0, 6]]
    assert len(plan.windows) == 6


def test_a_volume_smaller_than_a_window_is_filled_up_around_it():
    plan = plan_windows(NnunetWindows((8, 8, 8)), (5, 8, 12))
    assert plan.padding == ((1, 2), (0, 0), (0, 0))
    assert [window[2].start for window in plan.windows] == [0, 4]
    assert float(plan.weight_sum.min()) > 0


def test_the_fusion_weights_have_their_peak_at_half_the_window():
    weights = plan_windows(NnunetWindows((8, 16, 20)), (8, 16, 20)).importance
    assert np.unravel_index(int(weights.argmax()), weights.shape) == (4, 8, 10)
    assert float(weights.max()) == 10
    assert float(weights.min()) > 0


# Explanations


@built
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("gradient", {}),
        ("guided_backprop", {}),
        ("occlusion", {}),
        ("grad_cam", {"layer": "decoder.stages.1.convs.0.nonlin"}),
    ],
)
def test_an_nnunet_is_explained_from_end_to_end(method, parameters, nnunet):
    scan = a_scan("thick")
    made = sx.explain(nnunet, scan, sx.Target("ball"), method, **parameters)
    assert made.maps.shape[1:] == scan.shape[1:]
    assert torch.equal(made.maps.affine, scan.affine)
    inside = torch.from_numpy(phantom(0)[1] == 1)
    maps = made.maps.as_tensor().abs().sum(0)
    assert float(maps.max()) > 0
    # The evidence for the ball lies around the ball.
    assert float(maps[inside].mean()) > 2 * float(maps.mean())


@built
def test_the_gradient_is_that_of_the_fused_windows_on_the_scans_grid(nnunet):
    scan = a_scan("even")
    prepared = nnunet.prepare(scan)
    plan = plan_windows(nnunet.inferer, tuple(prepared.shape[1:]))
    x = plan.pad(prepared.as_tensor()[None].clone()).requires_grad_()
    fused = torch.zeros(1, 3, *x.shape[2:])
    for window in plan.windows:
        at = (slice(None), slice(None), *window)
        part = torch.zeros_like(fused)
        part[at] = nnunet.network(x[at]) * plan.fraction(window)
        fused = fused + part
    fused[0, 1].mean().backward()
    wanted = nnunet.preprocess.invert(x.grad[0][(slice(None), *plan.inside)], prepared, scan)
    made = sx.explain(nnunet, scan, sx.Target(1, "everywhere"), "gradient")
    torch.testing.assert_close(made.maps.as_tensor(), wanted.as_tensor(), rtol=1e-3, atol=1e-9)


# There and back


@pytest.mark.parametrize("kind", SPACINGS)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2)])
def test_a_landmark_comes_home(kind, transpose):
    # A smooth bump in a body that does not fill the scan, through the grid and back.
    scan = a_scan(kind)
    spacing = np.array(SPACINGS[kind])
    place = np.meshgrid(*[np.arange(size) for size in scan.shape[1:]], indexing="ij")
    middle = np.array([11, 15, 20])
    distance = sum(((p - m) * s) ** 2 for p, m, s in zip(place, middle, spacing, strict=True))
    bump = np.exp(-distance / 50) * (np.abs(place[0] - 11) < 8)
    image = make_image(bump[None].astype(np.float32), scan.affine)
    model = sx.load_model(
        torch.nn.Conv3d(1, 1, 1),
        task="segmentation",
        preprocess=NnunetPreprocessing(transpose, (1.3, 1.2, 1.1), [Channel("NoNormalization")]),
    )
    prepared = model.prepare(image)
    # The affine tells where the network's voxels are: the bump is where it was in the world.
    at = np.unravel_index(int(prepared.argmax()), prepared.shape)[1:]
    world = np.asarray(prepared.affine) @ [*at, 1]
    wanted = np.asarray(image.affine) @ [*middle, 1]
    assert np.linalg.norm(world - wanted) < np.linalg.norm([1.3, 1.2, 1.1]) / 2 + max(spacing) / 2
    back = model.preprocess.invert(prepared.as_tensor(), prepared, image)
    assert torch.equal(back.affine, image.affine)
    assert float((back - image).abs().mean()) < 0.01
    home = np.unravel_index(int(back.argmax()), back.shape)[1:]
    assert np.abs(np.array(home) - middle).max() <= 1


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_affine_says_where_each_voxel_of_the_network_is(transpose):
    # Values that are the place itself: splines keep what is linear.
    affine = np.asarray(a_scan("even").affine)
    place = np.stack(np.meshgrid(*[np.arange(size) for size in (20, 24, 18)], indexing="ij"))
    world = np.einsum("ij,jabc->iabc", affine[:3, :3], place) + affine[:3, 3, None, None, None]
    image = np.where((place[0] > 1) & (place[2] < 15), world + 500, 0)
    step = NnunetPreprocessing(transpose, (1.7, 1.2, 1.1), [Channel("NoNormalization")] * 3)
    prepared = step(make_image(image.astype(np.float32), affine))
    inside = [np.arange(size)[4:-4] for size in prepared.shape[1:]]
    index = np.stack(np.meshgrid(*inside, indexing="ij"))
    there = np.asarray(prepared.affine)
    wanted = np.einsum("ij,jabc->iabc", there[:3, :3], index) + there[:3, 3, None, None, None]
    found = prepared.numpy()[:, 4:-4, 4:-4, 4:-4] - 500
    # A tenth of a millimetre: the splines still feel the edge.
    np.testing.assert_allclose(found, wanted, atol=0.1)


def test_what_was_cut_away_comes_back_as_zero(nnunet):
    scan = a_scan("even")
    prepared = nnunet.prepare(scan)
    back = nnunet.preprocess.invert(torch.ones(1, *prepared.shape[1:]), prepared, scan)
    inside = (scan.as_tensor() != 0).any(0)
    box = [np.flatnonzero(inside.any(dim=axes).numpy()) for axes in ((1, 2), (0, 2), (0, 1))]
    wanted = torch.zeros(scan.shape[1:])
    wanted[tuple(slice(one[0], one[-1] + 1) for one in box)] = 1
    assert torch.equal(back.as_tensor()[0], wanted)
    assert 0 < float(wanted.mean()) < 1


# Normalisation and resampling, where the fixture does not reach


@pytest.mark.parametrize(
    ("channel", "wanted"),
    [
        (Channel("NoNormalization"), lambda x, body: x),
        (Channel("RescaleTo01Normalization"), lambda x, body: (x - x.min()) / (x.max() - x.min())),
        (Channel("RGBTo01Normalization"), lambda x, body: x / 255),
        (Channel("ZScoreNormalization"), lambda x, body: (x - x.mean()) / x.std()),
        (
            Channel("ZScoreNormalization", masked=True),
            lambda x, body: np.where(body, (x - x[body].mean()) / x[body].std(), 0),
        ),
        (
            Channel(
                "CTNormalization",
                intensities={
                    "mean": 50,
                    "std": 20,
                    "percentile_00_5": 10,
                    "percentile_99_5": 90,
                },
            ),
            lambda x, body: (np.clip(x, 10, 90) - 50) / 20,
        ),
    ],
)
def test_each_normalisation_is_what_its_name_says(channel, wanted):
    values = np.zeros((6, 7, 8), np.float32)
    values[:, 1:, 2:] = np.random.default_rng(0).uniform(1, 120, (6, 6, 6))
    values[3, 3, 4] = 0  # a hole is filled: it belongs to the body
    values[0, 1, 2:4] = 0  # an edge is not
    prepared = NnunetPreprocessing((2, 1, 0), (1, 1, 1), [channel])(
        make_image(values[None], np.eye(4))
    )
    cut = values[:, 1:, 2:].astype(np.float64)
    body = cut != 0
    body[3, 2, 2] = True
    np.testing.assert_allclose(prepared.numpy()[0], wanted(cut, body), rtol=1e-4, atol=1e-4)


def test_linear_resampling_is_torchs_own():
    image = make_image(np.random.default_rng(0).uniform(1, 2, (1, 9, 10, 11)), np.eye(4))
    step = NnunetPreprocessing(
        (2, 1, 0), (1.5, 0.8, 1.1), [Channel("NoNormalization")],
        resampling="resample_torch_fornnunet",
    )  # fmt: skip
    wanted = torch.nn.functional.interpolate(
        image.as_tensor()[None], size=(6, 12, 10), mode="trilinear"
    )
    torch.testing.assert_close(step(image).as_tensor(), wanted[0])


def test_a_plan_without_resampling_keeps_the_voxels():
    image = make_image(np.random.default_rng(0).uniform(1, 2, (1, 9, 10, 11)), np.eye(4))
    step = NnunetPreprocessing(
        (0, 1, 2), (2, 2, 2), [Channel("NoNormalization")], resampling="no_resampling_hack"
    )
    prepared = step(image)
    assert torch.equal(prepared.as_tensor(), image.as_tensor().permute(0, 3, 2, 1))


@pytest.mark.parametrize(
    ("values", "spacing", "message"),
    [
        (np.zeros((2, 5, 5, 5)), (1, 1, 1), "every voxel is zero"),
        (np.ones((1, 5, 5, 5)), (1, 1, 1), "the plan is for 2 channels, 1 were given"),
        (np.ones((2, 5, 5, 5)), (20, 1, 1), "nothing is left at the plan's spacing of 20 x 1 x 1"),
        (np.ones((2, 5, 5, 5)), (1e-4,) * 3, r"0\.0001 mm the scan needs .* GB of memory"),
        (np.full((2, 5, 5, 5), 300), (1, 1, 1), "expects colours from 0 to 255"),
    ],
)
def test_a_scan_that_cannot_be_prepared_is_a_sentence(values, spacing, message):
    model = sx.load_model(
        torch.nn.Conv3d(2, 2, 1),
        task="segmentation",
        preprocess=NnunetPreprocessing((0, 1, 2), spacing, [Channel("RGBTo01Normalization")] * 2),
    )
    with pytest.raises(ImageError, match=f"preprocessing failed on a volume .*{message}"):
        model.prepare(make_image(values.astype(np.float32), np.eye(4)))
