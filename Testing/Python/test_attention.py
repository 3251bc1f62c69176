"""Attention rollout and rows, against matrices that MONAI and torch give out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import UNETR, SwinUNETR, ViT, ViTAutoEnc
from monai.networks.nets.swin_unetr import (
    PatchMerging,
    WindowAttention,
    get_window_size,
    window_partition,
)
from references import Classifier, as_model, state_of
from scipy.ndimage import map_coordinates
from torch import nn

from SaliencyExplainLib.engine import recorded_attention
from SaliencyExplainLib.errors import Cancelled, MethodError
from SaliencyExplainLib.image import make_image, read_image
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.model import Model, Windows, plan_windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

EYE = np.eye(4)


# ------------------------------------------------------------------------------------------------
# Networks


def sharpen(network: nn.Module, factor: float = 8.0) -> nn.Module:
    """Larger query and key weights: a random transformer attends evenly, which hides mistakes."""
    for name, parameter in network.named_parameters():
        if any(key in name for key in ("qkv.weight", "in_proj_weight", "relative_position_bias")):
            parameter.data *= factor
    return network.eval()


class First(nn.Module):
    """The first output of a network that gives several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[0]


def vit(seed: int = 0, shape=(16, 8, 12), **options) -> ViT:
    """Three blocks over patches of 4 voxels (4 x 2 x 3), with a class token."""
    torch.manual_seed(seed)
    options = {"classification": True, "num_classes": 3, "post_activation": None, **options}
    network = ViT(1, shape, (4, 4, 4), 24, 48, 3, 3, save_attn=True, **options)
    if hasattr(network, "cls_token"):
        nn.init.normal_(network.cls_token)
    return sharpen(network)


def unetr(seed: int = 0, **options) -> UNETR:
    """Twelve blocks over 2 x 2 x 3 patches of 16 voxels."""
    torch.manual_seed(seed)
    return sharpen(
        UNETR(
            1,
            2,
            (32, 32, 48),
            feature_size=4,
            hidden_size=24,
            mlp_dim=48,
            num_heads=3,
            norm_name="batch",
            save_attn=True,
            **options,
        )
    )


def swin(seed: int = 0, **options) -> SwinUNETR:
    """Windows of 3 on grids of 16 x 16 x 32 and coarser: padded, shifted, merged."""
    torch.manual_seed(seed)
    options = {"window_size": 3, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2), **options}
    return sharpen(SwinUNETR(1, 2, feature_size=12, norm_name="batch", **options), 4.0)


class Patches(nn.Module):
    """Patches of 4 voxels behind a crop, one attention given by a function, the mean as output."""

    def __init__(self, attend, crop: tuple[int, int, int] = (0, 0, 0), features: int = 6) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Conv3d(1, features, 4, stride=4)
        self.attention = Attention(attend, features)
        self.head = nn.Linear(features, 2)
        self.crop = crop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        i, j, k = self.crop
        tokens = self.embed(x[:, :, i:, j:, k:]).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attention(tokens)).mean(1))


