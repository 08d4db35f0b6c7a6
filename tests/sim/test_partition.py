"""Splits: what each kind means, that seeds decide, and every error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import datasets
import numpy as np
import pytest
from flwr_datasets import FederatedDataset, partitioner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.config import PartitionKind as Kind
from fedkit.core.errors import DataError, TaskError
from fedkit.tasks import digits
from fedkit.tasks.task import Examples
from sim.partition import Partition, assign, split
from sim.partitioners import ROWS
from tests.fresh import imported_by

KINDS: tuple[Kind, ...] = get_args(Kind)


def make_examples(n: int = 300, classes: int = 5, owners: int = 4, seed: int = 0) -> Examples:
    """Examples whose only input is their own index."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    names = np.array([f"owner {i % owners:02}" for i in range(n)])
    columns = {"time": rng.integers(0, 10**12, n)}
    inputs = np.arange(n, dtype=np.float32)[:, None]
    return Examples(inputs, targets.astype(np.int64), names, columns=columns)


def sizes(shares: list[Examples]) -> list[int]:
    return [len(share) for share in shares]


def class_numbers(shares: list[Examples]) -> list[int]:
    return [len(share.classes) for share in shares]


# What each kind means


def test_iid_shares_differ_by_one_example_at_most() -> None:
    assert sizes(split(make_examples(302), Partition("iid", devices=4))) == [76, 76, 75, 75]


def test_iid_shares_have_the_mix_of_the_whole() -> None:
    shares = split(make_examples(3000), Partition("iid", devices=3))
    for share in shares:
        assert np.bincount(share.targets) / len(share) == pytest.approx([0.2] * 5, abs=0.05)


def skew(alpha: float) -> float:
    """Mean share of a device's most frequent class."""
    shares = split(make_examples(3000), Partition("dirichlet", devices=6, alpha=alpha))
    return float(np.mean([np.bincount(share.targets).max() / len(share) for share in shares]))


def test_dirichlet_is_the_more_skewed_the_smaller_alpha() -> None:
    assert skew(0.3) > skew(3.0) > skew(300.0)
    assert skew(300.0) == pytest.approx(0.2, abs=0.05)


def test_dirichlet_redraws_until_min_size_is_met() -> None:
    few = split(make_examples(), Partition("dirichlet", 5, alpha=0.5, min_size=1, seed=3))
    many = split(make_examples(), Partition("dirichlet", 5, alpha=0.5, min_size=30, seed=3))
    assert min(sizes(few)) < 30 <= min(sizes(many))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_pathological_devices_hold_the_number_of_classes_asked_for(classes: int) -> None:
    how = Partition("pathological", devices=7, classes_per_device=classes)
    shares = split(make_examples(), how)
    assert class_numbers(shares) == [classes] * 7
    assert all(device % 5 in share.classes for device, share in enumerate(shares))


def test_natural_id_makes_one_device_of_each_owner_in_their_order() -> None:
    shares = split(make_examples(owners=12), Partition("natural-id", devices=12))
    owners = [set(share.owners.tolist()) for share in shares if share.owners is not None]
    assert owners == [{f"owner {i:02}"} for i in range(12)]


def test_natural_id_takes_numbers_and_orders_them_as_numbers() -> None:
    examples = make_examples(30)
    numbered = Examples(examples.inputs, examples.targets, np.arange(30) % 3 * 9)
    shares = split(numbered, Partition("natural-id", devices=3))
    assert [share.owners.tolist()[0] for share in shares if share.owners is not None] == [0, 9, 18]


def test_natural_id_goes_by_any_column() -> None:
    examples = make_examples(60)
    rooms = np.repeat(["attic", "cellar", "hall"], 20)
    examples = replace(examples, owners=None, columns={"room": rooms, "time": np.arange(60)})
    shares = split(examples, Partition("natural-id", 3, by="room"))
    assert [share.columns["room"].tolist() for share in shares] == [
        ["attic"] * 20, ["cellar"] * 20, ["hall"] * 20
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes_of_302"),
    [
        ("linear", [30, 60, 90, 122]),
        ("square", [10, 40, 90, 162]),
        ("exponential", [9, 26, 71, 196]),
    ],
)
def test_sizes_grow_with_the_device(kind: Kind, sizes_of_302: list[int]) -> None:
    assert sizes(split(make_examples(302), Partition(kind, devices=4))) == sizes_of_302


