"""Computing only what a changed box can change gives what the whole network gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import (
    BasicUNet,
    DenseNet121,
    DynUNet,
    SegResNet,
    SwinUNETR,
    UNet,
)
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import _len_torch_dispatch_stack

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine, Perturber, Progress
from SaliencyExplainLib.engine.engine import main_output
from SaliencyExplainLib.engine.incremental import IncrementalPass
from SaliencyExplainLib.engine.incremental.spans import Spans, full, within

SIDE = 24
POINT = sx.Target(output=1, region="point", point_ras_mm=(12.0, 11.0, 10.0))


class MeshNet(nn.Module):
    """Dilated convolutions at full resolution (Fedorov et al. 2017, arXiv:1612.00940)."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, dilation in ((1, 1), (4, 2), (4, 4), (4, 1)):
            parts += [nn.Conv3d(before, 4, 3, padding=dilation, dilation=dilation)]
            parts += [nn.BatchNorm3d(4), nn.ELU(), nn.Dropout3d(0.1)]
        self.all = nn.Sequential(*parts, nn.Conv3d(4, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.all(x)


class Every(nn.Module):
    """Operations that the networks of MONAI do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 6, (3, 5, 1), stride=(2, 1, 3), padding=(0, 2, 1), groups=1)
        self.mirror = nn.Conv3d(6, 6, 3, padding=1, padding_mode="reflect", groups=3)
        self.same = nn.Conv3d(6, 6, (2, 4, 3), padding="same")
        self.up = nn.ConvTranspose3d(6, 4, (2, 1, 3), (3, 2, 2), (0, 0, 1), (1, 1, 0), bias=True)
        self.wide = nn.ConvTranspose3d(4, 4, 3, stride=1, padding=2, dilation=2)
        self.norm = nn.InstanceNorm3d(6, affine=True, track_running_stats=True)
        self.scale = nn.Parameter(torch.rand(4, 1, 1, 1))
        self.last = nn.Conv3d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        x = functional.pad(x, (1, 2, 0, 1, 3, 0))[:, :, 1:, :, ::1]
        x = functional.hardswish(self.norm(self.first(x)))
        x = x + self.mirror(x).clamp_(-1, 2)
        x = functional.max_pool3d(x, 3, 2, 1, ceil_mode=True) - functional.avg_pool3d(
            self.same(x), 3, 2, 1, ceil_mode=True, count_include_pad=False
        )
        x = x.tanh() * x.flip(2)
        x = functional.interpolate(x, scale_factor=1.7, mode="trilinear", align_corners=True)
        x = functional.adaptive_avg_pool3d(x, (5, 7, 4))
        left, right = self.wide(self.up(x)).chunk(2, 1)
        x = torch.cat([left.softmax(1), right, left.mean(1, keepdim=True)], 1)
        x = functional.interpolate(
            torch.cat([x[:, :4] * self.scale, x[:, 4:].expand(-1, 1, -1, -1, -1)], 1),
            size=[n + 1 for n in size],
            mode="nearest",
        )[:, :, 1:, :-1, 1:]
        return self.last(torch.cat([x, x[:, :1].repeat(1, 1, 1, 1, 1)], 1))


class Gate(nn.Module):
    """Squeeze and excitation: a gate that looks everywhere, on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.last = nn.Conv3d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        gate = self.gate(x.mean((2, 3, 4))).sigmoid()[:, :, None, None, None]
        return self.last(x * gate) + self.last(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2, norm="BATCH"),
    "SegResNet": lambda: SegResNet(
        init_filters=8, out_channels=2, blocks_down=(1, 1), blocks_up=(1,), norm=("batch", {})
    ),
    "DynUNet": lambda: DynUNet(
        3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16], norm_name="batch"
    ),
    "BasicUNet": lambda: BasicUNet(3, 1, 2, (4, 4, 4, 8, 8, 4), norm="batch"),
    "MeshNet": MeshNet,
    "every operation": Every,
    "a gate": Gate,
    "UNet with instance norm": lambda: UNet(3, 1, 3, (4, 8), (2,), num_res_units=1),
}


