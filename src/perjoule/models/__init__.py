"""Models: one file per architecture.

To add one: write ``models/<kind>.py`` with a docstring whose first line describes it, a ``Config`` with
``build(shape) -> nn.Module`` and ``forward(tensors) -> Output``, and add its line below. See docs/add_a_model.md.
"""

from perjoule.core.registry import Shelf

SHELF = Shelf("models", {"transformer": "perjoule.models.transformer:TransformerConfig"})