class Attention(nn.Module):
    """Queries, keys and values of tokens (B, N, C), joined by a function; keeps the matrix."""

    def __init__(self, attend, features: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.attend = attend
        self.seen: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (4 * self.qkv(tokens)).chunk(3, -1)
        result, self.seen = self.attend(q, k, v)
        return result


def by_rows(q, k, v):
    """As it should be: softmax along the keys, weights times values."""
    weights = (q @ k.mT).softmax(-1)
    return weights @ v, weights


def by_columns(q, k, v):
    """As in MLDAM's port to torch: values times the matrix, not transposed: columns are used."""
    weights = (q @ k.mT).softmax(-1)
    return (v.mT @ weights).mT, weights.mT


def by_flat_columns(q, k, v):
    """The same, with the softmax over the whole flattened matrix."""
    scores = q @ k.mT
    weights = scores.flatten(1).softmax(-1).view(scores.shape)
    return (v.mT @ weights).mT, weights.mT


def by_transposed_scores(q, k, v):
    """Scores with keys as rows, softmax along them, transposed when used."""
    weights = (k @ q.mT).softmax(-2)
    return weights.mT @ v, weights.mT


def by_einsum(q, k, v):
    weights = torch.einsum("bqc,bkc->bqk", q, k).softmax(2)
    return torch.einsum("bqk,bkc->bqc", weights, v), weights


def by_fused_kernel(q, k, v):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return nn.functional.scaled_dot_product_attention(q, k, v), weights


FORMS = [
    by_rows,
    by_columns,
    by_flat_columns,
    by_transposed_scores,
    by_einsum,
    by_fused_kernel,
]


# ------------------------------------------------------------------------------------------------
# The references


def volume(*shape: int, seed: int = 0) -> MetaTensor:
    generator = torch.Generator().manual_seed(seed)
    return make_image(torch.randn((1, *shape), generator=generator), EYE)


def saved(network: nn.Module, heads: str = "mean") -> list[np.ndarray]:
    """The matrices (N, N) that MONAI's own blocks saved in their last run."""
    join = {"mean": np.mean, "max": np.max, "min": np.min}[heads]
    return [
        join(block.att_mat[0].double().numpy(), axis=0)
        for block in network.modules()
        if isinstance(block, SABlock)
    ]


def rollout(matrices: list[np.ndarray], residual: float = 0.5) -> np.ndarray:
    """R = A_L ... A_1, in full."""
    product = np.eye(len(matrices[0]))
    for matrix in matrices:
        mixed = (1 - residual) * matrix + residual * np.eye(len(matrix))
        product = mixed / mixed.sum(1, keepdims=True) @ product
    return product


def interpolated(tokens: np.ndarray, shape: tuple[int, ...], patch: float, first=None):
    """Token values read at every voxel, the tokens at their patches' centres."""
    first = [(patch - 1) / 2] * 3 if first is None else first
    axes = [(np.arange(n) - start) / patch for n, start in zip(shape, first, strict=True)]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    return map_coordinates(tokens, where, order=1, mode="nearest")


def part_of_patches(mask: np.ndarray, patch: int) -> np.ndarray:
    """Share of a mask in each patch, flattened."""
    grid = [side // patch for side in mask.shape]
    blocks = mask.reshape(grid[0], patch, grid[1], patch, grid[2], patch).sum((1, 3, 5))
    return (blocks / mask.sum()).ravel()


def dense_swin(network: SwinUNETR, x: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every block of the shifted-window transformer as an N x N matrix, and each merging.

    The window attention's own softmax is recorded; which tokens it is about is found by sending
    their numbers through MONAI's own padding, rolling and partitioning.
    """
    weights: dict[str, torch.Tensor] = {}
    numbers: dict[str, torch.Tensor] = {}
    removals = []
    for name, block in network.named_modules():
        if type(block).__name__ != "SwinTransformerBlock":
            continue

        def keep(_module, _inputs, output, name=name):
            weights[name] = output.detach().double()

        def number(module, inputs, name=name):
            shape = inputs[0].shape[1:4]
            window, shift = get_window_size(shape, module.window_size, module.shift_size)
            tokens = torch.arange(1, 1 + shape.numel()).view(1, *shape, 1)
            pad = [-side % size for side, size in zip(shape, window, strict=True)]
            tokens = nn.functional.pad(tokens, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
            tokens = torch.roll(tokens, [-step for step in shift], (1, 2, 3))
            numbers[name] = window_partition(tokens, window)[..., 0] - 1

        removals.append(block.attn.softmax.register_forward_hook(keep))
        removals.append(block.register_forward_pre_hook(number))
    with torch.no_grad():
        network(x)
    for removal in removals:
        removal.remove()
    matrices = []
    for name, tokens in numbers.items():
        count = int(tokens.max()) + 1
        matrix = np.zeros((count, count))
        for window, mean in zip(tokens, weights[name].mean(1), strict=True):
            real = window[window >= 0].numpy()
            matrix[np.ix_(real, real)] += mean[window >= 0][:, window >= 0].numpy()
        matrices.append(matrix)
    return matrices


def merging(shape: tuple[int, int, int]) -> np.ndarray:
    """Each merged token as the mean of its eight."""
    half = [side // 2 for side in shape]
    matrix = np.zeros((np.prod(half), np.prod(shape)))
    for coarse in itertools.product(*map(range, half)):
        row = np.ravel_multi_index(coarse, half)
        for step in itertools.product(range(2), repeat=3):
            fine = [2 * place + one for place, one in zip(coarse, step, strict=True)]
            matrix[row, np.ravel_multi_index(fine, shape)] = 1 / 8
    return matrix


def maps_of(explanation) -> np.ndarray:
    return explanation.maps.as_tensor()[0].numpy()


def tokens_of(explanation) -> np.ndarray:
    return explanation.layer_map.as_tensor()[0].numpy()


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    """Equal to single precision, and not so flat that anything would be equal."""
    assert found.shape == wanted.shape
    assert wanted.std() > 1e-3 * abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance * abs(wanted).max(), rtol=0)


def classifier(network: nn.Module) -> Model:
    return as_model(First(network), task="classification")


@contextmanager
def counted(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inputs of the network's runs."""
    seen: list[torch.Tensor] = []
    hook = network.register_forward_pre_hook(lambda _m, given: seen.append(given[0].clone()))
    yield seen
    hook.remove()


# ------------------------------------------------------------------------------------------------
# A vision transformer with a class token


def test_rollout_is_the_class_tokens_row_of_the_product_of_the_saved_matrices():
    network = vit()
    found = explain(classifier(network), volume(16, 8, 12), Target(output=1), "attention_rollout")
    wanted = rollout(saved(network))[0, 1:].reshape(4, 2, 3)
    close(tokens_of(found), wanted)
    close(maps_of(found), interpolated(wanted, (16, 8, 12), 4))
    assert found.details["query"] == "class token"
    assert found.details["share_without_a_place"] == pytest.approx(1 - wanted.sum(), abs=1e-6)
    assert found.layers == (
        "network.blocks.0.attn",
        "network.blocks.1.attn",
        "network.blocks.2.attn",
    )
    assert found.parameters["layer"] == "network.blocks.2.attn"


def test_rows_are_the_class_tokens_row_of_the_saved_matrix_of_that_block():
    network = vit(1)
    for index in range(3):
        found = explain(
            classifier(network),
            volume(16, 8, 12),
            Target(output=0),
            "attention_rows",
            layer=f"network.blocks.{index}.attn",
        )
        close(tokens_of(found), saved(network)[index][0, 1:].reshape(4, 2, 3))
        assert found.layers == (f"network.blocks.{index}.attn",)
    again = explain(classifier(network), volume(16, 8, 12), Target(output=0), "attention_rows")
    np.testing.assert_array_equal(maps_of(again), maps_of(found))


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.2, 0.5])
def test_heads_and_residual_are_joined_as_the_formula_says(heads, residual):
    network = vit(2)
    found = explain(
        classifier(network),
        volume(16, 8, 12),
        Target(output=2),
        "attention_rollout",
        heads=heads,
        residual=residual,
    )
    wanted = rollout(saved(network, heads), residual)
    close(tokens_of(found), wanted[0, 1:].reshape(4, 2, 3))


def test_rollout_from_an_inner_block_leaves_out_those_behind_it():
    network = vit()
    found = explain(
        classifier(network),
        volume(16, 8, 12),
        Target(output=1),
        "attention_rollout",
        layer="network.blocks.1.attn",
    )
    close(tokens_of(found), rollout(saved(network)[:2])[0, 1:].reshape(4, 2, 3))


def test_the_mean_over_all_tokens_can_be_asked_for():
    network = vit()
    found = explain(
        classifier(network), volume(16, 8, 12), Target(output=1), "attention_rollout", query="mean"
    )
    close(tokens_of(found), rollout(saved(network))[1:, 1:].mean(0).reshape(4, 2, 3))
    assert found.details["query"] == "mean over all tokens"


def test_an_embedding_without_a_convolution_gives_the_same_places():
    network = vit(3, proj_type="perceptron")
    found = explain(classifier(network), volume(16, 8, 12), Target(output=1), "attention_rollout")
    wanted = rollout(saved(network))[0, 1:].reshape(4, 2, 3)
    close(maps_of(found), interpolated(wanted, (16, 8, 12), 4))


def test_fused_kernels_give_the_same_map():
    network = vit()
    image = volume(16, 8, 12)
    plain = explain(classifier(network), image, Target(output=1), "attention_rollout")
    for block in network.blocks:
        block.attn.use_flash_attention = True
        block.attn.save_attn = False
    fast = explain(classifier(network), image, Target(output=1), "attention_rollout")
    close(maps_of(fast), maps_of(plain), 1e-5)


class Pooled(nn.Module):
    """A transformer whose head reads the mean of all tokens, or all of them flattened."""

    def __init__(self, kind: str, class_token: bool) -> None:
        super().__init__()
        self.vit = vit(4)
        self.vit.classification_head = nn.Identity()
        self.kind = kind
        if not class_token:
            del self.vit.cls_token
        del self.vit.classification_head
        self.head = nn.Linear(24 if kind == "mean" else 24 * (24 + class_token), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit(x)[0]
        return self.head(tokens.mean(1) if self.kind == "mean" else tokens.flatten(1))


@pytest.mark.parametrize("kind", ["mean", "flat"])
@pytest.mark.parametrize("class_token", [False, True])
def test_the_query_is_what_the_output_was_read_from(kind, class_token):
    network = Pooled(kind, class_token)
    model = as_model(network, task="classification")
    found = explain(model, volume(16, 8, 12), Target(output=1), "attention_rollout")
    wanted = rollout(saved(network)).mean(0)[int(class_token) :]
    close(tokens_of(found), wanted.reshape(4, 2, 3))
    assert found.details["query"] == "tokens behind the output"


class LearnedQuery(nn.Module):
    """Patches that are pooled by attention from a query of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.embed = nn.Conv3d(1, 8, 4, stride=4)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.pool = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.seen = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = 8 * self.embed(x).flatten(2).mT
        pooled, self.seen = self.pool(self.query, tokens, tokens)
        return self.head(pooled[:, 0])


def test_attention_pooling_is_shown_from_the_networks_own_query():
    network = LearnedQuery().eval()
    model = as_model(network, task="classification")
    found = explain(model, volume(8, 12, 16), Target(output=1), "attention_rows")
    close(tokens_of(found), network.seen[0, 0].detach().double().numpy().reshape(2, 3, 4))
    assert found.details["query"] == "class token"


# ------------------------------------------------------------------------------------------------
# Every way to write attention


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_row_of_a_token_holds_the_weights_that_made_it(form):
    network = Patches(form)
    model = as_model(network, task="classification")
    x = volume(8, 12, 16)
    with recorded_attention(network, x[None]) as recorder:
        network(x.as_tensor()[None])
    (call,) = recorder.calls
    weights = network.attention.seen[0].numpy()
    close(call.weights[0].numpy(), weights)
    assert abs(weights - weights.T).max() > 0.01
    # The map is the mean row, each normalised.
    found = explain(model, x, Target(output=1), "attention_rows")
    wanted = (weights / weights.sum(1, keepdims=True)).mean(0).reshape(2, 3, 4)
    close(tokens_of(found), wanted, 1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("needs_weights", [True, False])
def test_torchs_multihead_attention_is_seen_with_the_weights_that_it_returns(
    batch_first, needs_weights
):
    torch.manual_seed(7)
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first).eval()

    def attend(q, k, v):
        tokens = v if batch_first else v.transpose(0, 1)
        result, _ = attention(tokens, tokens, tokens, need_weights=needs_weights)
        return (result if batch_first else result.transpose(0, 1)), None

    network = Patches(attend).eval()
    x = volume(8, 12, 16).as_tensor()[None]
    with recorded_attention(network, x) as recorder:
        network(x)
    with torch.no_grad():
        tokens = 4 * network.attention.qkv(network.embed(x).flatten(2).mT).chunk(3, -1)[2]
        tokens = tokens if batch_first else tokens.transpose(0, 1)
        weights = attention(tokens, tokens, tokens)[1]
    close(recorder.calls[0].weights.numpy(), weights.numpy(), 1e-5)


class Encoder(nn.Module):
    """Two of torch's encoder layers, which take a fused path of their own in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.embed = nn.Conv3d(1, 8, 4, stride=4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 2)
        sharpen(self, 6.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x).flatten(2).mT).mean(1))


