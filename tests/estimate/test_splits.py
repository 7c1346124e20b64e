"""Nobody is tested on what they learnt from, except where it says so."""

from itertools import combinations

import pytest
from tests.estimate.measured import gaissa, gaissa_runs, make_job, measure, zeus

from perjoule.core.errors import DataError
from perjoule.estimate.splits import KEYS, Split, folds, random_runs, typical


@pytest.mark.parametrize("split", list(Split))
def test_no_group_is_on_both_sides(split: Split) -> None:
    key, asked = KEYS[split], []
    for fold in folds([*gaissa(), *zeus()], split, "GAISSA"):
        assert not {key(one) for one in fold.train} & {key(one) for one in fold.test}
        assert {one.study for one in fold.test} == {"GAISSA"}
        asked += [id(one) for one in fold.test]
    assert sorted(asked) == sorted(map(id, gaissa()))


@pytest.mark.parametrize("split", list(Split))
def test_no_replicate_of_a_configuration_is_on_both_sides(split: Split) -> None:
    for fold in folds(gaissa_runs(), split, "GAISSA"):
        assert not {one.job.configuration_key for one in fold.train} & {one.job.configuration_key for one in fold.test}


def test_many_groups_are_left_out_several_at_a_time_but_never_split() -> None:
    runs = [measure(make_job(batch_size=size), 1.0, 100.0) for size in range(1, 101)]
    divided = list(folds(runs, Split.CONFIGURATION, "made"))
    assert len(divided) == 10
    assert sorted(one.job.batch_size for fold in divided for one in fold.test) == list(range(1, 101))
    for first, second in combinations(divided, 2):
        assert not {id(one) for one in first.test} & {id(one) for one in second.test}


def test_a_single_group_leaves_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match=r"made: one device only \(RTX 3090\): nothing is left to learn from"):
        list(folds([measure(make_job(), 1.0, 100.0)], Split.DEVICE, "made"))


def test_the_published_division_has_replicates_on_both_sides() -> None:
    fold = random_runs(gaissa_runs())
    assert {one.job.configuration_key for one in fold.train} & {one.job.configuration_key for one in fold.test}
    assert len(fold.train) / len(gaissa_runs()) == pytest.approx(0.7, abs=0.01)
    assert not {id(one) for one in fold.train} & {id(one) for one in fold.test}


def test_replicates_become_one_row_of_medians() -> None:
    runs = [measure(make_job(), seconds, 100.0) for seconds in (1.0, 2.0, 9.0)]
    (row,) = typical(runs)
    assert (row.seconds_per_epoch, row.watts, row.scopes.gpu_j) == (2.0, 100.0, 200.0)
    assert row.total_j is row.scopes.cpu_j is None


def test_settings_of_one_configuration_stay_rows_of_their_own() -> None:
    runs = [measure(make_job(limit_w=limit), 1.0, 100.0) for limit in (150.0, 200.0)]
    assert len(typical(runs)) == 2
