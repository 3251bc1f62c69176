"""Where a layer's voxels lie, which layers feed an instance norm, and that looking leaves no trace.

The grids are compared with a measurement: what a feature voxel makes of the coordinates, in a copy
of the network that only moves voxels (see `references.only_geometry`).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DenseNet121,
    DynUNet,
    HighResNet,
    SegResNet,
    SwinUNETR,
    UNet,
    VNet,
)
from references import (
    BatchNormNet,
    Classifier,
    Raising,
    as_model,
    is_fake,
    measured_centres,
    only_geometry,
    run_engine,
    state_of,
)
from torch import nn

from SaliencyExplainLib.engine.interpolate import at_layer_voxels, axis_weights, on_network_grid
from SaliencyExplainLib.errors import ModelError
from SaliencyExplainLib.model import Grid, trace_layers
from SaliencyExplainLib.target import Target

SHAPE = (1, 32, 32, 32)


class Function(nn.Module):
    """A module of a function, so that what it gives has a name."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Stack(nn.Module):
    """Modules one behind the other; the last one's name is ``last``."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(*modules[:-1])
        self.last = modules[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


def conv(*arguments, **keywords) -> nn.Conv3d:
    return nn.Conv3d(2, 2, *arguments, **keywords)


def deconv(*arguments, **keywords) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(2, 2, *arguments, **keywords)


def traced(network: nn.Module, shape=SHAPE) -> dict:
    return {layer.name: layer for layer in trace_layers(network, shape)}


def check_grids(network: nn.Module, names, shape=SHAPE) -> None:
    """Compare the traced grids with the measured centres."""
    layers = traced(network, shape)
    measured = measured_centres(only_geometry(network), shape)
    for name in names:
        assert layers[name].grid.exact, name
        check_grid(layers[name].grid, measured[name], name)


def check_grid(grid: Grid, measured, name: str) -> None:
    """Compare origin and spacing on both halves of each axis.

    An up-sampled voxel takes its place only on average over its neighbours, hence the means.
    """
    for axis, (indices, centres) in enumerate(measured):
        wanted = grid.origin[axis] + grid.spacing[axis] * indices
        half = len(indices) // 2
        for part in (slice(half, None), slice(0, half or None)):
            assert centres[part].mean() == pytest.approx(wanted[part].mean(), abs=1e-3), name


def convolutions(network: nn.Module) -> list[str]:
    kinds = (nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


NETWORKS = {
    "UNet": lambda: UNet(3, 1, 2, (4, 8, 16, 32), (2, 2, 2), num_res_units=2),
    "UNet without residual units": lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2)),
    "BasicUNet": lambda: BasicUNet(3, 1, 2, (4, 4, 8, 8, 16, 4)),
    "VNet": lambda: VNet(3, 1, 2),
    "AttentionUnet": lambda: AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)),
    "HighResNet": lambda: HighResNet(3, 1, 2),
}
#: With a stride of 16, half of the inner half must hold 16 voxels.
SIZES = {"BasicUNet": (1, 64, 64, 64), "VNet": (1, 64, 64, 64), "HighResNet": (1, 16, 16, 16)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_grids_of_monai_networks_are_the_measured_ones(name):
    network = NETWORKS[name]()
    check_grids(network, convolutions(network), SIZES.get(name, SHAPE))


def test_a_unet_bottleneck_voxel_sits_at_eight_times_its_index():
    layers = traced(NETWORKS["UNet"]())
    grid = layers["model.1.submodule.1.submodule.1.submodule"].grid
    assert grid == Grid((0.0, 0.0, 0.0), (8.0, 8.0, 8.0))


def test_the_grids_of_densenet121_are_the_measured_ones():
    network = DenseNet121(3, 1, 2)
    names = ["conv0", "pool0", "denseblock1.denselayer6.layers.conv2", "transition1.pool"]
    check_grids(network, [f"features.{name}" for name in names], (1, 64, 64, 64))
    # Two more halvings by pooling: 2 + 4 / 2 * 1, then 8 * 0.5 further each time.
    grid = traced(network, (1, 64, 64, 64))["features.transition3.pool"].grid
    assert grid == Grid((14.0, 14.0, 14.0), (32.0, 32.0, 32.0))


@pytest.mark.parametrize(
    ("network", "deep"),
    [
        (SegResNet(3, 8, 1, 2), "up_samples"),
        (DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 16)), "transp_conv"),
    ],
    ids=["SegResNet", "DynUNet"],
)
def test_where_an_upsampled_path_meets_a_skip_the_features_take_the_skips_place(network, deep):
    # These two shift their up-sampled features against the skip (by up to 3.5 voxels); with the
    # deep path cut off, the measured place of all decoder layers is that of the skip.
    layers = traced(network)
    twin = only_geometry(network)
    for name, module in twin.named_modules():
        if deep in name and hasattr(module, "weight"):
            nn.init.zeros_(module.weight)
    names = [name for name in layers if "up" in name and "conv_block.conv1.conv" in name]
    names += [name for name in layers if "up_layers" in name and name.endswith("conv1.conv")]
    assert names
    measured = measured_centres(twin, SHAPE)
    for name in names:
        check_grid(layers[name].grid, measured[name], name)


def test_the_encoders_of_segresnet_and_dynunet_are_the_measured_ones():
    network = SegResNet(3, 8, 1, 2)
    check_grids(network, [name for name in convolutions(network) if "down" in name])
    network = DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 16))
    check_grids(network, [name for name in convolutions(network) if "transp" not in name][:5])


def test_the_patches_of_unetr_are_spread_evenly_and_marked_as_not_followed():
    layers = traced(UNETR(1, 2, (32, 32, 32), 4, 32, 64, 4))
    grid = layers["encoder4.transp_conv_init"].grid
    assert not grid.exact
    assert grid.origin == (3.5, 3.5, 3.5)
    assert grid.spacing == (8.0, 8.0, 8.0)


def test_swin_unetr_lists_no_channels_last_features_as_volumes():
    pytest.importorskip("einops", reason="SwinUNETR needs einops, an optional package of MONAI")
    layers = traced(SwinUNETR(1, 2, feature_size=12), (1, 64, 64, 64))
    assert layers["swinViT.patch_embed.proj"].grid == Grid((0.5,) * 3, (2.0,) * 3)
    assert all(64 % size == 0 for layer in layers.values() for size in layer.shape[1:])


STACKS = {
    "dilation": [conv(3, dilation=2), conv(3, padding=3, dilation=3)],
    "valid padding": [conv(3), conv(5), conv(3, stride=2)],
    "stride 3": [conv(3, stride=3, padding=1), conv(3, stride=3)],
    "even kernel": [conv(4, stride=2, padding=1), conv(2, stride=2)],
    "same padding": [conv(5, padding="same"), conv(3, padding="same", dilation=2)],
    "uneven axes": [
        conv((3, 1, 5), stride=(2, 1, 3), padding=(1, 0, 0)),
        conv((1, 3, 3), stride=(1, 2, 1), padding=(0, 1, 2)),
    ],
    "transposed, kernel 2": [conv(3, stride=2, padding=1), deconv(2, stride=2)],
    "transposed, kernel 3": [
        conv(3, stride=2, padding=1),
        deconv(3, stride=2, padding=1, output_padding=1),
    ],
    "transposed, kernel 4": [conv(2, stride=2), deconv(4, stride=2, padding=1)],
    "transposed, valid": [conv(3, stride=2), deconv(3, stride=2)],
    "transposed, dilated": [conv(3, stride=2), deconv(3, dilation=2, padding=1)],
    "average pooling with padding": [nn.AvgPool3d(3, 2, 1), nn.AvgPool3d(2)],
    "maximum pooling with padding": [nn.MaxPool3d(3, 2, 1), nn.MaxPool3d((1, 2, 2))],
    "adaptive pooling": [conv(3, stride=2, padding=1), nn.AdaptiveAvgPool3d((4, 8, 2))],
    "upsampling, nearest": [conv(3, stride=2, padding=1), nn.Upsample(scale_factor=2)],
    "upsampling, linear": [
        conv(3, stride=2, padding=1),
        nn.Upsample(scale_factor=2, mode="trilinear"),
    ],
    "upsampling, corners aligned": [
        conv(3, stride=2, padding=1),
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
    ],
    "upsampling to a size": [
        conv(3, stride=4, padding=1),
        nn.Upsample(size=(12, 16, 20), mode="trilinear"),
    ],
    "slicing": [
        conv(3, stride=2, padding=1),
        Function(lambda x: x[:, :, 3:-1, 2:, -9:]),
    ],
    "slicing with a step": [Function(lambda x: x[:, :1, 1::2, ::3, 5::2])],
    "padding of all axes": [Function(lambda x: F.pad(x, (1, 2, 3, 0, 4, 1)))],
    "padding of one axis": [Function(lambda x: F.pad(x, (3, 0)))],
    "padding of two axes": [Function(lambda x: F.pad(x, (3, 0, 2, 1)))],
    "padding of channels too": [Function(lambda x: F.pad(x, (3, 0, 2, 1, 1, 1, 0, 4)))],
    "cropping by padding": [Function(lambda x: F.pad(x, (-3, 0, -2, 1, 0, -1)))],
    "padding by copies": [Function(lambda x: F.pad(x, (1, 1, 2, 0, 3, 0), mode="replicate"))],
    "padding by mirroring": [Function(lambda x: F.pad(x, (1, 1, 2, 0, 3, 0), mode="reflect"))],
    "flipping": [conv(3, stride=2, padding=1), Function(lambda x: x.flip(2, 4))],
    "functional code": [
        Function(lambda x: F.interpolate(F.avg_pool3d(x, 3, 2, 1), scale_factor=2.0)),
        Function(lambda x: torch.cat([x[:, :, 1:], x[:, :, 1:] * 2], 1)[:, :2]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_the_grid_behind_an_operation_is_the_measured_one(name):
    network = Stack(nn.Conv3d(1, 2, 3, padding=1), *STACKS[name])
    check_grids(network, ["last"])


def test_a_resize_by_a_factor_that_does_not_fit_uses_the_factor():
    # 7 voxels by 1.5 are 10 voxels at distances of 1 / 1.5, not of 7 / 10.
    network = Stack(nn.Identity(), nn.Upsample(scale_factor=1.5, mode="trilinear"))
    x = torch.arange(7.0).expand(1, 1, 7, 7, 7)
    grid = traced(network, (1, 7, 7, 7))["last"].grid
    inner = slice(1, 8)
    wanted = (grid.origin[2] + grid.spacing[2] * torch.arange(10))[inner]
    torch.testing.assert_close(network(x)[0, 0, 3, 3, inner], wanted)


def test_an_affine_of_a_grid_puts_voxels_where_the_network_saw_them():
    grid = Grid((1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    network_affine = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    voxel = np.array([3.0, 2.0, 1.0, 1.0])
    seen = np.array([1 + 2 * 3, 2 + 4 * 2, 3 + 8 * 1, 1.0])
    assert grid.affine(network_affine) @ voxel == pytest.approx(network_affine @ seen)


# ------------------------------------------------------------------------------------------------
# Instance normalisation


def dead_layers(network: nn.Module, image, names) -> set[str]:
    """Leaf layers whose mean gradient is zero to rounding in every channel, measured."""
    target = Target(output=1, region="everywhere", score="probability")

    def passes(engine):
        return next(iter(engine.layer_passes(tuple(names))))

    found = run_engine(as_model(network), image, target, passes)
    return {
        name
        for name, one in found.items()
        if one.gradient.abs().max() > 0
        and one.gradient.mean((1, 2, 3)).abs().max() < 1e-5 * one.gradient.abs().max()
    }


@pytest.mark.parametrize(
    "network",
    [
        UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2),
        BasicUNet(3, 1, 3, (4, 4, 8, 8, 16, 4)),
        DynUNet(3, 1, 3, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 16)),
        BatchNormNet(),
    ],
    ids=["UNet", "BasicUNet", "DynUNet", "batch norm"],
)
def test_the_layers_said_to_feed_an_instance_norm_are_those_with_a_dead_gradient(network, a_volume):
    said, leaves = said_to_be_dead(network)
    assert said == dead_layers(network, a_volume(*SHAPE), leaves)


def test_a_layer_whose_features_are_also_added_elsewhere_is_not_said_to_be_dead(a_volume):
    # SegResNet normalises before it convolves: most of what goes into a norm also goes around it.
    # (Behind such additions a gradient may be dead all the same: Grad-CAM measures and warns.)
    network = SegResNet(3, 8, 1, 3)
    said, leaves = said_to_be_dead(network)
    assert said
    assert "convInit.conv" in leaves - said
    assert said <= dead_layers(network, a_volume(*SHAPE), leaves)


def said_to_be_dead(network: nn.Module) -> tuple[set[str], set[str]]:
    """Leaf layers that are said to feed an instance norm, and all leaf layers."""
    leaves = [
        layer
        for layer in trace_layers(network, SHAPE)
        if layer.leaf and layer.calls == 1 and not layer.final
    ]
    said = {layer.name for layer in leaves if layer.feeds_instance_norm}
    return said, {layer.name for layer in leaves}


def test_monais_default_unet_has_thirteen_dead_convolutions():
    network = UNet(3, 1, 3, (4, 8, 16, 32), (2, 2, 2), num_res_units=2)
    said = [layer for layer in trace_layers(network, SHAPE) if layer.feeds_instance_norm]
    assert len(said) == 13
    assert {layer.kind for layer in said} <= {"Conv3d", "ConvTranspose3d"}


NORMS = {
    "module": (nn.InstanceNorm3d(4), True),
    "functional": (Function(lambda x: F.instance_norm(x)), True),
    "one group a channel": (nn.GroupNorm(4, 4), True),
    "two channels a group": (nn.GroupNorm(2, 4), False),
    "batch norm": (nn.BatchNorm3d(4), False),
    "kept statistics": (nn.InstanceNorm3d(4, track_running_stats=True), False),
    "behind dropout": (nn.Sequential(nn.Dropout3d(0.5), nn.InstanceNorm3d(4)), True),
    "behind ReLU": (nn.Sequential(nn.ReLU(), nn.InstanceNorm3d(4)), False),
    "behind in-place ReLU": (nn.Sequential(nn.ReLU(inplace=True), nn.InstanceNorm3d(4)), False),
    "beside a skip": (Function(lambda x: x + F.instance_norm(x)), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_convolution_feeds_an_instance_norm_only_where_nothing_else_sees_it(name):
    norm, feeds = NORMS[name]
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm, nn.Conv3d(4, 2, 1))
    assert traced(network, (1, 8, 8, 8))["0"].feeds_instance_norm is feeds


def test_an_activation_in_place_feeds_the_norm_and_the_convolution_before_it_does_not():
    # Both give the same tensor, at different times.
    conv_, norm = nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4)
    network = nn.Sequential(conv_, nn.ReLU(inplace=True), norm, nn.Conv3d(4, 2, 1))
    layers = traced(network, (1, 8, 8, 8))
    assert not layers["0"].feeds_instance_norm
    assert layers["1"].feeds_instance_norm


# ------------------------------------------------------------------------------------------------
# The list


def test_layers_are_listed_in_the_order_in_which_they_finish(unet):
    order: list[str] = []
    for name, module in unet.named_modules():
        if name:
            module.register_forward_hook(
                lambda _m, _i, out, name=name: None if is_fake(out) else order.append(name)
            )
    unet(torch.zeros(1, *SHAPE))
    assert [layer.name for layer in trace_layers(unet, SHAPE)] == order


def test_shapes_are_those_of_a_real_run(unet):
    shapes = {}
    for name, module in unet.named_modules():
        module.register_forward_hook(
            lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    unet(torch.zeros(1, *SHAPE))
    assert {name: layer.shape for name, layer in traced(unet).items()} == {
        name: shape for name, shape in shapes.items() if name
    }


class Reusing(nn.Module):
    """One activation used three times, a layer that never runs, one that gives no volume."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 3, 1)
        self.act = nn.ReLU()
        self.unused = nn.Conv3d(3, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.two(self.act(self.two(self.act(self.one(x))))))
        return self.head(x.mean((2, 3, 4)))


