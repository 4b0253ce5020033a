"""Tells Kafka that a member of a consumer group is dead, instead of waiting until its session times out.

LeaveGroup carries a group and a member id and nothing else, so any client may send it for any member. A wrong
eviction costs one rebalance: that nothing is answered twice rests on epochs in the log, not on who is a member.
Protocol: https://kafka.apache.org/protocol (LeaveGroup, DescribeGroups).
"""

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from domain.errors import LogUnavailable

log = structlog.get_logger(__name__)


async def evict(bootstrap: str, group: str, client_id: str) -> int:
    """Evict every member that joined under this client id; return how many there were. Raises `LogUnavailable`."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        gone = [member for member in await _members(admin, group) if member.startswith(f"{client_id}-")]
        if gone:
            coordinator = await admin.find_coordinator(group)
            for member in gone:
                await admin._send_request(LeaveGroupRequest(group, member), coordinator)
            log.info("dead members evicted", members=len(gone), client_id=client_id)
        return len(gone)
    except GroupCoordinatorNotAvailableError:
        return 0  # a Kafka that has not had any group yet
    except KafkaError as error:
        raise LogUnavailable(f"Kafka did not say who is in group {group}: {error!r}") from error
    finally:
        await admin.close()


async def _members(admin: AIOKafkaAdminClient, group: str) -> list[str]:
    """Return the ids of a group's members; Kafka makes them of the client id, a dash and a uuid."""
    described = await admin.describe_consumer_groups([group])
    # Per answer: error code, group, state, protocol type, protocol, members; a member begins with its id.
    return [str(member[0]) for answer in described for found in answer.groups for member in found[5]]
