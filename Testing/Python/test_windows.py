"""The window plan: the same windows, weights and fused output as MONAI's sliding window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.inferers.utils import sliding_window_inference
from references import as_model, run_engine

from SaliencyExplainLib.errors import ModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import WholeVolume, Windows, plan_windows
from SaliencyExplainLib.model.inferer import read_inferer
from SaliencyExplainLib.target import Target

#: (volume, window, overlap, mode, padding): exact fits, rests, one window, windows larger than the
#: volume along one or all axes, -1 and 0, overlaps that make odd steps.
LAYOUTS = [
    ((16, 16, 16), (8, 8, 8), 0.5, "constant", "constant"),
    ((17, 13, 11), (8, 8, 8), 0.25, "gaussian", "constant"),
    ((17, 13, 11), (8, 6, 4), (0.5, 0.25, 0.0), "gaussian", "constant"),
    ((12, 12, 12), (12, 12, 12), 0.5, "gaussian", "constant"),
    ((9, 20, 7), (16, 8, 16), 0.6, "constant", "reflect"),
    ((9, 10, 11), (16, 16, 16), 0.25, "gaussian", "replicate"),
    ((5, 9, 9), (8, 8, 8), 0.8, "gaussian", "circular"),
    ((10, 14, 12), (-1, 8, 0), 0.5, "gaussian", "constant"),
    ((16, 9, 9), (8, 8, 8), 0.9, "constant", "constant"),
    ((21, 9, 9), (8, 8, 8), 0.3, "gaussian", "constant"),
]


class Squares(torch.nn.Module):
    """A network without neighbours that still tells windows apart: it sees each one's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        return torch.cat([x**2, x + x.mean()], 1)


def filling(padding: str) -> float:
    """Only a constant padding takes a value."""
    return -1.5 if padding == "constant" else 0.0


def layout(window, overlap, mode, padding) -> Windows:
    three = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    return Windows(window, three, mode, padding_mode=padding, cval=filling(padding))


@pytest.mark.parametrize(("shape", "window", "overlap", "mode", "padding"), LAYOUTS)
def test_the_fused_output_is_that_of_monai(shape, window, overlap, mode, padding):
    image = make_image(
        torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)), np.eye(4)
    )
    windows = layout(window, overlap, mode, padding)
    ours = run_engine(
        as_model(Squares(), inferer=windows),
        image,
        Target(output=1),
        lambda engine: engine.output(engine.x),
    )
    theirs = sliding_window_inference(
        image.as_tensor()[None],
        window,
        1,
        Squares(),
        overlap=overlap,
        mode=mode,
        padding_mode=padding,
        cval=filling(padding),
    )
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "window", "overlap", "mode", "padding"), LAYOUTS)
def test_the_network_sees_exactly_the_windows_that_monai_gives_it(
    shape, window, overlap, mode, padding
):
    image = make_image(
        torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)), np.eye(4)
    )
    ours, theirs = Squares(), Squares()
    model = as_model(ours, inferer=layout(window, overlap, mode, padding))
    run_engine(model, image, Target(output=1), lambda engine: engine.output(engine.x))
    x = image.as_tensor()[None]
    sliding_window_inference(
        x,
        window,
        1,
        theirs,
        overlap=overlap,
        mode=mode,
        padding_mode=padding,
        cval=filling(padding),
    )
    assert len(ours.seen) == len(theirs.seen)
    assert all(torch.equal(a, b) for a, b in zip(ours.seen, theirs.seen, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 20)] * 3),
    window=st.tuples(*[st.integers(-1, 14)] * 3),
    overlap=st.tuples(*[st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])] * 3),
    mode=st.sampled_from(["gaussian", "constant"]),
)
def test_the_windows_parts_in_the_fusion_sum_to_one_at_every_voxel(shape, window, overlap, mode):
    plan = plan_windows(Windows(window, overlap, mode), shape)
    total = torch.zeros(plan.weight_sum.shape)
    for place in plan.windows:
        total[place] += plan.fraction(place)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 20)] * 3),
    window=st.tuples(*[st.integers(-1, 14)] * 3),
    overlap=st.tuples(*[st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])] * 3),
)
def test_the_inside_of_the_padded_volume_is_the_volume(shape, window, overlap):
    plan = plan_windows(Windows(window, overlap), shape)
    volume = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))
    padded = plan.pad(volume)
    assert padded.shape[2:] == plan.weight_sum.shape
    assert torch.equal(padded[(slice(None), slice(None), *plan.inside)], volume)


def test_the_whole_volume_is_one_window_without_padding():
    plan = plan_windows(WholeVolume(), (5, 6, 7))
    assert plan.windows == ((slice(0, 5), slice(0, 6), slice(0, 7)),)
    assert plan.padding == ((0, 0),) * 3
    assert torch.equal(plan.fraction(plan.windows[0]), torch.ones(5, 6, 7))


def test_a_size_of_minus_one_or_zero_takes_the_volumes_own():
    assert Windows((-1, 8, 0)).window_shape((10, 20, 30)) == (10, 8, 30)


def test_a_monai_inferer_is_read_with_all_its_settings():
    inferer = SlidingWindowInferer(
        (8, 9, 10), overlap=0.6, mode="gaussian", sigma_scale=0.2, padding_mode="reflect", cval=3
    )
    assert read_inferer(inferer) == Windows(
        (8, 9, 10), (0.6,) * 3, "gaussian", (0.2,) * 3, "reflect", 3.0
    )


@pytest.mark.parametrize("inferer", [None, SimpleInferer()])
def test_no_inferer_or_a_simple_one_means_the_whole_volume(inferer):
    assert read_inferer(inferer) == WholeVolume()


def test_an_inferer_of_unknown_fusion_is_refused():
    with pytest.raises(ModelError, match="SliceInferer is not supported"):
        read_inferer(SliceInferer(roi_size=(8, 8), spatial_dim=0))


def test_a_window_of_two_axes_is_refused():
    with pytest.raises(ModelError, match="A window has three axes"):
        Windows((8, 8))


@pytest.mark.parametrize("overlap", [1.0, -0.1])
def test_an_overlap_outside_zero_to_one_is_refused(overlap):
    with pytest.raises(ModelError, match="at least 0 and less than 1"):
        Windows((8, 8, 8), (overlap,) * 3)
