"""Two rankings become one order, whatever their scales; and it is told what asks, and how sure its passages are."""

from math import isclose, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.grounding import NOT_ANSWERED, WITHOUT_DOCUMENTS
from domain.knowledge import Found, Passage
from domain.retrieval import (
    DEPTH,
    WORDS_OF_ANSWER,
    WORDS_OF_QUESTION,
    Evidence,
    Ranking,
    asks,
    by_document,
    combined,
    confidence,
    distinct,
    fuse,
    in_one,
    keywords,
    queries,
    stands_alone,
    within,
)

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
# Apart enough that adding and scaling cannot make two scores one.
SCORES = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(-50, 50).map(float), min_size=1)


def found(name: str, text: str = "", *, document: str = "d", title: str = "") -> Found:
    return Found(name, Passage(document, title, "", text or f"passage {name}"), 0.0)


def said(*messages: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in messages]


# -- two rankings


@given(SCORES, SCORES, st.integers(-100, 100), st.integers(1, 100))
def test_what_scale_a_ranking_has_does_not_matter(words: Ranking, near: Ranking, more: int, times: int) -> None:
    scaled = {key: score * times + more for key, score in words.items()}

    before, after = dict(fuse(words, near)), dict(fuse(scaled, near))
    assert before.keys() == after.keys() == words.keys() | near.keys()
    assert all(isclose(before[key], after[key], abs_tol=1e-6) for key in before)


@given(SCORES, SCORES)
def test_what_is_best_in_both_is_first_and_scores_fall(words: Ranking, near: Ranking) -> None:
    words["best"], near["best"] = max(words.values()) + 1, max(near.values()) + 1

    ranked = fuse(words, near)
    assert ranked[0][0] == "best"
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


@given(SCORES)
def test_of_one_ranking_alone_the_order_stays(ranking: Ranking) -> None:
    for order in (fuse(ranking, {}), fuse({}, ranking)):
        scores = [ranking[key] for key, _ in order]
        assert scores == sorted(scores, reverse=True)


def test_rankings_that_say_nothing_are_none() -> None:
    assert fuse({}, {}) == []
    assert fuse({"a": 3.0}, {}) == [("a", 0.0)]
    assert [key for key, _ in fuse({"a": 5.0, "b": 5.0}, {"a": 0.1, "b": 0.9})] == ["b", "a"]
    # Not in a ranking is as good as its last, and no better.
    assert fuse({"a": 2.0, "b": 1.0}, {"a": 0.5, "c": 0.5})[-1][0] in {"b", "c"}


# -- what is searched for


def test_a_first_question_is_searched_for_alone() -> None:
    (query,) = queries(said((SYSTEM, "be brief"), (USER, " How do I reset it? ")))

    assert query.text == "How do I reset it?"


def test_a_later_question_is_searched_for_with_what_led_to_it() -> None:
    texts = [
        query.text
        for query in queries(
            said((USER, "first"), (ASSISTANT, "old"), (USER, "second"), (ASSISTANT, "answer"), (USER, "third"))
        )
    ]

    assert texts == ["third", "answer third", "first third"]
    assert [query.text for query in queries(said((USER, "first"), (USER, "second")))] == [
        "second",
        "second",
        "first second",
    ]


@pytest.mark.parametrize("note", [NOT_ANSWERED, WITHOUT_DOCUMENTS])
def test_our_own_notes_are_not_searched_for_but_what_they_were_the_answer_to(note: str) -> None:
    refused = said((USER, "first"), (ASSISTANT, "old"), (USER, "second"), (ASSISTANT, note), (USER, "third"))

    assert [query.text for query in queries(refused)] == ["third", "second third", "first third"]


def test_an_answer_without_documents_is_searched_for_without_its_note() -> None:
    messages = said((USER, "first"), (ASSISTANT, f"{WITHOUT_DOCUMENTS}It is so."), (USER, "second"))

    assert queries(messages)[1].text == "It is so. second"


ALONE = [
    "What is the capital city of France?",
    "How long is parental leave for contractors?",
    "What does the retention setting of Kafka default to?",
    "Which port does Kafka listen on?",
]
LEANING = [
    "And how much is it?",
    "How long is that period for contractors?",
    "What is the price?",
    "How long is the notice period?",
    "How much does the cheapest plan cost per month?",
    "And which port does Kafka listen on?",
    "Which port does the other broker listen on?",
    "How long is my notice period for contractors?",
    "How much parental leave do I get?",
    "What about contractors in Germany?",
    "Why?",
    "Kafka listen port",
]


