"""An answer is given again only to the same question, of someone who holds all that it rests on."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.answer_cache import Asked, Kept, Sharing, may_be_kept, pieces, place_of, served
from domain.generation import Usage
from domain.knowledge import Found, Passage, Reader, Retrieved

ANN, BEN = Reader("acme", "ann"), Reader("acme", "ben")
EVE = Reader("evil", "ann")
TEXTS = {
    "p1": "Notice periods: employees give three months of notice. Contractors give two weeks. See the gdpr.",
    "p2": "Enable the cache with HEADRACE_ANSWER_CACHE. It costs 20 dollars for 500 users in Berlin.",
}


def found(*ids: str, public: bool = True) -> Retrieved:
    return Retrieved(
        "found", tuple(Found(each, Passage("d", "", "", TEXTS.get(each, "")), 1.0, public) for each in ids)
    )


ASKED = Asked(ANN, "How long is the notice period?", found("p1", "p2"), "grounded.v1", "small")


def key(asked: Asked, sharing: Sharing = "tenant") -> str | None:
    place = place_of(asked, sharing)
    return place.key if place else None


# -- who finds what


@pytest.mark.parametrize(
    ("sharing", "reader", "public", "is_shared"),
    [
        ("user", ANN, True, True),
        ("user", BEN, True, False),
        ("tenant", BEN, True, True),
        ("tenant", BEN, False, False),
        ("tenant", ANN, False, True),
        ("tenant", EVE, True, False),
        ("public", BEN, True, True),
        ("public", BEN, False, False),
        ("public", EVE, True, False),
    ],
)
def test_an_answer_from_documents_is_shared_within_a_tenant_at_most(
    sharing: Sharing, reader: Reader, public: bool, is_shared: bool
) -> None:
    kept = replace(ASKED, retrieved=found("p1", public=public))

    assert (key(replace(kept, reader=reader), sharing) == key(kept, sharing)) is is_shared


def test_one_passage_that_not_everyone_may_read_makes_an_answer_its_askers_own() -> None:
    (public,), (private,) = found("p1").passages, found("p2", public=False).passages
    mixed = replace(ASKED, retrieved=Retrieved("found", (public, private)))

    assert key(mixed) == key(mixed, "user")
    assert key(replace(mixed, reader=BEN)) != key(mixed)


def test_what_rests_on_no_document_is_shared_by_all_where_the_operator_says_so_and_word_for_word() -> None:
    kept = replace(ASKED, retrieved=Retrieved("empty"))
    place = place_of(replace(kept, reader=EVE), "public")

    assert place == place_of(kept, "public")
    assert place is not None
    answer = Kept("How long is a notice period?", "Long.", (), Usage(), "t")
    assert served(answer, place, Retrieved("empty")) is None
    assert served(replace(answer, question=place.question), place, Retrieved("empty")) is not None
    assert place_of(kept, "tenant") is None


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, follows=True),
        replace(ASKED, is_again=True),
        replace(ASKED, is_personal=True),
        replace(ASKED, options={"temperature": 0}),
        replace(ASKED, options={"tools": []}),
        replace(ASKED, question=" ?"),
        *(
            replace(ASKED, retrieved=replace(ASKED.retrieved, outcome=each))
            for each in ("weak", "unavailable", "empty")
        ),
    ],
)
def test_nothing_is_kept_or_given_again_where_more_than_question_and_passages_counts(other: Asked) -> None:
    assert place_of(other, "tenant") is None


def test_a_document_that_was_learned_from_another_record_has_another_key_though_its_passages_say_the_same() -> None:
    (passage, *rest) = ASKED.retrieved.passages
    changed = replace(passage, passage=replace(passage.passage, version=passage.passage.version + 1))

    assert key(replace(ASKED, retrieved=Retrieved("found", (changed, *rest)))) != key(ASKED)
    assert key(replace(ASKED, retrieved=Retrieved("found", (*rest, passage)))) == key(ASKED)


def test_off_is_off() -> None:
    assert place_of(ASKED, "off") is None


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, retrieved=found("p1")),
        replace(ASKED, retrieved=found("p1", "p3")),
        replace(ASKED, retrieved=found("p1", "p2", "p3")),
        replace(ASKED, prompt="grounded.v2"),
        replace(ASKED, model="large"),
        replace(ASKED, question="How long is the notice period in France?"),
    ],
)
def test_other_passages_instructions_models_and_questions_have_other_keys(other: Asked) -> None:
    assert key(other) != key(ASKED)


@pytest.mark.parametrize("said", ["  How long  is the\nnotice period", "How long is the notice period ?!"])
def test_spaces_and_marks_at_the_end_do_not_make_another_question(said: str) -> None:
    assert key(replace(ASKED, question=said)) == key(ASKED)


names = st.text(alphabet='ab"\\,[]/\0 *', max_size=4)
asked = st.builds(
    Asked,
    reader=st.builds(Reader, names, names),
    question=st.sampled_from(["a", "b"]),
    retrieved=st.lists(names, min_size=1, max_size=3, unique=True).map(lambda ids: found(*ids)),
    prompt=names,
    model=names,
)


@given(asked, asked, st.sampled_from(["user", "tenant", "public"]))
def test_no_two_readers_passages_prompts_or_models_share_a_key(one: Asked, other: Asked, sharing: Sharing) -> None:
    def told_apart(each: Asked) -> tuple[object, ...]:
        reader = each.reader if sharing == "user" else each.reader.tenant
        ids = {found.passage_id for found in each.retrieved.passages}
        return reader, each.question, ids, each.prompt, each.model

    assert (key(one, sharing) == key(other, sharing)) == (told_apart(one) == told_apart(other))


@given(asked)
def test_what_a_user_keeps_privately_has_a_key_that_no_shared_answer_has(one: Asked) -> None:
    private = replace(one, retrieved=found(*(each.passage_id for each in one.retrieved.passages), public=False))

    assert key(private) == key(private, "user")
    assert key(private) != key(one)


# -- which question is the same


def is_same(one: str, other: str, *passages: str) -> bool:
    retrieved = found(*(passages or TEXTS))
    place = place_of(replace(ASKED, question=other, retrieved=retrieved), "tenant")
    assert place is not None
    ids = tuple(each.passage_id for each in retrieved.passages)
    return served(Kept(one, "An answer [1].", ids, Usage(), "t"), place, retrieved) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How long is the notice period", "Hi, can you tell me how long the notice period is?"),
        ("What are notice periods", "what's a notice period?"),
        ("What does HEADRACE_ANSWER_CACHE cost", "Please tell me what HEADRACE_ANSWER_CACHE costs"),
        ("Isn't there a notice period", "Is there not a notice period"),
        ("How do I enable the cache", "Could you explain how I would enable the cache, please?"),
        ("Why is there a GDPR notice", "why is there a gdpr notice"),
    ],
)
def test_politeness_articles_and_forms_of_a_word_do_not_make_another_question(one: str, other: str) -> None:
    assert is_same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I enable the cache", "How do I disable the cache"),
        ("Can contractors give notice", "Can contractors not give notice"),
        ("Can contractors give notice", "Can't contractors give notice"),
        ("What does it cost for 500 users", "What does it cost for 50 users"),
        ("What does it cost for 500 users", "What does it cost for 500 users in Berlin"),
        ("What does it cost in Berlin", "What does it cost in Munich"),
        ("How long is the notice of employees", "How long is the notice of contractors"),
        ("What is the maximum notice", "What is the minimum notice"),
        ("What is my notice period", "What is your notice period"),
        ("What was the notice period", "What is the notice period"),
        ("How do employees notice contractors", "How do contractors notice employees"),
        ("How does the cache get from Berlin to users", "How does the cache get from users to Berlin"),
        ("What is notice period A", "What is a notice period"),
        ("What does -v do to the cache", "What does -V do to the cache"),
        ("How is the cache in the US", "How is the cache in us"),
        ("Is the cache with users", "Is the cache without users"),
        ("What about it", "How about that"),
        ("What is it", "What about this"),
    ],
)
def test_whatever_turns_a_question_makes_another_one(one: str, other: str) -> None:
    assert not is_same(one, other)
    assert not is_same(other, one)


def test_words_that_no_passage_has_are_left_to_the_vectors() -> None:
    assert is_same("Briefly, how long is the notice period", "How long is the notice period")


# -- what is given


def test_the_passages_of_now_are_given_in_the_order_that_the_answer_numbers_them_by() -> None:
    retrieved = found("p2", "p1")
    place = place_of(replace(ASKED, retrieved=retrieved), "tenant")
    assert place is not None

    cached = served(Kept(place.question, "Three months [1].", ("p1", "p2"), Usage(9, 3), "t"), place, retrieved)

    assert cached is not None
    assert cached.kind == "exact"
    assert [each.passage_id for each in cached.passages] == ["p1", "p2"]
    assert cached.saved == Usage(9, 3)


@pytest.mark.parametrize("ids", [("p1",), ("p1", "p2", "p3"), ("p1", "p3"), ()])
def test_what_rests_on_other_passages_is_not_given_even_if_it_was_found(ids: Sequence[str]) -> None:
    place = place_of(ASKED, "tenant")
    assert place is not None

    assert served(Kept(place.question, "So it is [1].", tuple(ids), Usage(), "t"), place, ASKED.retrieved) is None


@pytest.mark.parametrize(
    ("answer", "outcome", "finish", "is_kept"),
    [
        ("Three months [1].", "completed", "stop", True),
        ("Both [1, 2].", "completed", "stop", True),
        ("Three months.", "completed", "stop", False),
        ("Three months [7].", "completed", "stop", False),
        ("Three mon", "completed", "length", False),
        ("Three months [1].", "stopped", "stop", False),
        ("Three months [1].", "failed", "stop", False),
        ("[1]", "completed", "tool_calls", False),
        (" ", "completed", "stop", False),
    ],
)
def test_an_answer_is_kept_if_it_is_whole_and_names_what_it_rests_on(
    answer: str, outcome: str, finish: str, is_kept: bool
) -> None:
    assert may_be_kept(ASKED.retrieved, answer, outcome=outcome, finish=finish) is is_kept


@given(st.text(alphabet="ab \n\t[1].", max_size=60))
def test_the_pieces_of_an_answer_are_the_answer_and_none_is_empty_or_long(answer: str) -> None:
    cut = list(pieces(answer))

    assert "".join(cut) == answer
    assert all(0 < len(each.split()) <= 3 or each.isspace() for each in cut)