def test_a_reused_module_stands_at_its_last_call_with_the_number_of_calls():
    layers = trace_layers(Reusing(), (1, 8, 8, 8))
    assert [(layer.name, layer.calls) for layer in layers] == [("one", 1), ("two", 2), ("act", 3)]


def test_the_layers_that_give_the_networks_output_are_marked():
    network = nn.Sequential(
        nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Sequential(nn.Conv3d(2, 2, 1), nn.Dropout())
    )
    final = [layer.name for layer in trace_layers(network, (1, 4, 4, 4)) if layer.final]
    assert final == ["2.0", "2.1", "2"]


def test_activations_are_known_by_their_type():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.PReLU(), nn.Sequential(nn.GELU()))
    said = {layer.name: layer.activation for layer in trace_layers(network, (1, 4, 4, 4))}
    assert said == {"0": False, "1": True, "2.0": True, "2": False}


# ------------------------------------------------------------------------------------------------
# No trace left


class DataDependent(nn.Module):
    """Code that looks at values, so that it cannot run without data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(3)
        self.raising = Raising(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.raising(self.norm(self.conv(x)))
        return y if float(y.sum()) >= 0 else -y


@pytest.mark.parametrize("make", [NETWORKS["UNet"], DataDependent], ids=["UNet", "data-dependent"])
def test_looking_at_the_layers_leaves_the_network_as_it_was(make):
    network = make().train()
    next(network.children()).eval()
    before = state_of(network)
    trace_layers(network, SHAPE)
    assert state_of(network) == before
    assert all(type(one) is nn.Parameter for one in network.parameters())
    assert all(one.untyped_storage().nbytes() for one in network.parameters())


def test_no_real_pass_is_run_to_look_at_the_layers():
    network = Reusing()
    network.one = Stack(Raising(1), network.one)
    assert traced(network, (1, 8, 8, 8))["one.last"].shape == (3, 8, 8, 8)


def test_a_network_that_looks_at_its_data_is_run_for_real():
    network = DataDependent()
    seen = []
    network.register_forward_pre_hook(lambda _m, inputs: seen.append(is_fake(inputs[0])))
    layers = traced(network, (1, 8, 8, 8))
    assert seen[-1] is False
    assert layers["norm"].grid == Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0))


def test_a_broken_data_dependent_network_is_left_as_it_was():
    network = DataDependent().train()
    network.conv.eval()
    network.raising.left = 1
    before = state_of(network)
    with pytest.raises(ModelError, match="this layer is broken"):
        trace_layers(network, (1, 8, 8, 8))
    assert state_of(network) == before


def test_a_shape_that_does_not_fit_is_told_with_the_shape():
    with pytest.raises(ModelError, match=r"does not run on an input of shape \(3, 8, 8, 8\)"):
        trace_layers(Classifier(), (3, 8, 8, 8))


# ------------------------------------------------------------------------------------------------
# Moving maps between grids


def test_a_map_that_is_linear_in_space_stays_itself_between_its_outermost_voxels():
    grid = Grid((0.5, 2.0, 0.0), (2.0, 3.0, 1.0))
    sizes, shape = (6, 4, 9), (12, 12, 9)
    i, j, k = np.meshgrid(
        *[o + s * np.arange(n) for o, s, n in zip(grid.origin, grid.spacing, sizes, strict=True)],
        indexing="ij",
    )
    layer_map = torch.tensor(2 * i - 3 * j + 0.5 * k + 7)[None].float()
    found = on_network_grid(layer_map, grid, shape)[0].numpy()
    i, j, k = np.indices(shape)
    wanted = 2 * np.clip(i, 0.5, 10.5) - 3 * np.clip(j, 2, 11) + 0.5 * k + 7
    assert found == pytest.approx(wanted, abs=1e-4)


def test_a_volume_is_read_at_the_centres_of_a_layers_voxels():
    i, j, k = np.indices((10, 10, 10)).astype(np.float32)
    volume = torch.tensor(np.stack([i + 10 * j, k]))
    found = at_layer_voxels(volume, Grid((0.5, 1.0, 0.0), (2.0, 3.0, 1.0)), (2, 2, 2))
    assert found[0, :, :, 0].numpy() == pytest.approx(np.array([[10.5, 40.5], [12.5, 42.5]]))
    assert found[1, 0, 0].tolist() == [0.0, 1.0]


def test_interpolation_weights_sum_to_one_everywhere_and_at_a_single_voxel():
    for size in (1, 2, 7):
        weights = axis_weights(torch.linspace(-3, 9, 50), size)
        assert weights.sum(1) == pytest.approx(torch.ones(50, dtype=torch.float64))
        assert weights.min() >= 0


def test_a_flipped_grid_reads_the_map_backwards():
    layer_map = torch.arange(4.0).reshape(1, 4, 1, 1)
    found = on_network_grid(layer_map, Grid((3.0, 0.0, 0.0), (-1.0, 1.0, 1.0)), (4, 1, 1))
    assert found.flatten().tolist() == [3.0, 2.0, 1.0, 0.0]