@pytest.mark.parametrize("offset", [0, 1.7e9])
def test_devices_of_a_continuous_partition_hold_neighbouring_times(offset: float) -> None:
    """Seconds since 1970 differ by less than float32 can tell."""
    examples = make_examples()
    times = np.random.default_rng(0).permutation(300) + offset
    examples = replace(examples, columns={"time": times})
    shares = split(examples, Partition("continuous", 3, by="time"))
    for device, share in enumerate(shares):
        held = np.sort(np.float64(share.columns["time"]) - offset)
        np.testing.assert_array_equal(held, np.arange(100) + 100 * device)
    mixed = split(examples, Partition("continuous", 3, by="time", strictness=0.0))
    assert all(abs(np.float64(share.columns["time"]).mean() - offset - 150) < 25 for share in mixed)


def test_quantities_are_shared_out_by_their_size() -> None:
    examples = replace(make_examples(), targets=np.linspace(-1, 1, 300, dtype=np.float32))
    shares = split(examples, Partition("continuous", 3, by="targets"))
    assert [share.targets.max() < 0 for share in shares] == [True, False, False]
    assert [share.targets.min() > 0 for share in shares] == [False, False, True]


def test_split_cuts_inputs_targets_and_owners_alike() -> None:
    examples = make_examples()
    for share in split(examples, Partition("dirichlet", devices=3)):
        indices = share.inputs[:, 0].astype(int)
        assert examples.owners is not None and share.owners is not None
        assert np.array_equal(share.targets, examples.targets[indices])
        assert np.array_equal(share.owners, examples.owners[indices])


@pytest.mark.parametrize("seed", range(5))
def test_the_main_example_can_be_split_with_any_seed(seed: int) -> None:
    shares = split(digits.train_data(), Partition("dirichlet", 10, alpha=0.5, seed=seed))
    assert min(sizes(shares)) >= 10


# Determinism and parity


def partition_of(kind: Kind, seed: int = 0) -> Partition:
    devices = {"natural-id": 4}.get(kind, 5)
    return Partition(kind, devices, by=BY.get(kind, ""), strictness=0.7, seed=seed)


BY = {"continuous": "time"}


