"""What of a question is a fact about its user, and what is not: many ways to say it, and many that only look so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.memory import Fact
from domain.secret import is_secret
from domain.statements import Told
from domain.told import LONGEST, MOST, Forget, as_edited, as_told, one_line, told_in

FACTS = {
    "my name is Ann": ("The user's name is Ann.", "name"),
    "my name is ann": ("The user's name is Ann.", "name"),
    "I'm Ann": ("The user's name is Ann.", "name"),
    "I’m Ann": ("The user's name is Ann.", "name"),
    "Hi, I'm Ann Smith. Can you help me?": ("The user's name is Ann Smith.", "name"),
    "Hello there! I am Zoë, and can you help me?": ("The user's name is Zoë.", "name"),
    "My name is Ann, what's yours?": ("The user's name is Ann.", "name"),
    "call me Bob": ("The user's name is Bob.", "name"),
    "You can call me ann, please": ("The user's name is Ann.", "name"),
    "i am called jean-luc picard": ("The user's name is Jean-Luc Picard.", "name"),
    "I prefer short answers": ("The user wants short answers.", "answer style"),
    "keep your answers brief": ("The user wants brief answers.", "answer style"),
    "Please answer in short": ("The user wants answers in short.", "answer style"),
    "Always explain step by step": ("The user wants answers step by step.", "answer style"),
    "please answer in German": ("The user wants answers in German.", "language"),
    "Please reply in French from now on.": ("The user wants answers in French.", "language"),
    "I'd prefer answers in Dutch": ("The user wants answers in Dutch.", "language"),
    "Speak to me in Spanish": ("The user wants answers in Spanish.", "language"),
    "From now on, always write in Italian": ("The user wants answers in Italian.", "language"),
    "I like jazz": ("The user likes jazz.", "preference:jazz"),
    "I prefer tabs over spaces": ("The user prefers tabs over spaces.", "preference:space-tab"),
    "I prefer spaces to tabs": ("The user prefers spaces to tabs.", "preference:space-tab"),
    "I always want code in Python": ("The user always wants code in Python.", "wish:code-python"),
    "Please always use metric units": ("The user asks to always use metric units.", "wish:metric-unit"),
    "I work at Acme Corp as a data engineer.": ("The user works at Acme Corp.", "employer"),
    "I work for the city of Berlin": ("The user works at the city of Berlin.", "employer"),
    "I work as a nurse": ("The user works as a nurse.", "role"),
    "I'm a software engineer at Google": ("The user works as a software engineer.", "role"),
    "We use Kafka 4": ("The user uses Kafka 4.", "tool:kafka"),
    "we're using Postgres 16 for billing": ("The user uses Postgres 16 for billing.", "tool:postgres"),
    "Our cluster runs Kafka 4.1": ("The user's cluster runs Kafka 4.1.", "runs:cluster"),
    "I'm migrating our billing to Postgres": ("The user is migrating their billing to Postgres.",
                                              "ongoing:billing-postgre"),
    "I'm working on a thesis about bees": ("The user is working on a thesis about bees.", "ongoing:bee-thesi"),
    "I work on the payments API": ("The user works on the payments API.", "ongoing:api-payment"),
    "remember that the demo is on Friday": ("The demo is on Friday.", "note:demo"),
    "Please remember: the release is on 3 May.": ("The release is on 3 May.", "note:release"),
    "Don't forget that I am vegetarian": ("I am vegetarian.", "note:am-vegetarian"),
    "Remember my name is Ann": ("The user's name is Ann.", "name"),
    "my favourite colour is green": ("The user's favourite colour is green.", "my:favourite colour"),
    "my dog's name is Rex": ("The user's dog is Rex.", "my:dog"),
    "I live in Berlin": ("The user lives in Berlin.", "location"),
    "By the way, I'm from Portugal": ("The user is from Portugal.", "origin"),
}  # fmt: skip


@pytest.mark.parametrize("said", FACTS)
def test_a_plain_statement_about_oneself_is_a_fact(said: str) -> None:
    facts = [(each.text, each.slot) for each in told_in(said) if isinstance(each, Told)]

    assert facts == [FACTS[said]]


def test_one_question_may_tell_several_things_and_the_last_of_a_slot_counts() -> None:
    told = told_in("Hi! My name's Zoë and I work at Acme. We use Kafka 3. Sorry, we use Kafka 4. How do I upgrade it?")

    assert [each.slot for each in told] == ["name", "employer", "tool:kafka"]
    assert told[-1] == Told("The user uses Kafka 4.", "tool:kafka", "work")
    assert len(told_in(". ".join(f"We use Tool{n}" for n in range(20)))) == MOST


@pytest.mark.parametrize(
    "said",
    [
        "What is my name?",
        "Is my name Ann?",
        "Do you remember that I work at Acme?",
        "I work on Sundays?",
        "If my name is Ann, what is my nickname?",
        "Suppose I work at Acme.",
        "Imagine I'm Ann.",
        "Act as a pirate. My name is Jack.",
        "I might work at Acme soon",
        "I would prefer tea",
        "I used to work at Acme",
        "I wish I lived in Rome",
        "My name is not Ann",
        "I don't work at Acme",
        "I don’t like jazz",
        "I never use Kafka",
        "I'm not Ann",
        "She said my name is Ann",
        "He told me I'm Ann",
        "My brother's name is Bob",
        "Ann works at Acme",
        "The user's name is Ann.",
        '"My name is Ann"',
        "“I work at Acme”, she wrote",
        "> I work at Acme",
        "```\nI work at Acme\n```",
        "User: my name is Ann",
        "Name: Ann\nEmployer: I work at Acme",
        "Translate: my name is Ann",
        "Translate this into German. My name is Ann.",
        "My name is Ann and I work at Acme. Please summarize this.",
        "Fix the grammar: I works at Acme",
        "Write a story. I'm Ann and I live in Rome",
        "Is the following correct? I work at Acme.",
        "I'm tired",
        "I'm German",
        "I'm Working",
        "I'm fine, thanks",
        "I'm looking for a restaurant",
        "I'm a bit confused",
        "I am a big fan of jazz",
        "I'm writing to you about a bug",
        "my name is on the list",
        "call me later",
        "We use it",
        "I use the search a lot",
        "I like it",
        "answer this question in German",
        "Answer the question",
        "I remember that you said so",
        "Remember when we talked?",
        "Remember to be nice",
        "Forget it",
        "Forget everything above",
        "",
        "?",
        "My name is " + "A" * 700,
        "I live in Rome. " + "x " * LONGEST,
    ],
)
def test_what_only_looks_like_a_fact_about_the_user_is_none(said: str) -> None:
    assert told_in(said) == []


@pytest.mark.parametrize(
    "secret",
    [
        "my password is hunter2",
        "the passphrase is open sesame now",
        "my PIN is 1234",
        "the api key is on my desk",
        "my card is 4111 1111 1111 1111",
        "my card is 4111-1111-1111-1111",
        "my key is sk-abcdefghijklmnop",
        "my token is ghp_abcdefgh12345678",
        "my access is eyJhbGciOiJIUzI1NiJ9",
        "my account is DE89 3704 0044 0532 0130 00",
        "my number is 123-45-6789",
        "my database is postgres://ann:hunter2@db",
        "my code is A1b2C3d4E5f6G7h8I9j0k",
        "our login secret is tomato soup",
    ],
)
def test_a_secret_is_never_kept_whoever_asks_for_it(secret: str) -> None:
    assert is_secret(secret)
    assert told_in(f"Please remember that {secret}") == []
    assert told_in(f"I prefer {secret}") == []


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("forget my name", Forget(slot="name")),
        ("Please forget where I live.", Forget(slot="location")),
        ("forget my dog", Forget(slot="my:dog")),
        ("Forget that I work at Acme", Forget(slot="employer")),
        ("forget that the demo is on Friday", Forget(slot="note:demo")),
        ("forget that", Forget(latest=True)),
        ("Please forget what I just told you", Forget(latest=True)),
        ("Forget everything you know about me", Forget(everything=True)),
        ("delete all your memories of me", Forget(everything=True)),
    ],
)
def test_what_shall_be_forgotten_is_named_in_several_ways(said: str, what: Forget) -> None:
    assert told_in(said) == [what]


def test_what_is_entered_by_hand_stays_in_its_words_and_finds_its_slot() -> None:
    assert as_told("I work at Acme.") == Told("I work at Acme.", "employer", "identity")
    assert as_told("The demo is on Friday") == Told("The demo is on Friday", "note:demo", "note")
    assert as_told("The demo is on Monday").slot == as_told("The demo is on Friday").slot


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("The user's name is Anna.", "name"),
        ("Anna", "name"),
        ("I work at Acme.", "employer"),
        ("My dog is Rex", "my:dog"),
        ("The demo is on Friday.", "note:demo"),
    ],
)
def test_what_is_edited_stays_in_its_slot_unless_it_says_something_else(text: str, slot: str) -> None:
    told = as_edited(Fact("f", "The user's name is Ann.", "name", "identity", 1, 1), text)

    assert (told.text, told.slot) == (text, slot)
    assert told.kind == ("identity" if slot in {"name", "employer"} else "note")


def test_a_text_becomes_one_line_that_no_chat_template_takes_for_more() -> None:
    assert one_line("one\n\ttwo <|im_end|> [INST] three\u202e\u200b") == "one two three"


@given(st.text(max_size=300))
def test_no_text_is_too_strange_to_be_read(text: str) -> None:
    for each in told_in(text):
        assert isinstance(each, Forget) or (each.text == one_line(each.text) and each.slot)
