"""Topics and records: declared once, keyed as Kafka's own clients key, and checked on the way in."""

import msgspec
import pytest

from config.settings import Settings
from domain.errors import BadRecord
from streams.records import Control, DeadLetter, Question, Turn, Wire, decode, encode
from streams.topics import Topics, partition_of

CASES: list[Wire] = [
    Question(turn_id="t", conversation_id="c", tenant="a", user="u", input="?", model="", tokens_from=3),
    Control(action="stop", conversation_id="c", tenant="a", user="u", at=1, turn_id="t"),
    Turn(turn_id="t", conversation_id="c", tenant="a", user="u", input="?", answer="!", model="m", outcome="stopped"),
    DeadLetter(topic="chat.turns.v1", partition=1, offset=2, reason="no", code="bad_record", value=b"\xff\x00"),
]


@pytest.mark.parametrize("record", CASES, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record: Wire) -> None:
    assert decode(encode(record), type(record)) == record


@pytest.mark.parametrize("record", CASES, ids=lambda record: type(record).__name__)
def test_a_newer_workers_fields_are_ignored(record: Wire) -> None:
    fields = msgspec.json.decode(encode(record)) | {"from_the_future": 1}

    assert decode(msgspec.json.encode(fields), type(record)) == record


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "without a value"),
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b'{"turn_id": 7}', r"Expected `str`, got `int` - at `$.turn_id`"),
        (b'{"turn_id": "t"}', "missing required field `conversation_id`"),
    ],
)
def test_a_record_that_cannot_be_decoded_says_which_field_and_why(value: bytes | None, said: str) -> None:
    with pytest.raises(BadRecord) as caught:
        decode(value, Question)

    assert said in str(caught.value)


def test_partitions_are_those_of_kafkas_default_partitioner() -> None:
    # Computed with the Java client: Utils.toPositive(Utils.murmur2(key)) % 8.
    assert [partition_of(key, 8) for key in ("21", "foobar", "a-little-bit-long-string")] == [
        (value & 0x7FFFFFFF) % 8 for value in (-973932308, -790332482, -985981536)
    ]


def test_all_topics_have_the_settings_partitions_prefix_and_retention() -> None:
    topics = Topics.of(Settings(partitions=3, replication=2, topic_prefix="x.", tokens_days=1))

    in_order = [topics.workers, topics.document_outcomes, *topics.metrics.values()]
    assert {topic.partitions for topic in in_order} == {1}
    assert {topic.partitions for topic in topics.all() if topic not in in_order} == {3}
    assert all(topic.compacted and topic.expires for topic in topics.metrics.values())
    assert {topic.replication for topic in topics.all()} == {2}
    assert topics.tokens.name == "x.chat.tokens.v1"
    assert topics.tokens.retention == 86_400
    assert len({topic.name for topic in topics.all()}) == len(topics.all())
