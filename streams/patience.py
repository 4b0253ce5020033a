"""Which failures pass by themselves: what they stop is tried again for ever, and never set aside.

A record is set aside when its own content makes it fail. Where Kafka, the disk or the group is the cause, the same
record works as soon as that is well again; to set it aside would drop a turn from its conversation for an outage.
"""

from typing import Final

from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from confluent_kafka import KafkaException
from faust.exceptions import NotReady, ProducerSendError

from domain.errors import Retriable

MAX_ATTEMPTS: Final = 5  # of a handler that fails for a reason nobody foresaw

# Ours; sockets, time-outs and disks; the Kafka clients; and a Faust whose parts are being started or stopped.
PASSING: Final = (Retriable, OSError, KafkaError, KafkaException, NotReady, ProducerSendError)


def may_pass(error: Exception) -> bool:
    """Return whether the same call may work later, whatever it was called with."""
    return isinstance(error, PASSING) and not isinstance(error, MessageSizeTooLargeError)