def assert_equal_lists(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_lists_each_time_and_another_seed_others(kind: Kind) -> None:
    examples = make_examples()
    first = assign(examples, partition_of(kind, seed=7))
    assert_equal_lists(assign(examples, partition_of(kind, seed=7)), first)
    other = assign(examples, partition_of(kind, seed=8))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_numpys_global_generator_is_neither_read_nor_moved() -> None:
    examples = make_examples()
    np.random.seed(1)
    first = assign(examples, partition_of("dirichlet"))
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    assert_equal_lists(assign(examples, partition_of("dirichlet")), first)


THEIRS = {
    "iid": lambda: partitioner.IidPartitioner(5),
    "dirichlet": lambda: partitioner.DirichletPartitioner(5, "label", 0.5, 10, seed=7),
    "pathological": lambda: partitioner.PathologicalPartitioner(
        5, "label", 2, class_assignment_mode="first-deterministic", seed=7
    ),
    "natural-id": lambda: partitioner.NaturalIdPartitioner("owner"),
    "linear": lambda: partitioner.LinearPartitioner(5),
    "square": lambda: partitioner.SquarePartitioner(5),
    "exponential": lambda: partitioner.ExponentialPartitioner(5),
    "continuous": lambda: partitioner.ContinuousPartitioner(5, "time", 0.7, seed=7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_lists_equal_those_of_flwr_datasets(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = make_examples()
    assert examples.owners is not None
    columns = {"label": examples.targets, "owner": examples.owners, "id": range(len(examples))}
    columns |= examples.columns
    hub = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: hub)

    fleet = FederatedDataset(dataset="any", partitioners={"train": THEIRS[kind]()}, seed=7)
    ours = assign(examples, partition_of(kind, seed=7))
    theirs = [np.array(fleet.load_partition(device)["id"]) for device in range(len(ours))]
    assert_equal_lists(ours, theirs)


POSSIBLE_REFUSAL = {
    "dirichlet": "no dirichlet draw",
    "pathological": "pathological partition",
    **dict.fromkeys(("linear", "square", "exponential"), "the first without examples"),
}


def shares_or_refusal(examples: Examples, how: Partition) -> list[NDArray[np.int64]] | str:
    try:
        return assign(examples, how)
    except DataError as refusal:
        return str(refusal)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(20, 120),
    classes=st.integers(2, 6),
    devices=st.integers(1, 8),
    alpha=st.floats(0.05, 1000),
    seed=st.integers(0, 2**32),
)
def test_every_example_is_on_exactly_one_device_or_the_split_is_refused(
    kind: Kind, n: int, classes: int, devices: int, alpha: float, seed: int
) -> None:
    examples = make_examples(n, classes, owners=devices, seed=seed)
    how = Partition(kind, devices, alpha, 1, by=BY.get(kind, ""), seed=seed, single_class="allow")
    shares = shares_or_refusal(examples, how)
    if isinstance(shares, str):
        assert POSSIBLE_REFUSAL[kind] in shares
        return
    assert all(share.dtype == np.int64 and len(share) > 0 for share in shares)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(n))


@pytest.mark.slow
def test_plots_of_flower_are_imported_when_one_is_drawn() -> None:
    code = (
        "import numpy as np\n"
        "from fedkit.tasks.task import Examples\n"
        "from sim.partition import Partition, assign\n"
        "few = Examples(np.zeros((20, 2), np.float32), np.arange(20) % 2)\n"
        "assert len(assign(few, Partition('iid', 2, single_class='allow'))) == 2\n"
    )
    drawn = (
        "import sys\n"
        "assert not {'seaborn', 'scipy'} & set(sys.modules)\n"
        "from flwr_datasets.visualization import heatmap_plot\n"
        "assert callable(heatmap_plot.sns.heatmap)\n"
    )
    assert "seaborn" in imported_by(code + drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_to_the_console(
    kind: Kind, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    by = BY.get(kind, "")
    split(make_examples(), Partition(kind, 4, 0.3, min_size=25, classes_per_device=4, by=by))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


# Errors: each says what, the value, the rule and the next step


def check_refused(examples: Examples, how: Partition, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        split(examples, how)
    message = str(caught.value)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("devices", [0, -1, 301])
def test_devices_must_be_between_one_and_the_number_of_examples(devices: int) -> None:
    how = Partition("iid", devices)
    check_refused(make_examples(), how, "300 examples", f"{devices} devices", "change devices")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_finite_and_positive(alpha: float) -> None:
    how = Partition("dirichlet", 4, alpha=alpha)
    check_refused(make_examples(), how, f"is {alpha}", "above 0", "such as 0.5")


def test_alpha_matters_to_dirichlet_only() -> None:
    assert len(split(make_examples(), Partition("iid", 4, alpha=-1.0))) == 4


def test_seed_must_not_be_negative() -> None:
    check_refused(make_examples(), Partition("iid", 4, seed=-1), "is -1", "0 or more")


def test_kind_must_be_known() -> None:
    how = Partition("by-weather", 4)  # type: ignore[arg-type]
    check_refused(make_examples(), how, "'by-weather'", *KINDS)


def test_dirichlet_that_cannot_meet_min_size_is_refused() -> None:
    how = Partition("dirichlet", 10, alpha=0.5, min_size=31)
    check_refused(make_examples(), how, "31 examples of min_size", "300 in all", "raise alpha")


def test_an_empty_device_is_refused() -> None:
    how = Partition("dirichlet", 40, alpha=0.02, min_size=0, single_class="allow")
    check_refused(make_examples(), how, "without examples", "set min_size to 1")


def test_devices_with_one_class_only_are_named() -> None:
    examples = make_examples(owners=3)
    mine = np.array(["a", "b", "c"])[np.minimum(examples.targets, 2)]
    examples = Examples(examples.inputs, examples.targets, mine)
    how = Partition("natural-id", 3)
    check_refused(examples, how, "devices 0, 1 would", "two classes", "--single-class allow")


def test_a_dirichlet_device_with_one_class_only_asks_for_a_larger_alpha() -> None:
    how = Partition("dirichlet", 5, alpha=0.02, min_size=1)
    check_refused(make_examples(), how, "one class only", "raise alpha")


def test_devices_with_one_class_only_can_be_allowed() -> None:
    how = Partition("dirichlet", 5, alpha=0.02, min_size=1, single_class="allow")
    assert 1 in class_numbers(split(make_examples(), how))


def test_a_long_list_of_devices_is_cut() -> None:
    how = Partition("iid", devices=300)
    check_refused(make_examples(), how, "devices 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 290 more")


@pytest.mark.parametrize("classes", [0, 6])
def test_classes_per_device_must_exist(classes: int) -> None:
    how = Partition("pathological", 4, classes_per_device=classes)
    check_refused(make_examples(), how, f"is {classes}", "5 classes", "choose 1 to 5")


def test_pathological_must_not_leave_classes_out() -> None:
    how = Partition("pathological", 2, classes_per_device=2)
    check_refused(make_examples(), how, "on no device", "2 of 5 classes", "every class must")


def test_pathological_needs_an_example_of_a_class_for_each_device_that_holds_it() -> None:
    examples = make_examples(300)
    rare = Examples(examples.inputs, np.where(np.arange(300) == 0, 0, 1 + np.arange(300) % 4))
    how = Partition("pathological", 6, classes_per_device=2)
    check_refused(rare, how, "smallest class has 1", "6 devices", "lower devices")


def test_natural_id_needs_owners() -> None:
    examples = make_examples()
    nobodys = Examples(examples.inputs, examples.targets)
    check_refused(nobodys, Partition("natural-id", 4), "who owns", "set `owners`")


def test_natural_id_needs_as_many_owners_as_devices() -> None:
    check_refused(
        make_examples(), Partition("natural-id", 5), "4 owners", "5 devices", "set devices to 4"
    )


def test_columns_must_be_there_and_fit() -> None:
    examples = make_examples()
    for kind, by, parts in (
        ("natural-id", "room", ("a column 'room'", "the examples have time", "--partition-by")),
        ("continuous", "room", ("a column 'room'",)),
        ("continuous", "", ("owners", "dtype <U8", "finite numbers")),
        ("natural-id", "time", ("300 time for 4 devices",)),
    ):
        check_refused(examples, Partition(kind, 4, by=by), *parts)  # type: ignore[arg-type]
    odd = {"nan": np.where(np.arange(300) == 5, np.nan, 1.0), "flat": np.ones(300)}
    examples = replace(examples, columns={**odd, "pairs": np.ones((300, 2))})
    for by, part in (("nan", "finite"), ("flat", "are all 1.0"), ("pairs", "one for each")):
        check_refused(examples, Partition("continuous", 4, by=by), part)
    for strictness in (-0.1, 1.1, float("nan")):
        how = Partition("continuous", 4, by="targets", strictness=strictness)
        check_refused(examples, how, f"is {strictness}", "0 .. 1")


def test_columns_must_have_a_value_for_each_example() -> None:
    with pytest.raises(TaskError, match="300 owners, 299 of 'time'"):
        replace(make_examples(), columns={"time": np.arange(299)})


def test_owners_must_be_numbers_or_text() -> None:
    examples = make_examples()
    odd = Examples(examples.inputs, examples.targets, np.linspace(0, 1, 300))
    check_refused(odd, Partition("natural-id", 4), "dtype float64", "whole numbers or text")


# Targets, labels and owners of any kind


@pytest.mark.parametrize(("devices", "classes"), [(20, 2), (10, 3), (30, 2)])
def test_pathological_shares_hold_each_example_once_and_so_many_classes(
    devices: int, classes: int
) -> None:
    examples = make_examples(2000, classes=10)
    how = Partition("pathological", devices, min_size=1, classes_per_device=classes, seed=3)
    shares = split(examples, how)
    assert class_numbers(shares) == [classes] * devices
    held = np.concatenate([share.inputs[:, 0] for share in shares])
    assert np.array_equal(np.sort(held), np.arange(2000))


@pytest.mark.parametrize(
    "labels", [[0, 1], [-5, 7], [2**62, -(2**62)], [10**9, 3]], ids=lambda value: str(value)
)
@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_labels_need_not_be_small_or_follow_each_other(kind: Kind, labels: list[int]) -> None:
    small = make_examples(120, classes=2)
    odd = Examples(small.inputs, np.array(sorted(labels))[small.targets])
    how = Partition(kind, 3, alpha=5, min_size=1)
    assert_equal_lists(assign(odd, how), assign(small, how))


def with_targets(targets: Any) -> Examples:
    owners = np.arange(len(targets)) % 4
    return Examples(np.arange(len(targets), dtype=np.float32)[:, None], targets, owners)


NO_LABELS: dict[str, Any] = {
    "quantities": np.linspace(0, 1, 60),
    "one-hot rows": np.eye(3)[np.arange(60) % 3],
    "column": (np.arange(60) % 3)[:, None],
    "images": np.zeros((60, 1, 4, 4)),
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_targets_that_are_no_labels_are_shared_out_at_random_or_by_owner(kind: str) -> None:
    examples = with_targets(NO_LABELS[kind])
    for how in (Partition("iid", 4), Partition("natural-id", 4)):
        shares = split(examples, how)
        assert sizes(shares) == [15] * 4
        held = np.concatenate([share.inputs[:, 0] for share in shares]).astype(int)
        assert np.array_equal(np.sort(held), np.arange(60))
        for share in shares:
            indices = share.inputs[:, 0].astype(int)
            assert np.array_equal(share.targets, examples.targets[indices])
    for how in (Partition("dirichlet", 4), Partition("pathological", 4)):
        check_refused(examples, how, f"{how.kind} partition", "--partition iid", "natural-id")


OWNERS: dict[str, list[Any]] = {
    "odd text": ["", " ", "a\nb", "\x1b[2J"],
    "half a character": ["\ud800", "\udfff", "a", "b"],
    "long text": ["x" * 10_000, "y" * 10_000, "z", "日本"],
    "large numbers": [2**63, 2**64 - 1, 2**63 + 1, 2**63 + 2],
    "negative numbers": [-(2**63), -1, 0, 2**62],
}


@pytest.mark.parametrize("kind", OWNERS)
def test_owners_of_any_name_make_a_device_each_in_their_order(kind: str) -> None:
    owners = np.array(OWNERS[kind])
    examples = make_examples(80, classes=2)
    owned = Examples(examples.inputs, examples.targets, owners[np.arange(80) % 4])
    shares = split(owned, Partition("natural-id", 4, single_class="allow"))
    found = [set(share.owners.tolist()) for share in shares if share.owners is not None]
    assert found == [{owner} for owner in sorted(owners.tolist())]


@pytest.mark.parametrize("owners", [[None, "a"], [0.5, 1.5], [b"a", b"b"], [2**70, 1]])
def test_owners_of_other_kinds_are_refused(owners: list[Any]) -> None:
    examples = make_examples(80, classes=2)
    odd = np.array(owners)[np.arange(80) % 2]
    owned = Examples(examples.inputs, examples.targets, odd)
    check_refused(owned, Partition("natural-id", 2), "must be whole numbers or text")


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_data_of_one_class_is_refused_unless_allowed(kind: Kind) -> None:
    examples = with_targets(np.zeros(60, np.int64))
    how = Partition(kind, 3, alpha=100, min_size=1, classes_per_device=1)
    if kind != "pathological":  # which was asked for one class
        check_refused(examples, how, "one class only")
    allowed = Partition(kind, 3, alpha=100, min_size=1, classes_per_device=1, single_class="allow")
    held = np.concatenate([share.inputs[:, 0] for share in split(examples, allowed)])
    assert np.array_equal(np.sort(held), np.arange(60))


@pytest.mark.parametrize("alpha", [1e-12, 1e-5, 1e9, 1e12])
def test_an_extreme_alpha_shares_out_or_is_refused(alpha: float) -> None:
    how = Partition("dirichlet", 3, alpha=alpha, min_size=1, single_class="allow")
    shares = shares_or_refusal(make_examples(90, classes=3), how)
    if isinstance(shares, str):
        assert POSSIBLE_REFUSAL["dirichlet"] in shares
    else:
        assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(90))


@pytest.mark.parametrize("kind", [kind for kind, row in ROWS.items() if row.cut is not None])
@settings(max_examples=15, deadline=None)
@given(owners=st.integers(1, 12), more=st.integers(0, 40), seed=st.integers(0, 100))
def test_what_is_cut_here_is_what_the_library_cuts(
    kind: Kind, owners: int, more: int, seed: int
) -> None:
    examples = make_examples(owners + more + 5, owners=owners)
    how = Partition(kind, owners, seed=seed, single_class="allow")
    with pytest.MonkeyPatch.context() as patch:
        here = assign(examples, how)
        patch.setitem(ROWS, kind, replace(ROWS[kind], cut=None))
        theirs = assign(examples, how)
    assert [share.tolist() for share in here] == [share.tolist() for share in theirs]
    assert {share.dtype for share in here} == {np.dtype(np.int64)}
