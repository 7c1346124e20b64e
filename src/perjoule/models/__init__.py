"""Models: one file per architecture.

To add one: write ``models/<kind>.py`` with a docstring whose first line describes it, a ``Config`` with
``build(shape) -> nn.Module`` and ``forward(tensors) -> Output``, and add its line below. See docs/add_a_model.md.
"""

from perjoule.core.registry import Shelf

SHELF = Shelf(
    "models",
    {
        "longnet": "perjoule.models.longnet:LongNetConfig",
        "retnet": "perjoule.models.retnet:RetNetConfig",
        "ebt": "perjoule.models.ebt:EBTConfig",
        "ebt_denoiser": "perjoule.models.ebt_denoiser:EBTDenoiserConfig",
        "transformer": "perjoule.models.transformer:TransformerConfig",
    },
)
