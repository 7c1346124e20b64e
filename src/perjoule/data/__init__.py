"""Data: one file per data set in ``data/sets``, and the text pipeline in the order a document passes through it.

To add a set: write ``data/sets/<kind>.py`` with a docstring whose first line describes it and a ``Config`` with
``build(seed) -> DataSet``, and add its line below. See docs/add_a_data_set.md.
"""

from perjoule.core.registry import Shelf

SHELF = Shelf(
    "data",
    {
        "dyck": "perjoule.data.sets.dyck:DyckConfig",
        "mixture": "perjoule.data.sets.mixture:MixtureConfig",
        "recall": "perjoule.data.sets.recall:RecallConfig",
        "stdlib": "perjoule.data.sets.stdlib:StdlibConfig",
        "store": "perjoule.data.sets.store:StoreConfig",
        "text": "perjoule.data.sets.text:TextFilesConfig",
    },
)
