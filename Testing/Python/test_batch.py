"""Batches: the same map as one by one, in a size that fits, halved where it does not."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from references import as_model, run_engine
from torch import nn

from SaliencyExplainLib.engine import Engine, batch, perturb
from SaliencyExplainLib.errors import MethodError, OutOfMemoryError
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

SEVERAL = ["integrated_gradients", "smooth_grad", "gradient_shap"]


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)).eval()


class Refusing(nn.Module):
    """Has room for so many images at a time, and says so as an allocator does."""

    def __init__(self, error: Exception, room: int) -> None:
        super().__init__()
        self.inner = two_layers()
        self.error = error
        self.room = room
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if len(x) > self.room:
            raise self.error
        return self.inner(x)


class MixesImages(nn.Module):
    """Subtracts the mean over the whole batch: its images are not answered apart."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = two_layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x - x.mean()) ** 2)


class OneImageOnly(nn.Module):
    """Was written for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = two_layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(1, 1, *x.shape[2:]))


def full_cpu() -> RuntimeError:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize(
    "inferer", [None, Windows((8, 8, 8), (0.5,) * 3)], ids=["whole", "windows"]
)
@pytest.mark.parametrize("name", SEVERAL)
def test_a_batch_gives_the_map_of_one_by_one(unet, a_volume, name, inferer, kind):
    model = as_model(unet) if inferer is None else as_model(unet, inferer=inferer)
    image, target = a_volume(1, 16, 16, 8), Target(output=1, region="everywhere", score=kind)
    number = "steps" if name == "integrated_gradients" else "samples"
    alone, together = (
        explain(model, image, target, name, batch_size=size, **{number: 5}).maps for size in (1, 3)
    )
    assert float((alone - together).abs().max()) <= 1e-5 * float(alone.abs().max())
    assert float(alone.abs().max()) > 0


def test_windows_of_one_image_go_together(a_volume):
    network = Refusing(full_cpu(), room=99)
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    target = Target(output=1, region="everywhere")
    run_engine(model, a_volume(1, 12, 12, 8), target, lambda e: e.gradient(), batch_size=3)
    assert 3 in network.batches
    assert max(network.batches) == 3


def test_the_graph_of_a_pass_is_counted_to_the_byte():
    network = two_layers()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    voxels, four = 8**3, 4
    kept = voxels + 4 * 27 + 4 * voxels + 2 * 4  # input, weight, ReLU's output, weight
    # A convolution with frozen weights keeps no input for its backward pass with respect to it,
    # but autograd holds it all the same.
    assert batch.graph_bytes(network(x)) == four * kept


@pytest.mark.parametrize(
    ("free", "size"), [(10_000, 1), (10**12, 2), (None, 1)], ids=["little", "much", "unknown"]
)
def test_a_cpu_takes_two_at_a_time_where_they_fit(monkeypatch, free, size):
    monkeypatch.setattr(batch, "free_bytes", lambda device: free)
    chosen = batch.Batch(torch.device("cpu"))
    assert chosen.size == 1
    chosen.learn(8_000)
    assert chosen.size == size


def test_a_gpu_takes_what_fits_up_to_sixteen(monkeypatch):
    monkeypatch.setattr(batch, "free_bytes", lambda device: 100)
    sizes = []
    for graph in (1, 8, 100):
        chosen = batch.Batch(torch.device("cuda"))
        chosen.learn(graph)
        sizes.append(chosen.size)
    assert sizes == [16, 5, 1]


def test_a_given_size_is_kept():
    chosen = batch.Batch(torch.device("cpu"), 5)
    chosen.learn(1)
    assert chosen.size == 5


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), full_cpu(), MemoryError()], ids=repr
)
def test_too_little_memory_halves_the_batch_and_says_so(a_volume, error):
    network = Refusing(error, room=2)
    model, image = as_model(network), a_volume(1, 8, 8, 8)
    batch._separate[network] = True
    made = explain(model, image, Target(output=1), "smooth_grad", samples=8, batch_size=8)
    reference = explain(
        as_model(network.inner), image, Target(output=1), "smooth_grad", samples=8, batch_size=1
    )
    torch.testing.assert_close(made.maps.as_tensor(), reference.maps.as_tensor())
    assert [note for note in made.warnings if "memory" in note] == [
        "The memory was not enough for 8 at a time; 4 were computed together instead. The map is "
        "the same.",
        "The memory was not enough for 4 at a time; 2 were computed together instead. The map is "
        "the same.",
    ]


def test_too_little_memory_for_one_image_is_an_error_in_one_sentence(a_volume):
    model = as_model(Refusing(full_cpu(), room=0))
    with pytest.raises(OutOfMemoryError, match="not enough for a window of 8 x 8 x 8 voxels"):
        explain(model, a_volume(1, 8, 8, 8), Target(output=1), "gradient")


@pytest.mark.parametrize("network", [MixesImages(), OneImageOnly()], ids=["mixes", "one only"])
def test_a_network_that_cannot_take_several_images_gets_them_one_by_one(a_volume, network):
    image, target = a_volume(1, 8, 8, 8), Target(output=1, region="everywhere")
    made = [
        explain(as_model(network), image, target, "smooth_grad", samples=6, batch_size=size)
        for size in (1, 3)
    ]
    assert torch.equal(made[0].maps.as_tensor(), made[1].maps.as_tensor())
    assert made[1].warnings == made[0].warnings


def test_whether_images_are_apart_is_found_out_once_a_network(a_volume):
    network = Refusing(full_cpu(), room=99)
    engine = Engine(as_model(network), a_volume(1, 8, 8, 8), Target(output=1), batch_size=2)
    counts = []
    for _ in range(2):
        with engine.running():
            list(engine.gradients([engine.x] * 4))
        counts.append(len(network.batches))
    # Freezing, two batches, and the check of one alone and two together; then two batches.
    assert counts == [5, 7]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_batch_size_that_is_none_is_refused(a_volume, size):
    with pytest.raises(MethodError, match="batch_size must be a whole number from 1 on"):
        explain(as_model(two_layers()), a_volume(1, 8, 8, 8), Target(output=1), batch_size=size)


def test_errors_that_are_not_about_memory_are_not_tried_again(a_volume):
    network = Refusing(KeyError("broken"), room=0)
    with pytest.raises(KeyError):
        explain(as_model(network), a_volume(1, 8, 8, 8), Target(output=1), "gradient")
    assert len(network.batches) == 1


def test_a_unet_in_batches_keeps_its_graph_small(a_volume):
    network = UNet(3, 1, 2, (4, 8), (2,)).eval()
    engine = Engine(as_model(network), a_volume(1, 8, 8, 8), Target(output=1))
    with engine.running():
        list(engine.gradients([engine.x] * 3))
    assert engine.batch.size == 2


@pytest.mark.parametrize(
    "inferer", [None, Windows((8, 8, 8), (0.5,) * 3)], ids=["whole", "windows"]
)
@pytest.mark.parametrize("name", ["ablation_cam", "kernel_weighted_contribution"])
def test_changes_of_a_layer_in_batches_give_the_same_map(a_volume, name, inferer):
    network = Refusing(full_cpu(), room=3)
    model = as_model(network) if inferer is None else as_model(network, inferer=inferer)
    image, target = a_volume(1, 12, 8, 8), Target(output=1, region="everywhere")
    maps = [
        explain(model, image, target, name, layer="inner.1", batch_size=size).maps.as_tensor()
        for size in (1, 3)
    ]
    torch.testing.assert_close(maps[0], maps[1])
    assert max(network.batches) == 3


@pytest.mark.parametrize("name", ["occlusion", "kernel_shap", "region_ablation", "rise"])
def test_whole_windows_of_a_changed_image_go_together(unet, a_volume, monkeypatch, name):
    monkeypatch.setattr(perturb, "_WORTH", 0.0)
    model = as_model(unet, inferer=Windows((8, 8, 8), (0.5,) * 3))
    image, target = a_volume(1, 16, 8, 8), Target(output=1, region="everywhere")
    given = {"occlusion": {"box_mm": 6.0}, "kernel_shap": {"samples": 8, "supervoxels": 6}}
    given |= {"region_ablation": {"supervoxels": 6}, "rise": {"masks": 6}}
    sizes: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    maps = [
        explain(model, image, target, name, batch_size=size, **given[name]).maps.as_tensor()
        for size in (1, 2)
    ]
    hook.remove()
    assert sizes.count(2) > 2
    assert float((maps[0] - maps[1]).abs().max()) <= 1e-4 * float(maps[0].abs().max())