def settled(network: nn.Module) -> nn.Module:
    """In eval mode, with statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d) and module.track_running_stats:
            for kept, low in ((module.running_mean, -0.3), (module.running_var, 0.6)):
                assert kept is not None
                kept.copy_(torch.rand(kept.shape, generator=generator) * 0.6 + low)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=list(NETWORKS), ids=str)
def a_case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = settled(NETWORKS[request.param]())
    shape = (23, 22, 25) if request.param in ("MeshNet", "every operation", "a gate") else (24,) * 3
    if request.param == "BasicUNet":
        shape = (32, 16, 16)
    return network, torch.randn(1, 1, *shape)


def a_pass(network: nn.Module, x: torch.Tensor, region: Spans, **options: int) -> IncrementalPass:
    return IncrementalPass(network, lambda v: main_output(network(v.clone())), x, region, **options)


def changed_in(x: torch.Tensor, box: Spans) -> torch.Tensor:
    changed = x.clone()
    changed[within(box, full(x.shape))] += 1.0
    return changed


def whole(network: nn.Module, x: torch.Tensor, region: Spans) -> torch.Tensor:
    output = main_output(network(x.clone()))
    return output[within(region, full(output.shape))] if region else output


def boxes_in(shape: torch.Size) -> st.SearchStrategy[Spans]:
    def side(size: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
            lambda pair: (pair[0], min(size, pair[0] + pair[1]))
        )

    return st.tuples(*(side(size) for size in shape[2:]))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_part_equals_the_whole_for_any_changed_box_and_any_region(
    a_case: tuple[nn.Module, torch.Tensor], data: st.DataObject
) -> None:
    network, x = a_case
    region = data.draw(boxes_in(x.shape), label="region")
    record = a_pass(network, x, region)
    assert record.reason == ""
    torch.testing.assert_close(record.output, whole(network, x, region))
    for _ in range(2):
        box = data.draw(boxes_in(x.shape), label="changed box")
        changed = changed_in(x, box)
        expected = whole(network, changed, region)
        scale = float(expected.abs().max())
        assert float((record.run(changed, box) - expected).abs().max()) <= 1e-5 * scale
        assert record.done <= record.work * 1.0001
        assert record.done == pytest.approx(record.share(box) * record.work)


@pytest.mark.parametrize("name", ["UNet", "SegResNet", "DynUNet", "BasicUNet", "MeshNet"])
def test_a_small_box_and_region_cost_a_small_part(name: str) -> None:
    torch.manual_seed(0)
    network = settled(NETWORKS[name]())
    x = torch.randn(1, 1, 32, 32, 32)
    record = a_pass(network, x, ((14, 18),) * 3)
    assert record.share(((15, 17),) * 3) < 0.15
    assert record.share(((0, 32),) * 3) < 0.7
    assert record.share(((0, 2),) * 3) <= record.share(((10, 20),) * 3)


def test_a_change_that_cannot_reach_the_region_costs_nothing() -> None:
    torch.manual_seed(0)
    network = settled(MeshNet())
    x = torch.randn(1, 1, 40, 24, 24)
    record = a_pass(network, x, ((36, 40), (0, 24), (0, 24)))
    box: Spans = ((0, 20), (0, 24), (0, 24))
    assert record.share(box) == 0
    assert torch.equal(record.run(changed_in(x, box), box), record.output)
    assert record.done == 0
    # Reach 8: one voxel at distance 7 is seen, one at distance 9 is not.
    assert record.share(((28, 29), (5, 6), (5, 6))) > 0
    assert record.share(((27, 28), (5, 6), (5, 6))) == 0


def test_classification_is_computed_in_part_up_to_its_pooling() -> None:
    torch.manual_seed(0)
    network = settled(DenseNet121(spatial_dims=3, in_channels=1, out_channels=3))
    x = torch.randn(1, 1, 32, 32, 32)
    record = a_pass(network, x, ())
    for box in (((0, 4),) * 3, ((20, 31), (3, 9), (0, 32))):
        changed = changed_in(x, box)
        torch.testing.assert_close(record.run(changed, box), whole(network, changed, ()))
    assert record.widest == "mean"
    assert record.share(((0, 2),) * 3) < 0.8


def test_normalisation_over_the_image_and_attention_reach_everything() -> None:
    torch.manual_seed(0)
    nets = {
        "native_batch_norm": UNet(3, 1, 2, (4, 8), (2,), num_res_units=1),
        "native_group_norm": SegResNet(
            init_filters=8, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)
        ),
    }
    for name, network in nets.items():
        x = torch.randn(1, 1, 16, 16, 16)
        record = a_pass(network.eval(), x, full(x.shape))
        assert record.widest == name
        assert record.share(((3, 4),) * 3) > 0.6


def test_torchscript_is_recorded_too() -> None:
    torch.manual_seed(0)
    network = torch.jit.script(settled(UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="BATCH")))
    x = torch.randn(1, 1, 16, 16, 16)
    record = a_pass(network, x, ((4, 9),) * 3)
    box: Spans = ((1, 5),) * 3
    torch.testing.assert_close(
        record.run(changed_in(x, box), box), whole(network, changed_in(x, box), ((4, 9),) * 3)
    )
    assert record.reason == ""
    assert record.share(box) < 0.6


class Asks(nn.Module):
    """Decides by a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.mean()) > 0 else -x


