"""Facts about architectures and data sets that public measurements name but do not describe.

FLOPs are two per multiply-add of one forward pass of one sample. ``activations`` are the numbers that the layers of a
forward pass write, those of normalisations, activation functions and concatenations included (published counts are
often of convolutions alone, a third of that): each is written once and read at least once, and training keeps it and
reads it again. Both are those of the published definition at ``reference_size`` and grow with ``(size / reference_size)
** exponent``: 2 for the sides of an image, 1 for the length of a sequence. ``num_layers`` counts layers as Keras and
PyTorch do, normalisations and activation functions included: each is a kernel to launch, and as many again per
sequential step in a recurrent layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perjoule.core.errors import DataError, suggestion


@dataclass(frozen=True)
class Architecture:
    """A neural network, per sample.

    Args:
        name: as the measurements spell it.
        flops_forward: FLOPs of a forward pass at ``reference_size``.
        activations: numbers written by a forward pass at ``reference_size``.
        num_parameters: weights, trainable or not.
        num_layers: kernels that a forward pass launches at least.
        reference_size: side of an image in pixels, or length of a sequence.
        exponent: how FLOPs and activations grow with the size.
        depthwise: share of the layers that are depthwise convolutions or other products with little reuse.
        serial_bytes: weights read again at each position by a forward pass at ``reference_size``, whatever the batch:
            those of recurrent layers.
        serial_share: share of the FLOPs in products that wait for the position before.
    """

    name: str
    flops_forward: float
    activations: float
    num_parameters: float
    num_layers: int
    reference_size: float
    exponent: float = 2.0
    depthwise: float = 0.0
    serial_bytes: float = 0.0
    serial_share: float = 0.0

    def scale(self, size: float) -> float:
        """Return by how much a sample of another size costs more."""
        return float((size / self.reference_size) ** self.exponent)


@dataclass(frozen=True)
class Workload:
    """An architecture on a data set, with the work that one sample makes.

    Args:
        architecture: the network.
        dataset: name of the data.
        sample_size: side of an image in pixels, or length of a sequence.
        train_samples: samples per epoch that are trained on.
        validation_samples: samples per epoch that are only passed forward.
        trained_share: share of the network that a backward pass goes through: 1 in full training, 0 if it is frozen.
        head_parameters: weights of layers put on top of the network.
        optimizer: its name.
        flops_forward: FLOPs of a forward pass of one sample; None: from the architecture.
    """

    architecture: Architecture
    dataset: str
    sample_size: float
    train_samples: float
    validation_samples: float = 0.0
    trained_share: float = 1.0
    head_parameters: float = 0.0
    optimizer: str = ""
    flops_forward: float | None = None

    @property
    def forward_flops(self) -> float:
        """Return the FLOPs of a forward pass of one sample."""
        if self.flops_forward is not None:
            return self.flops_forward
        return self.architecture.flops_forward * self.architecture.scale(self.sample_size)

    @property
    def training_flops(self) -> float:
        """Return the FLOPs of a forward and a backward pass of one sample."""
        # A backward pass has two products for each of the forward pass: for the weights and for the inputs.
        return self.forward_flops * (1 + 2 * self.trained_share) + 4 * self.head_parameters

    @property
    def sample_bytes(self) -> float:
        """Return the size of one sample as it comes from the data loader: a colour image, or one word per position."""
        return 3 * self.sample_size**2 if self.architecture.exponent == 2 else 8 * self.sample_size

    @property
    def forward_activations(self) -> float:
        """Return the numbers that a forward pass of one sample writes."""
        return self.architecture.activations * self.architecture.scale(self.sample_size)

    @property
    def serial_bytes(self) -> float:
        """Return the bytes of weights that a forward pass reads again at each position of a sequence."""
        return self.architecture.serial_bytes * self.architecture.scale(self.sample_size)

    @property
    def trained_parameters(self) -> float:
        """Return the number of weights that the optimizer updates."""
        return self.architecture.num_parameters * self.trained_share + self.head_parameters


ARCHITECTURES: Mapping[str, Architecture] = {
    one.name: one
    for one in (
        Architecture("mobilenet_v2", 0.60e9, 18.1e6, 3.5e6, 154, 224, depthwise=0.33),
        Architecture("nasnet_mobile", 1.13e9, 36e6, 5.3e6, 769, 224, depthwise=0.4),
        Architecture("resnet50", 8.2e9, 34.4e6, 25.6e6, 175, 224),
        Architecture("xception", 16.8e9, 78.8e6, 22.9e6, 132, 299, depthwise=0.45),
        Architecture("vgg16", 31.0e9, 27.2e6, 138.4e6, 23, 224),
        Architecture("inception_v3", 11.5e9, 30.6e6, 23.9e6, 311, 299),
        # The variant for small images, whose first layers do not shrink them.
        Architecture("shufflenetv2", 0.092e9, 2.21e6, 1.3e6, 230, 32, depthwise=0.33),
        # Five bidirectional recurrent layers of 1,024 over 20 ms frames: launches follow the length of an utterance.
        Architecture(
            "deepspeech2",
            1.06e11,
            3.2e7,
            8.7e7,
            6000,
            615,
            exponent=1.0,
            serial_bytes=10 * 615 * 4 * 4 * 1024**2,
            serial_share=0.45,
        ),
        Architecture("ncf", 2.0e5, 1.0e3, 1.4e6, 18, 1, exponent=1.0, depthwise=1.0),
        # Weights outside the embedding are 86 million; attention adds little at 64 to 384 tokens.
        Architecture("bert_base_uncased", 6.8e10, 9.0e7, 1.1e8, 220, 384, exponent=1.0),
    )
}


def find_architecture(name: str, where: str) -> Architecture:
    """Return the facts about an architecture.

    Args:
        name: as measurements spell it.
        where: file and line that name it.

    Raises:
        DataError: if there are none.
    """
    if name not in ARCHITECTURES:
        raise DataError(f"{where}: unknown architecture {name!r}: {suggestion(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]