@pytest.mark.parametrize("question", ALONE + LEANING)
def test_a_question_leans_on_its_conversation_unless_it_is_whole_without_it(question: str) -> None:
    before = (USER, "Tell me about leave in Spain."), (ASSISTANT, "It is long.")

    assert stands_alone(said(*before, (USER, question))) is (question in ALONE)
    assert stands_alone(said((USER, question)))


def test_what_is_read_beside_a_passage_is_a_question_behind_the_one_that_it_leans_on() -> None:
    before = (USER, "first"), (ASSISTANT, "old"), (USER, "Tell me about plan X"), (ASSISTANT, "It is large.")

    assert in_one(said(*before, (USER, "How much is it?"))) == "Tell me about plan X How much is it?"
    assert in_one(said(*before, (USER, ALONE[0]))) == ALONE[0]
    assert in_one(said((USER, "How much is it?"))) == "How much is it?"


def test_words_are_those_of_the_last_question_and_a_little_of_the_one_before() -> None:
    first, second = "How long are tokens kept?", "And what is it in the US, for chat.tokens.v1?"
    (question, earlier) = keywords(said((USER, first), (ASSISTANT, "3 days"), (USER, "thanks!"), (USER, second)))

    assert question == ("US, chat.tokens.v1?", 1.0)
    assert earlier.text == "long tokens kept?"
    assert 0 < earlier.weight < question.weight
    assert keywords(said((USER, "what about it?"))) == [("what about it?", 1.0)]
    assert keywords([]) == []


def test_who_says_hello_first_asks_a_first_question() -> None:
    messages = said((USER, "Hi"), (ASSISTANT, "Hello! What can I do for you?"), (USER, "Where is the log?"))

    assert [query.text for query in queries(messages)] == ["Where is the log?"]


def test_a_long_conversation_does_not_make_a_long_query() -> None:
    long = "word " * 10_000
    longest = max(len(query.text.split()) for query in queries(said((USER, long), (ASSISTANT, long), (USER, long))))

    assert longest <= max(2 * WORDS_OF_QUESTION, WORDS_OF_ANSWER + WORDS_OF_QUESTION)


def test_nor_does_one_without_spaces() -> None:
    (query,) = queries(said((USER, "再" * 10_000)))
    assert query.text == "再" * WORDS_OF_QUESTION
    (query,) = queries(said((USER, "x" * 1_000_000)))
    assert len(query.text) < 100 * WORDS_OF_QUESTION


@pytest.mark.parametrize(
    "messages",
    [[], said((ASSISTANT, "hello")), said((USER, "  ")), said((USER, [{"type": "image_url"}])), [{"role": USER}]],
)
def test_where_nothing_is_asked_nothing_is_searched_for(messages: list[dict[str, object]]) -> None:
    assert queries(messages) == []


def test_vectors_are_added_by_their_weights_to_one_of_length_one() -> None:
    assert combined([[1.0, 0.0], [0.0, 1.0]], [3.0, 4.0]) == [0.6, 0.8]
    assert isclose(sqrt(sum(x * x for x in combined([[5.0, 1.0, 2.0]], [2.0]))), 1.0)
    assert combined([[1.0], [-1.0]], [1.0, 1.0]) == [0.0]


# -- which passages


def test_what_says_the_same_again_is_left_out() -> None:
    texts = ["The cluster keeps three copies of each log.", "Each log: the cluster KEEPS three copies.", "Other words."]
    each = [found(str(n), text) for n, text in enumerate(texts)]

    assert list(distinct(each)) == [each[0], each[2]]
    assert next(distinct([found("a", "?!"), found("b", "...")])).passage_id == "a"


def test_the_best_of_each_document_comes_first() -> None:
    each = [found(name, document=name[0]) for name in ("a1", "a2", "b1", "a3", "b2", "c1")]

    assert [one.passage_id for one in by_document(each)] == ["a1", "b1", "c1", "a2", "a3", "b2"]


@given(st.lists(st.integers(0, 500)), st.integers(1, 10), st.integers(0, 1000))
def test_as_many_passages_are_given_as_fit_and_the_best_in_any_case(
    lengths: list[int], count: int, tokens: int
) -> None:
    each = [found(str(n), "x" * length) for n, length in enumerate(lengths)]

    kept = within(each, count=count, tokens=tokens)
    assert kept == each[: len(kept)]
    assert min(1, len(each)) <= len(kept) <= count
    more = within(each, count=count, tokens=tokens + 100)
    assert more[: len(kept)] == kept


# -- how sure that makes us

QUESTION = "Which port does the broker use?"
TEXT = "The broker listens on port 9092."


