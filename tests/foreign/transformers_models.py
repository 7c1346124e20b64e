"""transformers' own test mixins over our four classes; transformers_suites.py runs it where ``tests`` is theirs."""

# mypy: ignore-errors

from __future__ import annotations

import os
import unittest
import unittest.mock
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin

from perjoule.models.ebt import EBT
from perjoule.models.huggingface import ARCHITECTURES

# RetNet's chunks and LongNet's segments are shorter than the sequences, so that what is between them is tested as well.
SIZES: dict[str, dict[str, Any]] = {
    "retnet": {"chunk_len": 4},
    "longnet": {"segment_lengths": [3, 7, 64], "dilations": [1, 2, 4]},
    "ebt": {"thinking": {"steps": 2}},
    "transformer": {},
}


class ModelTester:
    """What the mixins ask of a ``model_tester``."""

    batch_size, seq_length, vocab_size, hidden_size, num_hidden_layers = 3, 7, 99, 32, 2
    is_training = True

    def __init__(self, kind: str) -> None:
        self.kind, self.causal_lm_class = kind, ARCHITECTURES[kind]

    def get_config(self) -> Any:
        return self.causal_lm_class.config_class(
            dim=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=2,
            vocab_size=self.vocab_size,
            seq_len=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **SIZES[self.kind],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class Suites(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    kind: str

    def setUp(self) -> None:
        # A new EBT gives every input the same logits, because its energy head is 0, and most tests could not fail.
        drawn = EBT.reset_parameters

        def far_from_zero(self: EBT) -> None:
            drawn(self)
            for parameter in self.body.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.1)

        patched = unittest.mock.patch.object(EBT, "reset_parameters", far_from_zero)
        patched.start()
        self.addCleanup(patched.stop)
        self.model_tester = ModelTester(self.kind)
        self.all_model_classes = (self.model_tester.causal_lm_class,)
        self.has_attentions = False
        self.config_tester = ConfigTester(self, config_class=self.model_tester.causal_lm_class.config_class)

    def test_left_padding_compatibility(self) -> None:
        self.has_attentions = True  # the test takes that for whether padding is possible
        super().test_left_padding_compatibility()

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


for _kind in os.environ.get("KINDS", "transformer retnet longnet ebt").split():
    _name = f"Test_{_kind}"
    globals()[_name] = type(_name, (Suites, unittest.TestCase), {"kind": _kind, "__module__": __name__})
del Suites