class Leaves(nn.Module):
    """Goes through NumPy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Indices(nn.Module):
    """Uses where the maximum was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled, places = functional.max_pool3d(x, 2, return_indices=True)
        return functional.max_unpool3d(pooled, places, 2)


class Part(nn.Module):
    """Writes into a part of a new tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x).repeat(1, 2, 1, 1, 1)
        other = torch.zeros(1, 2, *x.shape[2:])
        other[:, :1] = x * 2
        return found + other


class Spoilt(nn.Module):
    """Reads a tensor of which a view was overwritten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        x[:, :, 2:5].relu_()
        return x + 1


class Counts(nn.Module):
    """Changes a tensor of its own between two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.factor
        self.factor += 0.0
        return x


class Chance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Asks(), "decides by values"),
        (Leaves(), "does not follow from its input"),
        (Indices(), "second result"),
        (Part(), "into a part of a tensor"),
        (Spoilt(), "view of a tensor that was overwritten"),
        (Counts(), "a tensor of its own"),
        (Chance(), "by chance"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_what_cannot_be_repeated_is_refused_and_run_as_a_whole(
    network: nn.Module, reason: str
) -> None:
    x = torch.rand(1, 1, 6, 6, 6) + 0.1
    region: Spans = ((1, 5),) * 3
    record = a_pass(network, x, region)
    assert reason in record.reason
    assert record.nbytes == 0
    if not isinstance(network, Chance):
        changed = -changed_in(x, ((2, 3),) * 3)
        torch.testing.assert_close(
            record.run(changed, full(x.shape)), whole(network, changed, region)
        )


def test_in_place_operations_are_recorded_with_what_they_overwrote() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(1, 4, 3, padding=1)
            self.last = nn.Conv3d(4, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            y = self.last(x)
            x.relu_().mul_(0.5)
            z = self.last(x)
            z += y
            left, right = z.chunk(2, 1)
            left.tanh_()
            return torch.cat([left, right], 1)

    torch.manual_seed(0)
    network = InPlace().eval().requires_grad_(False)
    x = torch.randn(1, 1, 12, 12, 12)
    record = a_pass(network, x, ((3, 9),) * 3)
    box: Spans = ((2, 5), (0, 4), (7, 9))
    changed = changed_in(x, box)
    torch.testing.assert_close(record.run(changed, box), whole(network, changed, ((3, 9),) * 3))
    assert record.reason == ""
    assert torch.equal(x, x.clone())


def test_the_record_keeps_to_its_memory() -> None:
    network = settled(MeshNet())
    x = torch.randn(1, 1, 16, 16, 16)
    small = a_pass(network, x, ((7, 9),) * 3)
    large = a_pass(network, x, full(x.shape))
    assert 0 < small.nbytes < 0.8 * large.nbytes
    refused = a_pass(network, x, full(x.shape), most_bytes=large.nbytes // 2)
    assert "takes more than" in refused.reason
    assert refused.nbytes == 0


# -- Scores of perturbed images --------------------------------------------------------------------

WINDOWS = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
PADDED = SlidingWindowInferer((32, 16, 16), overlap=0.25, padding_mode="replicate")
TARGETS = {
    "logit at a point": POINT,
    "probability everywhere": sx.Target(output=1, region="everywhere", score="probability"),
    "contrast in an ROI": sx.Target(
        output=1, contrast=0, region="roi", roi_ras_mm=((3, 9, 9), (12, 14, 20))
    ),
    "soft volume": sx.Target(output=0, region="everywhere", score="soft_volume"),
}
SMALL_NETWORKS = ("UNet", "DynUNet", "SegResNet", "MeshNet")


@pytest.mark.parametrize("inferer", [None, WINDOWS, PADDED], ids=["whole", "windows", "padded"])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_every_score_equals_brute_force(name: str, inferer: object) -> None:
    torch.manual_seed(0)
    model = sx.load_model(settled(NETWORKS[name]()), task="segmentation", inferer=inferer)
    image = sx.make_image(torch.randn(1, SIDE, SIDE - 4, SIDE), np.eye(4))
    for target, activation in product(TARGETS.values(), ("softmax", "sigmoid")):
        engine = Engine(replace(model, activation=activation), image, target)
        with engine.running():
            perturber, moved = Perturber(engine), []
            for start in (0, 9, 14):
                box = (slice(start, start + 6), slice(start, start + 5), slice(start // 2, 12))
                x = engine.x.clone()
                x[(slice(None), slice(None), *box)] = 0.7
                expected = engine.value(x)
                # A logit near zero: what counts is the size of the outputs that it comes from.
                size = (
                    1.0 if engine.frozen.score != "logit" else float(engine.output(x).abs().max())
                )
                same = pytest.approx(expected, rel=1e-5, abs=2e-6 * size)
                assert perturber.value(x, box) == same
                assert perturber.value(x) == same
                moved.append(perturber.start_value != same)
        assert any(moved)
        assert perturber.deviation is not None
        assert perturber.deviation < 1e-5
        assert perturber.passes < perturber.computed


@pytest.fixture
def an_engine() -> Iterator[Engine]:
    torch.manual_seed(0)
    model = sx.load_model(settled(NETWORKS["UNet"]()), task="segmentation", inferer=WINDOWS)
    engine = Engine(model, sx.make_image(torch.randn(1, SIDE, SIDE, SIDE), np.eye(4)), POINT)
    with engine.running():
        yield engine


def with_box(x: torch.Tensor, start: int, side: int = 4) -> torch.Tensor:
    return changed_in(x, ((start, start + side),) * 3)


def test_windows_that_are_alike_are_computed_once(an_engine: Engine) -> None:
    perturber = Perturber(an_engine)
    first = perturber.value(with_box(an_engine.x, 10), alike=lambda _window: "one")
    computed = perturber.computed
    assert perturber.value(with_box(an_engine.x, 10), alike=lambda _window: "one") == first
    assert perturber.computed == computed
    other = perturber.value(with_box(an_engine.x, 9), alike=lambda _window: "two")
    assert other != first
    assert other == pytest.approx(an_engine.value(with_box(an_engine.x, 9)), rel=1e-5)


def test_what_is_remembered_keeps_to_its_memory(
    an_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SaliencyExplainLib.engine.perturb._SEEN_BYTES", 100)
    perturber = Perturber(an_engine)
    for start in (8, 9, 8):
        x = with_box(an_engine.x, start)
        value = perturber.value(x, alike=lambda _window, start=start: start)
        assert value == pytest.approx(an_engine.value(x), rel=1e-5)
    assert sum(part.nbytes for part in perturber._seen.values()) <= 100


def test_without_room_for_records_whole_windows_are_run(
    an_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("SaliencyExplainLib.engine.perturb._RECORD_BYTES", 1000)
    perturber = Perturber(an_engine)
    x = with_box(an_engine.x, 9)
    assert perturber.value(x) == pytest.approx(an_engine.value(x), rel=1e-6)
    assert "takes more than" in perturber.cost()["whole_windows_because"]
    assert perturber.passes == perturber.computed


def test_a_part_that_differs_from_the_whole_is_found_and_not_used(
    an_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = IncrementalPass.run

    def wrong(self: IncrementalPass, x: torch.Tensor, changed: Spans) -> torch.Tensor:
        return honest(self, x, changed) * 1.001

    monkeypatch.setattr(IncrementalPass, "run", wrong)
    perturber = Perturber(an_engine)
    for start in (8, 10):
        x = with_box(an_engine.x, start)
        found = perturber.value(x)
        assert found != perturber.start_value
    assert found == pytest.approx(an_engine.value(x), rel=1e-6)
    assert perturber.deviation is not None
    assert 1e-5 < perturber.deviation <= 1.1e-3
    assert "differed from the whole" in perturber.cost()["whole_windows_because"]


def test_a_voxel_that_did_not_change_inside_the_box_is_not_computed(an_engine: Engine) -> None:
    perturber = Perturber(an_engine)
    everywhere = tuple(slice(0, SIDE) for _ in range(3))
    assert perturber.value(an_engine.x.clone(), everywhere) == perturber.start_value
    records = perturber.computed
    assert perturber.value(an_engine.x.clone(), everywhere) == perturber.start_value
    assert perturber.computed == records


def test_bfloat16_is_not_computed_in_part(an_engine: Engine) -> None:
    an_engine.start_value  # noqa: B018 - the target is frozen in single precision
    an_engine.fast = True
    perturber = Perturber(an_engine)
    perturber.value(with_box(an_engine.x, 9))
    assert "bfloat16" in perturber.cost()["whole_windows_because"]


def test_nothing_is_left_behind_after_a_cancelled_run_or_an_error() -> None:
    torch.manual_seed(0)
    network = settled(NETWORKS["UNet"]())
    model = sx.load_model(network, task="segmentation")
    image = sx.make_image(torch.randn(1, SIDE, SIDE, SIDE), np.eye(4))
    network.train()
    asked = iter(range(100))
    depth = _len_torch_dispatch_stack()
    with pytest.raises(sx.errors.Cancelled):
        sx.explain(model, image, POINT, "occlusion", box_mm=8, cancelled=lambda: next(asked) > 6)
    assert next(asked) < 12
    assert _len_torch_dispatch_stack() == depth
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())

    class Fails(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("no more")
            return torch.cat([x, -x], 1)

    with pytest.raises(sx.errors.ModelError, match="no more"):
        sx.explain(sx.load_model(Fails(), task="segmentation"), image, POINT, "occlusion")
    assert _len_torch_dispatch_stack() == depth


def test_each_run_counts_as_progress_and_asks_whether_to_stop(an_engine: Engine) -> None:
    told: list[str] = []
    an_engine.progress = Progress(lambda _part, message: told.append(message))
    perturber = Perturber(an_engine)
    perturber.value(with_box(an_engine.x, 9))
    told.clear()
    perturber.value(with_box(an_engine.x, 10))
    assert told == ["changed part of a window"] * len(perturber.region.windows)


def test_swin_unetr_falls_back_and_says_why() -> None:
    torch.manual_seed(0)
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
    model = sx.load_model(network, task="segmentation")
    x = torch.randn(1, 64, 32, 32)
    found = sx.explain(
        model,
        sx.make_image(x, np.eye(4)),
        sx.Target(output=1, region="everywhere"),
        "occlusion",
        box_mm=32,
        stride=1.0,
        baseline="zero",
    )
    assert "every part depends on every voxel" in found.details["whole_windows_because"]
    x[:, 32:] = 0
    with torch.no_grad():
        expected = found.value - float(network.eval()(x[None])[0, 1].mean())
    got = float(found.maps.as_tensor()[0, 40, 3, 30])
    assert got == pytest.approx(expected, abs=1e-5 * abs(found.value))


def test_occlusion_of_a_classifier_equals_brute_force_and_says_its_share() -> None:
    torch.manual_seed(0)
    network = settled(DenseNet121(spatial_dims=3, in_channels=1, out_channels=3))
    x = torch.randn(1, 32, 32, 32)
    found = sx.explain(
        sx.load_model(network, task="classification"),
        sx.make_image(x, np.eye(4)),
        sx.Target(output=2),
        "occlusion",
        box_mm=16,
        stride=1.0,
        baseline="zero",
    )
    for box in product((slice(0, 16), slice(16, 32)), repeat=3):
        hidden = x[None].clone()
        hidden[(slice(None), slice(None), *box)] = 0
        expected = found.value - float(network(hidden)[0, 2])
        got = found.maps.as_tensor()[0][box].unique()
        assert len(got) == 1
        assert float(got) == pytest.approx(expected, abs=1e-5 * abs(found.value))
    assert found.details["share_computed"] < 1.5
    assert found.details["largest_deviation"] < 1e-5


def test_kernel_shap_computes_a_window_once_for_each_set_of_its_regions() -> None:
    torch.manual_seed(0)
    network = settled(UNet(3, 1, 3, (4, 8), (2,), num_res_units=1))
    slabs = torch.arange(SIDE)[:, None, None].expand(SIDE, SIDE, SIDE) // 4
    options = {
        "regions": "segments",
        "segments": sx.make_image(slabs.float()[None], np.eye(4)),
        "baseline": "zero",
        "samples": 64,
    }
    image = sx.make_image(torch.randn(1, SIDE, SIDE, SIDE), np.eye(4))
    target = sx.Target(output=1, region="everywhere")
    inferer = SlidingWindowInferer((8, 24, 24), overlap=0)
    model = sx.load_model(network, task="segmentation", inferer=inferer)
    found = sx.explain(model, image, target, "kernel_shap", **options)
    # Three windows of two regions each: four sets a window, and the unperturbed one once more.
    assert found.details["sets"] == 2**6 - 2
    assert found.details["windows_brute_force"] == 3 * 63
    assert found.details["windows_computed"] <= 3 * 6 + 1
    phi = [float(found.maps.as_tensor()[0][slabs == region].double().sum()) for region in range(6)]
    with torch.no_grad():
        nothing = float(inferer(torch.zeros(1, *image.shape), network)[0, 1].mean())
    assert sum(phi) == pytest.approx(found.value - nothing, rel=1e-4)
