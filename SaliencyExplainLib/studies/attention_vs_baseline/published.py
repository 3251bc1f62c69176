"""Published figures beside ours, and what is done otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..results import Comparison, StudyTable
from ..statistics import Estimate

if TYPE_CHECKING:
    from .networks import Contender

__all__ = [
    "DIFFERS",
    "accuracy_comparisons",
    "augmentation_comparisons",
    "claim_comparisons",
]

#: Accuracy on the test images of MIMIC-CXR with the weights of the lowest validation loss:
#: (backbone, augmented) -> baseline, with the block.
_PUBLISHED = {
    ("DenseNet", False): (0.8629, 0.8535),
    ("DenseNet", True): (0.8498, 0.8666),
    ("ResNet", False): (0.8535, 0.8563),
    ("ResNet", True): (0.8694, 0.8414),
}
_DEPTH = {"DenseNet": "DenseNet-121", "ResNet": "ResNet-50"}

DIFFERS = (
    "3D volumes with one made-up nodule each instead of chest radiographs (MIMIC-CXR) and "
    "mammograms (CBIS-DDSM): here the evidence is known.",
    "The block is the authors' one with Q K^T divided by the square root of C (variant "
    '"scaled"), a softmax for each row and layer norm. The RECPAD study\'s torch code takes one '
    "softmax of the whole matrix, multiplies by its columns and uses batch norm (variant "
    '"torch_port").',
    "The block alone is added: pooling and linear layer stay the baseline's. The published "
    "networks with the block also have a larger head (flattened features, two hidden layers, "
    "dropout), so that published differences are not the block's alone.",
    "Small networks from random weights instead of DenseNet-121, ResNet-50 and VGG-16 from "
    "ImageNet; MONAI has no 3D VGG. AdamW, one cosine cycle, last weights; published: Adam, "
    "weights of the lowest validation loss.",
    "Augmentation: the 48 ways to turn and mirror a cube.",
    "Maps are compared on spiculated volumes only, where there is evidence to be seen, that all "
    "networks of a backbone get right (published: all networks, both classes).",
    "Similarity, faithfulness and evidence are measured; published are pictures: the signed "
    "gradient of the sigmoid output, divided by the magnitude at which 98 percent of its sum is "
    "reached. The figures here use this project's colours.",
)


def accuracy_comparisons(
    table: StudyTable, gains: Sequence[Estimate], pairs: Sequence[tuple[Contender, Contender]]
) -> tuple[Comparison, ...]:
    """Gain of the block beside the published one, a row a pair."""
    found = []
    for number, (gain, (one, _)) in enumerate(zip(gains, pairs, strict=True)):
        without, with_block = _PUBLISHED[one.backbone, one.augmented]
        published = with_block - without
        inside = gain.low <= published <= gain.high
        rows = table.rows[2 * number : 2 * number + 2]
        found.append(
            Comparison(
                f"accuracy of {one.name} without and with the block, and the difference",
                f"{_DEPTH[one.backbone]}: {without:.4f} and {with_block:.4f}, {published:+.4f}",
                f"{rows[0][1]} and {rows[1][1]}, {gain.value:+.3f} "
                f"({gain.low:+.3f} to {gain.high:+.3f})",
                "not comparable",
                "Other data, smaller networks, and the block without the larger head; the "
                f"published difference lies {'inside' if inside else 'outside'} our interval.",
            )
        )
    return tuple(found)


def augmentation_comparisons(gains: Mapping[str, Estimate]) -> tuple[Comparison, ...]:
    """Gain by augmentation of the baselines beside the published one, by backbone."""
    found = []
    for backbone, gain in gains.items():
        published = _PUBLISHED[backbone, True][0] - _PUBLISHED[backbone, False][0]
        found.append(
            Comparison(
                f"change of the accuracy of {backbone} by augmentation, without the block",
                f"{_DEPTH[backbone]}: {published:+.4f}",
                f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
                "not comparable",
                "Here networks start from random weights and have few volumes, so that "
                "augmentation matters more than with weights from ImageNet.",
            )
        )
    return tuple(found)


def claim_comparisons(table: StudyTable, gains: Sequence[Estimate]) -> Comparison:
    """Return the published conclusion beside ours."""
    tested = [row for row in table.rows if row[6] is not None]
    clear = [row for row in tested if row[6] < 0.05]
    up = sum(gain.value > 0 for gain in gains)
    signs = {gain.value > 0 for gain, row in zip(gains, tested, strict=True) if row in clear}
    if not clear:
        full = sum(float(str(row[1]).split(" ")[0]) >= 0.98 for row in table.rows)
        room = f"; {full} of {len(table.rows)} networks are right in 98 percent or more" * bool(
            full
        )
        verdict, why = "confirmed", f"No difference is clear after Holm's adjustment{room}."
    elif len(clear) == len(tested) and len(signs) == 1:
        verdict, why = "refuted", "All differences are clear and have one sign on this task."
    else:
        verdict = "differs"
        why = f"{len(clear)} of {len(tested)} differences are clear on this task."
    return Comparison(
        "whether the block makes classification better",
        "inconclusive",
        f"{up} of {len(gains)} pairs better, {len(clear)} of {len(tested)} differences clear",
        verdict,
        why,
    )
