"""Work per sample."""

import pytest
from tests.estimate.measured import make_job

from perjoule.core.errors import DataError
from perjoule.estimate.workloads import ARCHITECTURES, Architecture, Workload, find_architecture


def test_an_image_of_twice_the_side_is_four_times_the_work_and_a_sequence_twice() -> None:
    image, sequence = ARCHITECTURES["resnet50"], ARCHITECTURES["bert_base_uncased"]
    assert image.scale(2 * image.reference_size) == pytest.approx(4)
    assert sequence.scale(2 * sequence.reference_size) == pytest.approx(2)


def test_a_backward_pass_costs_two_forward_passes_and_none_of_a_frozen_network() -> None:
    whole = Workload(ARCHITECTURES["vgg16"], "made", 224, 1)
    frozen = Workload(ARCHITECTURES["vgg16"], "made", 224, 1, trained_share=0.0, head_parameters=1000.0)
    assert whole.training_flops == pytest.approx(3 * whole.forward_flops)
    assert frozen.training_flops == pytest.approx(frozen.forward_flops + 4000)
    assert frozen.trained_parameters == 1000
    assert whole.trained_parameters == 138.4e6


def test_flops_that_were_counted_win_over_those_of_the_table() -> None:
    assert Workload(ARCHITECTURES["vgg16"], "made", 224, 1, flops_forward=7.0).forward_flops == 7.0
    assert make_job(architecture="vgg16", sample_size=224).workload.forward_flops == pytest.approx(31.0e9)


def test_the_table_agrees_with_the_flops_that_were_counted_at_128_pixels() -> None:
    counted = {"mobilenet_v2": 0.0640e9, "nasnet_mobile": 0.3716e9, "resnet50": 2.5244e9, "xception": 2.9584e9}
    counted |= {"vgg16": 10.0288e9}
    for name, flops in counted.items():
        if name != "mobilenet_v2":  # that count is a third, as of a network of half the width
            assert ARCHITECTURES[name].flops_forward * ARCHITECTURES[name].scale(128) == pytest.approx(flops, rel=0.15)


def test_a_sample_is_a_colour_image_or_a_word_per_position() -> None:
    assert Workload(ARCHITECTURES["vgg16"], "made", 10, 1).sample_bytes == 300
    assert Workload(ARCHITECTURES["bert_base_uncased"], "made", 10, 1).sample_bytes == 80


def test_an_unknown_architecture_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"unknown architecture 'resnet5': did you mean 'resnet50'\?"):
        find_architecture("resnet5", "a.csv, line 3")


def test_every_architecture_of_the_table_has_positive_facts() -> None:
    for one in ARCHITECTURES.values():
        assert isinstance(one, Architecture)
        assert min(one.flops_forward, one.activations, one.num_parameters, one.num_layers, one.reference_size) > 0
        assert 0 <= one.depthwise <= 1