def test_torchs_encoder_is_seen_though_its_fast_path_hides_the_attention():
    network = Encoder().eval()
    model = as_model(network, task="classification")
    x = volume(8, 12, 16)
    matrices = []
    with torch.no_grad():
        tokens = network.embed(x.as_tensor()[None]).flatten(2).mT
        for layer in network.encoder.layers:
            matrices.append(layer.self_attn(tokens, tokens, tokens)[1][0].double().numpy())
            tokens = layer(tokens)
    found = explain(model, x, Target(output=1), "attention_rollout")
    close(tokens_of(found), rollout(matrices).mean(0).reshape(2, 3, 4), 1e-5)
    assert found.layers == ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn")


def between_channels(q, k, v):
    """Attention between features, not between places."""
    weights = (q.mT @ k).softmax(-1)
    return (weights @ v.mT).mT, weights


def test_attention_between_channels_is_no_attention_between_tokens():
    model = as_model(Patches(between_channels), task="classification")
    with pytest.raises(MethodError, match=r"no attention between tokens of the volume"):
        explain(model, volume(8, 8, 8), Target(output=1), "attention_rows")


# ------------------------------------------------------------------------------------------------
# Places


@pytest.mark.parametrize("crop", [(0, 0, 0), (3, 1, 2)])
def test_the_map_lies_where_the_attended_patch_lies(crop):
    def bright(q, k, v):
        # All tokens look at the one whose value is largest.
        scores = 1e4 * v.abs().sum(-1)[:, None].expand(-1, v.shape[1], -1)
        weights = scores.softmax(-1)
        return weights @ v, weights

    network = Patches(bright, crop)
    nn.init.ones_(network.embed.weight)
    nn.init.zeros_(network.embed.bias)
    nn.init.zeros_(network.attention.qkv.bias)
    affine = np.diag([0.8, -1.5, 2.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    values = torch.zeros(1, 24, 24, 24)
    corner = [4 * index + start for index, start in zip((2, 1, 3), crop, strict=True)]
    patch = tuple(slice(start, start + 4) for start in corner)
    values[(slice(None), *patch)] = 1.0
    found = explain(
        as_model(network, task="classification"),
        make_image(values, affine),
        Target(output=1),
        "attention_rows",
    )
    tokens = tokens_of(found)
    assert tokens.max() == pytest.approx(1, abs=1e-5)
    peak = np.unravel_index(tokens.argmax(), tokens.shape)
    assert peak == (2, 1, 3)
    centre = np.array([start + 1.5 for start in corner])
    ras = found.layer_map.affine.numpy() @ [*peak, 1]
    np.testing.assert_allclose(ras, affine @ [*centre, 1], atol=1e-9)
    # The map on the voxels has its centre of mass there as well.
    values = maps_of(found)
    voxels = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1)
    mass = (values[..., None] * voxels).sum((0, 1, 2)) / values.sum()
    np.testing.assert_allclose(mass, centre, atol=1e-5)


def shuffled(q, k, v):
    """Attention over tokens whose order the network has changed, and changes back."""
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    result, weights = by_rows(q[:, order], k[:, order], v[:, order])
    back = order.argsort()
    return result[:, back], weights[:, back][:, :, back]


def test_tokens_that_a_network_reorders_keep_their_places():
    network = Patches(shuffled)
    found = explain(
        as_model(network, task="classification"),
        volume(8, 8, 8),
        Target(output=1),
        "attention_rows",
    )
    close(tokens_of(found), network.attention.seen[0].numpy().mean(0).reshape(2, 2, 2), 1e-5)


# ------------------------------------------------------------------------------------------------
# Segmentation


def a_point(i: float, j: float, k: float) -> Target:
    return Target(output=1, region="point", point_ras_mm=(i, j, k))


def test_the_query_of_a_point_is_the_token_that_it_lies_in():
    network = unetr()
    image = volume(32, 32, 48)
    found = explain(as_model(network), image, a_point(5, 17, 40), "attention_rollout")
    # Patch (0, 1, 2) of 2 x 2 x 3.
    wanted = rollout(saved(network))[5].reshape(2, 2, 3)
    close(tokens_of(found), wanted)
    close(maps_of(found), interpolated(wanted, (32, 32, 48), 16))
    assert found.details == {"query": "tokens in the region", "share_without_a_place": 0.0}
    row = explain(as_model(network), image, a_point(5, 17, 40), "attention_rows")
    close(tokens_of(row), saved(network)[-1][5].reshape(2, 2, 3))


def test_a_region_gives_each_token_its_part():
    network = unetr(1)
    image = volume(32, 32, 48)
    mask = torch.zeros(1, 32, 32, 48)
    mask[:, 10:20, 3:30, 20:40] = 1
    target = Target(output=1, segment=make_image(mask, EYE))
    found = explain(as_model(network), image, target, "attention_rollout")
    query = part_of_patches(mask[0].numpy(), 16)
    assert (query > 0).sum() == 8
    close(tokens_of(found), (query @ rollout(saved(network))).reshape(2, 2, 3))
    assert tokens_of(found).sum() == pytest.approx(1, abs=1e-5)


def test_an_autoencoder_of_patches_works_as_a_dense_regression():
    torch.manual_seed(0)
    inner = ViTAutoEnc(1, (8, 16, 8), (4, 4, 4), 1, 4, 24, 48, 2, 3, save_attn=True)
    network = First(sharpen(inner))
    model = as_model(network, task="regression")
    found = explain(model, volume(8, 16, 8), Target(), "attention_rollout")
    close(tokens_of(found), rollout(saved(network)).mean(0).reshape(2, 4, 2))


def test_the_map_does_not_depend_on_the_class_and_its_card_says_so():
    network = unetr()
    mask = make_image(torch.ones(1, 32, 32, 48), EYE)
    maps = [
        maps_of(
            explain(
                as_model(network),
                volume(32, 32, 48),
                Target(output=one, segment=mask),
                "attention_rows",
            )
        )
        for one in (0, 1)
    ]
    np.testing.assert_array_equal(*maps)
    for name in ("attention_rows", "attention_rollout"):
        assert "attention is not attribution" in make_method(name).weaknesses
        assert "same for every class" in make_method(name).weaknesses
        assert not make_method(name).is_signed()


def test_on_an_oblique_scan_each_token_lies_at_its_place_in_the_patient(real_data):
    scan = read_image(real_data / "volumes" / "flair_oblique.nii.gz")
    shape = scan.shape[1:]
    size = (16, 12, 8)
    start = [(side - part) // 2 for side, part in zip(shape, size, strict=True)]
    box = tuple(slice(a, a + part) for a, part in zip(start, size, strict=True))
    shift = np.eye(4)
    shift[:3, 3] = start
    affine = scan.affine.numpy() @ shift
    values = scan.as_tensor()[(slice(None), *box)]
    image = make_image((values - values.mean()) / values.std(), affine)
    network = vit(shape=size)
    found = explain(classifier(network), image, Target(output=1), "attention_rollout")
    close(tokens_of(found), rollout(saved(network))[0, 1:].reshape(4, 3, 2), 1e-5)
    placed = found.layer_map.affine.numpy()
    for token in ((0, 0, 0), (3, 2, 1), (1, 2, 0)):
        centre = affine @ [*(4 * np.array(token) + 1.5), 1]
        np.testing.assert_allclose(placed @ [*token, 1], centre, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.maps.affine.numpy(), affine, atol=1e-5)


# ------------------------------------------------------------------------------------------------
# Windows inside the network


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (32, 32, 64)), ({"window_size": 4}, (32,) * 3)]
)
def test_swins_rows_are_those_of_its_own_windows_put_into_the_volume(options, shape):
    network = swin(**options)
    image = volume(*shape)
    matrices = dense_swin(network, image.as_tensor()[None])
    names = [name for name, one in network.named_modules() if isinstance(one, WindowAttention)]
    grid = [side // 2 for side in shape]
    for index, name in enumerate(names[:4]):
        side = 2 ** (1 + index // 2)
        grid = [one // side for one in shape]
        point = (shape[0] - 2, 9, shape[2] // 2 + 3)
        token = np.ravel_multi_index([int(one // side) for one in point], grid)
        found = explain(as_model(network), image, a_point(*point), "attention_rows", layer=name)
        row = matrices[index][token]
        close(tokens_of(found), (row / row.sum()).reshape(grid), 1e-5)
        # A row stays in its window.
        assert (tokens_of(found) > 0).sum() <= options.get("window_size", 3) ** 3
        np.testing.assert_allclose(
            found.layer_map.affine.numpy()[:3], np.c_[np.eye(3) * side, [(side - 1) / 2] * 3]
        )


@pytest.mark.parametrize("options", [{}, {"use_v2": True}, {"use_flash_attention": True}])
@pytest.mark.parametrize("residual", [0.5, 0.1])
def test_rollout_through_shifted_windows_and_merging_is_the_dense_product(options, residual):
    network = swin(1, **options)
    shape = (32, 32, 64)
    image = volume(*shape, seed=3)
    network.swinViT.apply(lambda one: setattr(one, "use_flash_attention", False))
    matrices = dense_swin(network, image.as_tensor()[None])
    for one in network.modules():
        if isinstance(one, WindowAttention):
            one.use_flash_attention = options.get("use_flash_attention", False)
    target = a_point(20, 11, 37)
    found = explain(as_model(network), image, target, "attention_rollout", residual=residual)
    query = np.zeros(2 * 2 * 4)
    query[np.ravel_multi_index((1, 0, 2), (2, 2, 4))] = 1
    for stage in (3, 2, 1, 0):
        for matrix in (matrices[2 * stage + 1], matrices[2 * stage]):
            mixed = (1 - residual) * matrix + residual * np.eye(len(matrix))
            query = query @ (mixed / mixed.sum(1, keepdims=True))
        if stage:
            query = query @ merging(tuple(side // 2**stage for side in shape))
    wanted = query.reshape(16, 16, 32)
    close(tokens_of(found), wanted, 1e-5)
    close(maps_of(found), interpolated(wanted, shape, 2), 1e-5)
    assert found.details["share_without_a_place"] == 0
    assert "Rollout was carried through both" in found.warnings[0]
    assert len(found.layers) == 8


class Merged(nn.Module):
    """Patches of 2, merged by MONAI's layer where their number is odd, then one attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(10)
        self.embed = nn.Conv3d(1, 4, 2, 2)
        self.first = Attention(by_rows, 4)
        self.merge = PatchMerging(4)
        self.second = Attention(by_rows, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.embed(x).movedim(1, -1)
        tokens = grid.flatten(1, 3)
        grid = (tokens + self.first(tokens)).view(grid.shape)
        tokens = self.merge(grid).flatten(1, 3)
        return self.head((tokens + self.second(tokens)).mean(1))


def test_an_odd_number_of_tokens_is_merged_onto_a_regular_grid():
    network = Merged()
    model, image = as_model(network, task="classification"), volume(10, 8, 6)
    rows = explain(model, image, Target(output=1), "attention_rows")
    close(tokens_of(rows), network.second.seen[0].mean(0).view(3, 2, 2).numpy(), 1e-5)
    np.testing.assert_allclose(rows.layer_map.affine.numpy()[:3], np.c_[4 * np.eye(3), [1.5] * 3])
    found = explain(model, image, Target(output=1), "attention_rollout")
    first, second = (one.seen[0].double().numpy() for one in (network.first, network.second))
    merge = merging((6, 4, 4)).reshape(12, 6, 4, 4)[:, :5, :4, :3].reshape(12, 60)
    merge /= merge.sum(1, keepdims=True)
    wanted = (rollout([second]) @ merge @ rollout([first])).mean(0)
    close(tokens_of(found), wanted.reshape(5, 4, 3), 1e-5)


class Hybrid(nn.Module):
    """Strided convolutions in front, keys on a coarser grid, a finer second stage.

    Tokens at 0, 2, 4, ...; keys at the means of two; then tokens on every voxel.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.stem = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.InstanceNorm3d(6), nn.ReLU())
        self.reduce = nn.Conv3d(6, 6, 2, 2)
        self.up = nn.ConvTranspose3d(6, 6, 2, 2)
        self.linear = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.head = nn.Conv3d(6, 2, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = []
        features = self.stem(x)
        for index in (0, 2):
            tokens = features.flatten(2).mT
            coarse = self.reduce(features).flatten(2).mT
            scores = 9 * self.linear[index](tokens) @ self.linear[index + 1](coarse).mT
            self.seen.append(scores.softmax(-1))
            tokens = tokens + self.seen[-1] @ coarse
            features = tokens.mT.unflatten(2, features.shape[2:])
            if index == 0:
                features = self.up(features)
        return self.head(features)


def test_keys_on_a_coarser_grid_and_finer_stages_are_followed():
    network = Hybrid()
    model, image, target = as_model(network), volume(4, 8, 8), a_point(3, 2, 5)
    row = explain(model, image, target, "attention_rows", layer="")
    first, second = (one[0].detach().double().numpy() for one in network.seen)
    query = np.zeros(4 * 8 * 8)
    # A transposed convolution of 2 by 2 puts voxels at -0.5, 0.5, ...: 3 is nearest to the fourth
    # or fifth (2.5, 3.5), a tie that goes up; the last along the first axis is the fourth.
    query[np.ravel_multi_index((3, 3, 6), (4, 8, 8))] = 1
    close(tokens_of(row), (query @ second).reshape(2, 4, 4), 1e-5)
    np.testing.assert_allclose(row.layer_map.affine.numpy()[:3], np.c_[2 * np.eye(3), [0, 0, 0]])
    found = explain(model, image, target, "attention_rollout")
    for weights, shape in ((second, (4, 8, 8)), (first, (2, 4, 4))):
        query = 0.5 * query + 0.5 * query @ weights @ merging(shape)
        if shape == (4, 8, 8):
            # Each fine token is nearest to one coarse token: the mean the other way round.
            query = query @ (8 * merging(shape)).T
    close(tokens_of(found), query.reshape(2, 4, 4), 1e-5)
    np.testing.assert_allclose(found.layer_map.affine.numpy()[:3], np.c_[2 * np.eye(3), [0, 0, 0]])


# ------------------------------------------------------------------------------------------------
# Windows around the network


def windowed(network: nn.Module) -> Model:
    return as_model(network, inferer=Windows((32, 32, 48), (0.5, 0.25, 0.25), "gaussian"))


@pytest.mark.parametrize("name", ["attention_rollout", "attention_rows"])
@pytest.mark.parametrize("shape", [(45, 32, 60), (30, 40, 48)])
def test_windows_are_added_with_their_parts_in_the_fusion(name, shape):
    network = unetr(2)
    model, image = windowed(network), volume(*shape)
    mask = torch.zeros(1, *shape)
    mask[:, 5:20, 8:20, 10:50] = 1
    target = Target(output=1, segment=make_image(mask, EYE))
    found = explain(model, image, target, name)
    plan = plan_windows(model.inferer, shape)
    padded = plan.pad(image.as_tensor()[None])
    inside = torch.zeros(plan.weight_sum.shape)
    inside[plan.inside] = mask[0] / mask.sum()
    total = np.zeros(plan.weight_sum.shape)
    shares = []
    for window in plan.windows:
        query = (inside[window] * plan.fraction(window)).double().numpy()
        with torch.no_grad():
            network(padded[(slice(None), slice(None), *window)])
        matrices = saved(network)
        whole = rollout(matrices) if name == "attention_rollout" else matrices[-1]
        shares.append(query.sum())
        row = query.sum() * part_of_patches(query, 16) @ whole if query.any() else np.zeros(12)
        total[window] += interpolated(row.reshape(2, 2, 3), (32, 32, 48), 16)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    close(maps_of(found), total[plan.inside], 1e-5)
    assert found.layer_map is None


def test_windows_that_do_not_reach_the_region_are_not_recorded():
    network = unetr(2)
    model, image = windowed(network), volume(70, 32, 48)
    with counted(network) as seen:
        explain(model, image, a_point(3, 5, 5), "attention_rows")
    assert len(seen) == 4 + 1


def test_a_volume_smaller_than_the_window_has_its_tokens_where_they_lie():
    network = unetr(2)
    found = explain(windowed(network), volume(30, 24, 48), a_point(3, 5, 5), "attention_rows")
    # One and four voxels of padding in front.
    first = (6.5, 3.5, 7.5)
    np.testing.assert_allclose(found.layer_map.affine.numpy()[:3, 3], first)
    wanted = saved(network)[-1][0].reshape(2, 2, 3)
    close(maps_of(found), interpolated(wanted, (30, 24, 48), 16, first), 1e-5)


def test_progress_counts_the_passes_that_were_promised():
    network, told = unetr(), []
    explain(
        as_model(network),
        volume(32, 32, 48),
        a_point(1, 1, 1),
        "attention_rollout",
        progress=lambda part, _message: told.append(part),
    )
    assert told == [0.5, 0.99, 1.0]


# ------------------------------------------------------------------------------------------------
# What is refused


def test_a_network_without_attention_is_refused_with_what_to_use():
    model = as_model(Classifier(), task="classification")
    with pytest.raises(MethodError, match=r"no attention between tokens.*Use a gradient method"):
        explain(model, volume(8, 8, 8), Target(output=1), "attention_rollout")


def test_an_unknown_module_is_refused_with_those_that_there_are():
    with pytest.raises(
        MethodError, match=r"no attention in a module 'blocks\.0'.*in: network\.blocks\.0\.attn, "
    ):
        explain(
            classifier(vit()),
            volume(16, 8, 12),
            Target(output=1),
            "attention_rows",
            layer="blocks.0",
        )


def test_a_class_token_that_is_not_there_is_refused():
    with pytest.raises(MethodError, match=r"'vit\.blocks\.11\.attn' has no class token\. Choose"):
        explain(
            as_model(unetr()),
            volume(32, 32, 48),
            a_point(1, 1, 1),
            "attention_rows",
            query="class_token",
        )


def test_a_class_token_can_be_asked_for_where_it_is():
    network = Pooled("mean", class_token=True)
    model = as_model(network, task="classification")
    found = explain(
        model, volume(16, 8, 12), Target(output=1), "attention_rows", query="class_token"
    )
    close(tokens_of(found), saved(network)[-1][0, 1:].reshape(4, 2, 3))


def test_tokens_that_cannot_be_followed_are_refused():
    def sorted_(q, k, v):
        v = v.sort(1).values
        return by_rows(q, k, v)

    model = as_model(Patches(sorted_), task="classification")
    with pytest.raises(MethodError, match=r"tokens of the attention in 'attention' could not be"):
        explain(model, volume(8, 8, 8), Target(output=1), "attention_rows")


@pytest.mark.parametrize(
    "picked", [[0, 1, 2, 3, 4], [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15]], ids=["hole", "uneven"]
)
def test_tokens_that_fill_no_regular_grid_are_refused(picked):
    class Some(Patches):
        def forward(self, x):
            return self.head(self.attention(self.embed(x).flatten(2).mT[:, picked]).mean(1))

    model = as_model(Some(by_rows), task="classification")
    with pytest.raises(MethodError, match=rf"The {len(picked)} tokens .* not lie on a regular gri"):
        explain(model, volume(8, 8, 16), Target(output=1), "attention_rows")


class Broken(nn.Module):
    """Two attentions; between them the order of the tokens is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Patches(by_rows)
        self.second = Attention(by_rows, 6)
        self.unembed = nn.ConvTranspose3d(6, 1, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.first.embed(x).flatten(2).mT
        tokens = self.first.attention(tokens).sort(1).values
        grid = self.unembed(tokens.mT.unflatten(2, (2, 2, 2))) + x
        return self.first.head(self.second(self.first.embed(grid).flatten(2).mT).mean(1))


def test_a_rollout_whose_path_is_lost_is_refused_and_rows_still_work():
    model = as_model(Broken(), task="classification")
    with pytest.raises(
        MethodError, match=r"'second' could not be followed back to those of 'first\.attention'"
    ):
        explain(model, volume(8, 8, 8), Target(output=1), "attention_rollout")
    found = explain(model, volume(8, 8, 8), Target(output=1), "attention_rows")
    assert tokens_of(found).shape == (2, 2, 2)
    assert tokens_of(found).sum() == pytest.approx(1, abs=1e-5)


def test_torchscript_is_refused():
    script = torch.jit.trace(Classifier().eval(), torch.zeros(1, 1, 8, 8, 8))
    model = Model(script, "classification")
    with pytest.raises(MethodError, match="which a TorchScript network does not allow"):
        explain(model, volume(8, 8, 8), Target(output=1), "attention_rollout")


# ------------------------------------------------------------------------------------------------
# Nothing stays behind


def switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
    )


class Fails(nn.Module):
    """Attention, and an error in the n-th run."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.left = Patches(by_rows), at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.inner(x)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("this layer is broken")
        return result


def test_nothing_stays_behind_when_a_run_ends():
    network = unetr()
    before, flags = state_of(network), switches()
    explain(as_model(network), volume(32, 32, 48), a_point(1, 1, 1), "attention_rollout")
    after = state_of(network)
    assert after == before
    assert switches() == flags


def test_nothing_stays_behind_when_the_network_fails():
    network = Fails(2).eval()
    before, flags = state_of(network), switches()
    with pytest.raises(Exception, match="this layer is broken"):
        explain(
            as_model(network, task="classification"),
            volume(8, 8, 8),
            Target(output=1),
            "attention_rows",
        )
    after = state_of(network)
    assert after["hooks"] == before["hooks"]
    assert after["training"] == before["training"]
    assert switches() == flags


def test_nothing_stays_behind_when_a_run_is_cancelled():
    network = unetr()
    before, flags, asked = state_of(network), switches(), []
    with pytest.raises(Cancelled):
        explain(
            as_model(network),
            volume(32, 32, 48),
            a_point(1, 1, 1),
            "attention_rows",
            cancelled=lambda: bool(asked.append(0)) or len(asked) > 1,
        )
    assert state_of(network) == before
    assert switches() == flags
