"""Estimating what a training run will cost. Never imports torch.

To add an estimator: write ``estimate/estimators/<kind>.py`` with a docstring whose first line describes it and a
``Config`` with ``build() -> Estimator``, and add its line below. ``tests/estimate/test_contract.py`` runs over every
entry, and ``perjoule estimate --score`` puts it into the table beside the others.
"""

from perjoule.core.registry import Shelf

SHELF = Shelf(
    "estimate",
    {
        "first_epochs": "perjoule.estimate.estimators.first_epochs:FirstEpochsConfig",
        "green_algorithms": "perjoule.estimate.estimators.green_algorithms:GreenAlgorithmsConfig",
        "mlco2": "perjoule.estimate.estimators.mlco2:MLCO2Config",
        "physical": "perjoule.estimate.estimators.physical:PhysicalConfig",
        "pre_energy": "perjoule.estimate.estimators.pre_energy:PreEnergyConfig",
        "pre_power": "perjoule.estimate.estimators.pre_power:PrePowerConfig",
        "step_energy": "perjoule.estimate.estimators.step_energy:StepEnergyConfig",
        "step_power": "perjoule.estimate.estimators.step_power:StepPowerConfig",
    },
)
