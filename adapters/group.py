"""Tells Kafka that a member of a consumer group is dead, instead of waiting until its session times out.

LeaveGroup carries a group and a member id and nothing else, so any client may send it for any member. A wrong
eviction costs one rebalance: that nothing is answered twice rests on epochs in the log, not on who is a member.
Protocol: https://kafka.apache.org/protocol (LeaveGroup, DescribeGroups).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from socket import gethostname
from time import monotonic
from typing import Final, TypeVar

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import LeaveGroupRequest

from domain.errors import LogUnavailable

log = structlog.get_logger(__name__)

# How long an eviction is worth trying: soon after, the session of the dead member times out by itself.
PATIENCE_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 0.1
# A broker that is frozen rather than dead keeps its connections, so that only a time limit tells.
ASK_SECONDS: Final = 1.0
# aiokafka asks for the brokers this often, and so keeps a connection open that an eviction finds ready.
REFRESH_SECONDS: Final = 30.0

T = TypeVar("T")


def client_id(group: str, port: int) -> str:
    """Return the name under which the worker of this host and port is known to Kafka."""
    return f"{group}-{gethostname()}-{port}"


async def evict(bootstrap: str, group: str, client: str) -> int:
    """Evict every member that joined under this client id; return how many there were. Raises `LogUnavailable`."""
    async with aclosing(Members(bootstrap, group)) as members:
        return await members.evict_client(client)


class Members:
    """Who is in a group, asked on a connection that is opened when it is first needed, and then kept."""

    def __init__(self, bootstrap: str, group: str) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._admin: AIOKafkaAdminClient | None = None
        self._coordinator = -1
        self._connecting = asyncio.Lock()

    async def of(self, client: str, *, patience: float = PATIENCE_SECONDS) -> list[str]:
        """Return the ids of the members that joined under a client id. Raises `LogUnavailable`."""

        async def describe(admin: AIOKafkaAdminClient) -> list[str]:
            answers = await admin.describe_consumer_groups([self._group], self._coordinator)
            (group,) = answers[0].to_object()["groups"]
            if group["error_code"]:
                raise for_code(group["error_code"])
            return [member["member_id"] for member in group["members"] if member["client_id"] == client]

        return await self._ask(describe, patience)

    async def evict(self, member: str) -> bool:
        """Evict a member by its id; return whether it was one. Raises `LogUnavailable`."""

        async def leave(admin: AIOKafkaAdminClient) -> bool:
            answer = await admin._send_request(LeaveGroupRequest(self._group, member), self._coordinator)
            if answer.error_code == UnknownMemberIdError.errno:
                return False
            if answer.error_code:
                raise for_code(answer.error_code)
            return True

        return await self._ask(leave, PATIENCE_SECONDS)

    async def evict_client(self, client: str) -> int:
        """Evict every member that joined under a client id; return how many there were. Raises `LogUnavailable`."""
        evicted = [member for member in await self.of(client) if await self.evict(member)]
        if evicted:
            log.info("dead members evicted", members=len(evicted), client_id=client)
        return len(evicted)

    async def aclose(self) -> None:
        """Close the connection. What is asked afterwards opens it again."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()

    async def _ask(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]], patience: float) -> T:
        """Ask the coordinator, and while the answer is an error, whoever is the coordinator by then."""
        deadline = monotonic() + patience
        while True:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    return await ask(await self._connected())
            except (KafkaError, TimeoutError, OSError) as error:
                await self.aclose()
                if monotonic() >= deadline:
                    raise LogUnavailable(f"Kafka did not say who is in group {self._group}: {error!r}") from error
            await asyncio.sleep(RETRY_SECONDS)

    async def _connected(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._admin is None:
                self._admin = await self._connect()
            return self._admin

    async def _connect(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self._bootstrap,
            request_timeout_ms=int(ASK_SECONDS * 1000),
            metadata_max_age_ms=int(REFRESH_SECONDS * 1000),
        )
        try:
            await admin.start()
            self._coordinator = await admin.find_coordinator(self._group)
        except BaseException:
            await admin.close()
            raise
        return admin
