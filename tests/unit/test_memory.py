"""What is known of a user: the latest counts, in whatever order it arrives, and what is erased is gone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.memory import (
    HANDLED,
    Fact,
    Kind,
    Memories,
    edited,
    emptied,
    forgotten,
    is_about_user,
    relevant,
    remembered,
    switched,
)
from streams.records import MemoryChange
from tables.memories import changed

NOBODY = Memories("t", "u")


def fact(text: str, at: int, slot: str = "name", kind: Kind = "identity", **more: str) -> Fact:
    return Fact(f"{slot}/{text}/{at}", text, slot, kind, at, at, **more)  # type: ignore[arg-type]  # str alone


def knowing(*facts: Fact) -> Memories:
    known = NOBODY
    for each in facts:
        known = remembered(known, each, most=10)
    return known


def texts(known: Memories) -> list[str]:
    return [each.text for each in known.valid]


# -- superseding


def test_a_new_fact_takes_the_place_of_the_old_one_which_is_kept_with_when_it_ended() -> None:
    known = knowing(fact("Ann", 1), fact("Rome", 2, "location"), fact("Beth", 5))

    assert texts(known) == ["Beth", "Rome"]
    assert [(each.text, each.valid_from, each.valid_to) for each in known.facts if each.slot == "name"] == [
        ("Ann", 1, 5),
        ("Beth", 5, None),
    ]


def test_what_was_told_before_does_not_take_the_place_of_what_was_told_after() -> None:
    assert texts(knowing(fact("Beth", 5), fact("Ann", 1))) == ["Beth"]


def test_the_same_told_again_is_one_fact_and_as_young_as_the_last_time() -> None:
    known = knowing(fact("Ann", 1), fact("Ann", 9), fact("Beth", 5))

    assert texts(known) == ["Ann"]
    assert known.valid[0].id == "name/Ann/1"


slots, words = st.sampled_from(["name", "location", "role"]), st.sampled_from("abc")
told = st.builds(lambda slot, text, at: fact(text, at, slot), slots, words, st.integers(1, 10))


@given(st.lists(told, max_size=12, unique_by=lambda each: (each.slot, each.valid_from)), st.randoms())
def test_what_is_true_does_not_depend_on_the_order_in_which_facts_arrive(facts: list[Fact], random: object) -> None:
    shuffled = facts.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis types it as object

    latest = {each.slot: each.text for each in sorted(facts, key=lambda each: each.valid_from)}
    assert {each.slot: each.text for each in knowing(*facts).valid} == latest
    assert {each.slot: each.text for each in knowing(*shuffled).valid} == latest


@given(st.lists(told, max_size=30))
def test_a_slot_has_one_true_fact_and_the_others_of_it_have_ended(facts: list[Fact]) -> None:
    known = knowing(*facts)

    assert len({each.slot for each in known.valid}) == len(known.valid)
    for each in known.facts:
        assert each.valid_to is None or each.valid_to >= each.valid_from


def test_the_oldest_gives_way_where_there_are_too_many() -> None:
    known = NOBODY
    for number in range(10):
        known = remembered(known, fact(str(number), number + 1, f"note:{number}", "note"), most=3)

    assert texts(known) == ["9", "8", "7"]
    assert len(known.facts) == 3


# -- forgetting


def test_what_is_erased_takes_with_it_what_it_had_superseded() -> None:
    known = forgotten(knowing(fact("Ann", 1), fact("Beth", 5), fact("Rome", 2, "location")), ["name"])

    assert [each.text for each in known.facts] == ["Rome"]


def test_an_edited_fact_keeps_no_trace_of_what_it_said() -> None:
    before = fact("Ann", 1)
    known = edited(knowing(before), before, "Anne", "name", "identity", 7)

    assert [(each.text, each.id, each.created_at, each.valid_from) for each in known.facts] == [
        ("Anne", "name/Ann/1", 1, 7)
    ]


def test_a_fact_that_is_edited_to_say_something_else_takes_the_place_of_what_said_that() -> None:
    name, employer = fact("The user's name is Ann.", 1), fact("The user works at Acme.", 2, "employer")

    known = knowing(name, employer)
    for text in ("I work at Beta.", "I work at Gamma."):
        order = MemoryChange(change_id=text, tenant="t", user="u", action="edit", memory_id=name.id, text=text, at=9)
        known = changed(known, order, most=10)

    assert [(each.id, each.text, each.slot) for each in known.valid] == [(name.id, "I work at Gamma.", "employer")]
    known = remembered(known, fact("The user's name is Beth.", 10), most=10)
    assert texts(known) == ["The user's name is Beth.", "I work at Gamma."]


def test_what_was_told_before_everything_was_forgotten_does_not_come_back() -> None:
    known = emptied(knowing(fact("Ann", 1)), 5)

    assert known.facts == []
    assert remembered(known, fact("Ann", 4), most=10).facts == []
    assert texts(remembered(known, fact("Ann", 6), most=10)) == ["Ann"]


def test_nothing_is_added_while_the_user_has_switched_it_off() -> None:
    off = replace(knowing(fact("Ann", 1)), enabled=False)

    assert texts(remembered(off, fact("Beth", 5), most=10)) == ["Ann"]


def test_what_was_told_while_it_was_off_stays_unknown_however_late_it_arrives() -> None:
    on_again = switched(switched(NOBODY, enabled=False, at=2), enabled=True, at=5)

    assert remembered(on_again, fact("Ann", 4), most=10).facts == []
    assert texts(remembered(on_again, fact("Ann", 6), most=10)) == ["Ann"]
    assert switched(NOBODY, enabled=True, at=5) == NOBODY


# -- changes as they come from Kafka


def order(change_id: str, action: str, at: int, **more: object) -> MemoryChange:
    return MemoryChange(change_id=change_id, action=action, tenant="t", user="u", at=at, **more)  # type: ignore[arg-type]  # as the wire


def after(*orders: MemoryChange) -> Memories:
    known = NOBODY
    for each in orders:
        known = changed(known, each, most=10)
    return known


ANN = order("1", "remember", 1, text="Ann", slot="name", turn_id="turn-1", conversation_id="c")


def test_the_same_change_twice_is_one_also_after_what_it_did_was_undone() -> None:
    forget = order("2", "forget", 2, slot="name")

    assert after(ANN, ANN) == after(ANN)
    assert after(ANN, forget, ANN).facts == []


def test_a_fact_is_forgotten_by_its_id_its_slot_or_its_turn() -> None:
    for how in ({"memory_id": "1"}, {"slot": "name"}, {"turn_id": "turn-1"}):
        assert after(ANN, order("2", "forget", 2, **how)).facts == []
    for other in ({"memory_id": "9"}, {"slot": "role"}, {"turn_id": "turn-9"}, {}):
        assert texts(after(ANN, order("2", "forget", 2, **other))) == ["Ann"]


def test_every_change_has_a_higher_revision_also_than_those_that_kafka_lost() -> None:
    before = after(ANN, order("2", "switch", 1_000, enabled=False))

    assert after(ANN).revision < before.revision
    assert before.enabled is False
    assert after(order("9", "switch", 2_000)).revision > before.revision


ids, times = st.integers(0, 9).map(str), st.integers(1, 50)
changes = st.lists(
    st.one_of(
        st.builds(lambda n, at, slot, text: order(n, "remember", at, slot=slot, text=text), ids, times, slots, words),
        st.builds(lambda n, at, slot: order(n, "forget", at, slot=slot), ids, times, slots),
        st.builds(lambda n, at: order(n, "forget_all", at), ids, times),
        st.builds(lambda n, at, enabled: order(n, "switch", at, enabled=enabled), ids, times, st.booleans()),
    ),
    max_size=12,
)


@given(changes, st.data())
def test_redelivery_from_any_place_ends_where_one_delivery_does(
    orders: list[MemoryChange], data: st.DataObject
) -> None:
    once = after(*orders)
    again = data.draw(st.integers(0, len(orders)))

    assert after(*orders, *orders[again:]) == once


@given(changes)
def test_the_ids_that_are_remembered_are_bounded_and_the_latest(orders: list[MemoryChange]) -> None:
    known = replace(NOBODY, handled=[f"old-{n}" for n in range(HANDLED)])
    for each in orders:
        known = changed(known, each, most=10)

    assert len(known.handled) == HANDLED
    assert known.handled[-1:] == list(dict.fromkeys(each.change_id for each in orders))[-1:] or not orders


# -- what is used

KNOWN = knowing(
    fact("The user's name is Ann.", 1),
    fact("The user wants short answers.", 2, "answer style", "preference"),
    fact("The user's cluster runs Kafka 4.", 3, "runs:cluster", "work"),
    fact("The demo is on Friday.", 4, "note:demo", "note"),
    fact("The user's name is Old.", 0),
)


def test_who_the_user_is_always_counts_and_the_rest_where_it_is_spoken_of() -> None:
    always = ["The user wants short answers.", "The user's name is Ann."]

    assert relevant(KNOWN.facts, "What is the capital of France?") == always
    assert relevant(KNOWN.facts, "How do I restart my Kafka clusters?") == [*always, "The user's cluster runs Kafka 4."]
    assert relevant(KNOWN.facts, "What do you know about me?") == [
        *always,
        "The demo is on Friday.",
        "The user's cluster runs Kafka 4.",
    ]


def test_what_is_used_stays_within_its_budget() -> None:
    assert relevant(KNOWN.facts, "Kafka?", budget=12) == ["The user wants short answers."]
    assert relevant(KNOWN.facts, "Kafka?", budget=0) == []


@pytest.mark.parametrize(
    "question",
    [
        "What's my name?",
        "Who am I?",
        "Where do I work?",
        "Do you remember what I told you?",
        "Do you know my name?",
        "What do you know about me?",
        "Which tools do I use?",
    ],
)
def test_some_questions_are_about_the_user(question: str) -> None:
    assert is_about_user(question)


@pytest.mark.parametrize(
    "question", ["How do I restart my cluster?", "What does a claim do?", "Can I use my own model?", "What is Kafka?"]
)
def test_and_others_are_for_the_documents(question: str) -> None:
    assert not is_about_user(question)