def evidence(near: float, text: str = TEXT, *, size: int = DEPTH, lead: float = 0.2) -> Evidence:
    """Evidence of a ranking of ``size`` passages, the best of which is ``lead`` nearer than the last."""
    ranking = {"best": near} | {str(place): near - lead for place in range(size - 1)}
    return Evidence(QUESTION, ranking, [found("best", text)])


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_nearer_passage_is_never_less_sure(one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert 0 <= confidence(evidence(low)) <= confidence(evidence(high)) <= 1


def test_more_words_of_the_question_and_a_greater_lead_are_more_sure() -> None:
    by_words = [confidence(evidence(0.4, text)) for text in ("Nothing.", "A broker.", TEXT)]
    by_lead = [confidence(evidence(0.4, lead=lead)) for lead in (0.0, 0.1, 0.3)]

    assert by_words == sorted(set(by_words))
    assert by_lead == sorted(set(by_lead))


def test_where_nothing_was_found_nothing_is_sure() -> None:
    assert confidence(Evidence(QUESTION, {}, [])) == 0


def test_without_vectors_words_alone_tell() -> None:
    def sure(text: str) -> float:
        return confidence(Evidence(QUESTION, {}, [found("best", text)]))

    assert 0 == sure("Nothing.") < sure("A broker.") < sure(f"{TEXT} Use it.") <= 1


def test_in_a_small_collection_it_does_not_count_how_near_the_others_are() -> None:
    few = [confidence(evidence(0.4, size=DEPTH - 1, lead=lead)) for lead in (0.0, 0.1, 0.3)]

    assert len(set(few)) == 1
    assert confidence(evidence(0.9, size=1)) > 0.9
    assert confidence(evidence(0.0, size=1)) < 0.4


def test_a_passage_that_only_words_found_is_as_far_as_the_last_one() -> None:
    one = evidence(0.5)._replace(found=[found("words alone", TEXT)])

    assert confidence(one) == confidence(one._replace(found=[found(list(one.near)[-1], TEXT)]))


# -- what is asked

QUESTIONS = [
    "How do I restart the broker?",
    "how do i restart the broker",
    "What does HEADRACE_PASSAGES do?",
    "What's the default port of Kafka?",
    "Hi, where is the log kept?",
    "ok, and why does it wait for a rebalance?",
    "Is the archive idempotent?",
    "Tell me about consumer groups.",
    "explain the token log",
    "List the settings of the archive",
    "I want to know what a tombstone is",
    "The default port?",
    "Which of the two is faster, and why?",
    "Who wrote the incident report of May?",
    "Wie starte ich den Broker neu?",
    "ブローカーを再起動するには?",
    "Does the free plan include support?",
    "Compare windows and batches",
    "Could a worker lose a turn?",
    "Good morning, what is a window?",
    "Is the right port open?",
    "Can you please tell me more about consumer groups?",
    "Yes. Could you tell me a little bit about tombstones?",
    "Could you explain the token log to me",
    "Do you know where the archive is kept?",
    "What do you mean by a claim?",
    "Thank you. What does the peer watch do?",
    "“What happens to a turn when its worker dies?”",
    "can you give more details about the query API?",
]

NO_QUESTIONS = [
    "Hi",
    "hello!",
    "Hello, how are you?",
    "How are you doing?",
    "Good morning!",
    "What's up?",
    "How's it going?",
    "What’s up",
    "Good evening, how is everything going?",
    "Anybody there?",
    "Thanks a lot!",
    "thank you, that helps",
    "ok",
    "Okay then",
    "Really?",
    "Right?",
    "Are you sure?",
    "yes please",
    "",
    "   ",
    "???",
    "👍",
    "My name is Ann.",
    "I work at a bank and we use Kafka 4.",
    "I prefer short answers.",
    "What is my name?",
    "Where do I work?",
    "What do you know about me?",
    "Do you remember what I said?",
    "Who are you?",
    "What can you do?",
    "What is your name?",
    "Please write a poem about the sea",
    "Translate this into French: where is the station?",
    "Summarise our conversation",
    "Can you write me an e-mail?",
    "Can you tell me about yourself?",
    "Could you explain what you can do?",
    "Do you know who I am?",
    "Do you know me?",
    "Can you give me a poem about the sea?",
    "Give me a summary of our conversation",
    "Could you tell me what I said before?",
    "Could you please rephrase that?",
    "Fix this code: print(",
    "make it shorter",
    "Continue",
    "stop",
    "Say it in one sentence",
    "Tell me a joke",
]


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_question_is_one(text: str) -> None:
    assert asks(text)


@pytest.mark.parametrize("text", NO_QUESTIONS)
def test_what_no_document_would_know_is_no_question(text: str) -> None:
    assert not asks(text)
