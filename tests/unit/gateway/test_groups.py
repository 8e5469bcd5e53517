"""Members by group: one, several, none."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.groups import Groups


class Member:
    """Somebody."""


def test_a_group_without_members_is_empty() -> None:
    groups: Groups[Member] = Groups()

    assert list(groups.of("alice")) == []
    assert len(groups) == 0


def test_members_are_in_the_order_in_which_they_came() -> None:
    groups: Groups[Member] = Groups()
    members = [Member(), Member(), Member()]
    for member in members:
        groups.add("alice", member)

    assert list(groups.of("alice")) == members
    assert len(groups) == 1


def test_somebody_else_is_not_taken_out() -> None:
    groups: Groups[Member] = Groups()
    alone = Member()
    groups.add("alice", alone)
    groups.discard("alice", Member())
    groups.discard("bob", alone)

    assert list(groups.of("alice")) == [alone]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 3))))
def test_groups_are_what_a_dict_of_dicts_would_be(steps: list[tuple[bool, int, int]]) -> None:
    members = [Member() for _ in range(4)]
    groups: Groups[Member] = Groups()
    model: dict[str, dict[Member, None]] = {}
    for adds, name, index in steps:
        group, member = f"group {name}", members[index]
        if adds:
            groups.add(group, member)
            model.setdefault(group, {})[member] = None
        else:
            groups.discard(group, member)
            model.get(group, {}).pop(member, None)
            if not model.get(group, {None: None}):
                del model[group]
        assert len(groups) == len(model)
        for known in ("group 0", "group 1"):
            assert list(groups.of(known)) == list(model.get(known, {}))
