"""Places go to whoever has the fewest, then to whoever waited longest; so nobody starves."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domain.fair_queue import FairQueue

tenants = st.sampled_from("abcd")


def test_a_tenant_with_a_thousand_waiting_holds_another_up_by_one() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.push("many", f"many {number}")
    assert [queue.pop() for _ in range(3)] == ["many 0", "many 1", "many 2"]

    queue.push("one", "one")

    assert queue.pop() == "one"
    assert queue.pop() == "many 3"


def test_tenants_take_turns_at_a_single_place() -> None:
    queue: FairQueue[str] = FairQueue()
    for asked in ("a1", "a2", "a3", "b1", "b2"):
        queue.push(asked[0], asked)

    served = []
    while (item := queue.pop()) is not None:
        served.append(item)
        queue.release(item[0])

    assert served == ["a1", "b1", "a2", "b2", "a3"]


class Places(RuleBasedStateMachine):
    """The queue beside plain lists, and for each tenant since when it has been waiting without being served."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[str, list[int]] = {}
        self.since: dict[str, int] = {}
        self.places: Counter[str] = Counter()
        self.now = 0

    @rule(tenant=tenants)
    def push(self, tenant: str) -> None:
        self.now += 1
        self.queue.push(tenant, self.now)
        if not self.waiting.get(tenant):
            self.since[tenant] = self.now
        self.waiting.setdefault(tenant, []).append(self.now)

    @rule()
    def pop(self) -> None:
        self.now += 1
        due = [tenant for tenant, items in self.waiting.items() if items]
        if not due:
            assert self.queue.pop() is None
            return
        tenant = min(due, key=lambda each: (self.places[each], self.since[each]))
        assert self.queue.pop() == self.waiting[tenant].pop(0)
        self.since[tenant] = self.now
        self.places[tenant] += 1

    @precondition(lambda self: self.places.total())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(sorted(self.places.elements())))
        self.queue.release(tenant)
        self.places[tenant] -= 1

    @rule(tenant=tenants, data=st.data())
    def discard(self, tenant: str, data: st.DataObject) -> None:
        known = self.waiting.get(tenant) or [-1]
        item = data.draw(st.sampled_from(known))
        self.queue.discard(tenant, item)
        if item in self.waiting.get(tenant, ()):
            self.waiting[tenant].remove(item)

    @invariant()
    def nothing_is_kept_of_whoever_has_and_wants_nothing(self) -> None:
        assert set(self.queue._waiting) == {tenant for tenant, items in self.waiting.items() if items}
        assert set(self.queue._places) == set(+self.places)


TestPlaces = Places.TestCase
TestPlaces.settings = settings(max_examples=50, stateful_step_count=40)
