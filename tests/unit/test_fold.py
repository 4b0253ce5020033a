"""The fold is the promise: whatever stands in the log, all readers agree, and nothing is lost, doubled or undone."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from domain.tokens import Fold, Kind, Token, next_epoch, text_of

TURN = "t"
LONGEST = 12


kinds: st.SearchStrategy[Kind] = st.sampled_from(["claim", "token", "token", "token", "token", "tool", "end"])


@st.composite
def logs(draw: st.DrawFn) -> list[Token]:
    """Draw records of which about half make sense where they stand; the others are late, early, or of a zombie."""
    log: list[Token] = []
    epoch = -1
    for _ in range(draw(st.integers(0, 20))):
        kind = draw(kinds)
        by = max(0, epoch + draw(st.sampled_from([-2, -1, 0, 0, 0, 1])))
        if kind == "claim":
            by = max(0, epoch + draw(st.integers(-1, 2)))
            epoch = max(epoch, by)
        # A zombie has read the log too, and so often has the right number: only its epoch gives it away.
        number = 0 if kind == "claim" else max(0, len(model(log)) + draw(st.sampled_from([-1, 0, 0, 0, 1])))
        log.append(Token(TURN, by, number, kind, draw(st.sampled_from("abc"))))
    return log


def fold(log: Sequence[Token]) -> tuple[Fold, list[Token]]:
    state = Fold()
    return state, [token for token in log if state.feed(token) is not None]


def model(log: Sequence[Token]) -> list[Token]:
    """The rule said another way, without state: look back over the whole log at each record."""
    counted: list[Token] = []
    for at, token in enumerate(log):
        claimed = [earlier.epoch for earlier in log[:at] if earlier.kind == "claim"]
        owner = max(claimed, default=-1)
        if any(piece.kind == "end" for piece in counted):
            break
        if token.kind == "claim":
            if not counted and token.epoch > owner:
                counted.append(token)
        elif claimed and token.epoch == owner and token.seq == len(counted):
            counted.append(token)
    return counted


@given(logs())
def test_the_fold_is_the_rule(log: list[Token]) -> None:
    assert fold(log)[1] == model(log)


@given(logs())
def test_pieces_are_numbered_without_gaps(log: list[Token]) -> None:
    state, pieces = fold(log)

    assert [piece.seq for piece in pieces] == list(range(len(pieces)))
    assert state.next == len(pieces)


@given(logs(), st.data())
def test_a_reader_that_is_behind_has_the_beginning_of_the_same_text(log: list[Token], data: st.DataObject) -> None:
    behind = data.draw(st.integers(0, len(log)))

    _, early = fold(log[:behind])
    _, late = fold(log)

    assert late[: len(early)] == early


@given(logs())
def test_nothing_counts_after_the_end(log: list[Token]) -> None:
    state, pieces = fold(log)

    assert "end" not in [piece.kind for piece in pieces[:-1]]
    assert state.ended == bool(pieces and pieces[-1].kind == "end")


@given(logs())
def test_every_record_is_a_piece_a_claim_or_dropped(log: list[Token]) -> None:
    state, pieces = fold(log)
    first_claim = 1 if pieces else 0

    assert len(pieces) - first_claim + state.claims + state.dropped == len(log)


@given(logs())
def test_a_turn_is_taken_up_by_each_claim_that_is_higher_than_all_before(log: list[Token]) -> None:
    state = Fold()
    epochs: list[int] = []
    for token in log:
        if token.kind == "claim" and not state.ended and token.epoch > max(epochs, default=-1):
            epochs.append(token.epoch)
        state.feed(token)

    assert state.claims == len(epochs)
    assert state.epoch == max(epochs, default=-1)


@given(logs(), st.data())
def test_a_record_that_is_written_twice_counts_once(log: list[Token], data: st.DataObject) -> None:
    state, again = Fold(), list[Token]()
    repeatable: list[Token] = []
    for token in log:
        dropped = state.dropped
        state.feed(token)
        again.append(token)
        if state.dropped == dropped:
            repeatable.append(token)
        if repeatable:
            again += data.draw(st.lists(st.sampled_from(repeatable), max_size=2))

    assert fold(again)[1] == fold(log)[1]


class Worker:
    """Someone who writes the one right answer, from what the log showed when its claim was in it."""

    def __init__(self, epoch: int, log: list[Token]) -> None:
        self.epoch = epoch
        self.log = log
        log.append(Token(TURN, epoch, 0, "claim", "{}"))
        self.seq = fold(log)[0].next

    def write(self, *, arrives: bool) -> None:
        if 0 < self.seq <= LONGEST + 1:
            ends = self.seq == LONGEST + 1
            token = Token(TURN, self.epoch, self.seq, "end" if ends else "token", "" if ends else f"w{self.seq} ")
            if arrives:
                self.log.append(token)
            self.seq += 1


steps = st.lists(
    st.tuples(st.sampled_from(["claim", "write", "write", "write", "lose"]), st.integers(0, 5)), max_size=80
)


@given(steps)
def test_zombies_losses_and_takeovers_never_change_the_text(script: list[tuple[str, int]]) -> None:
    """Workers take the turn from each other and go on writing as if they had not; some of it gets lost."""
    log: list[Token] = []
    workers = [Worker(0, log)]
    for step, who in script:
        if step == "claim":
            workers.append(Worker(next_epoch(0, max(worker.epoch for worker in workers)), log))
        else:
            workers[who % len(workers)].write(arrives=step == "write")

    _, pieces = fold(log)

    right = "".join(f"w{seq} " for seq in range(1, LONGEST + 1))
    assert right.startswith(text_of(pieces))
    assert [piece.seq for piece in pieces] == list(range(len(pieces)))


@given(steps)
def test_whoever_claims_last_can_always_finish(script: list[tuple[str, int]]) -> None:
    log: list[Token] = []
    workers = [Worker(0, log)]
    for step, who in script:
        if step == "claim":
            workers.append(Worker(len(workers), log))
        else:
            workers[who % len(workers)].write(arrives=step == "write")

    last = Worker(len(workers), log)
    for _ in range(LONGEST + 1):
        last.write(arrives=True)

    state, pieces = fold(log)
    assert state.ended
    assert text_of(pieces) == "".join(f"w{seq} " for seq in range(1, LONGEST + 1))


@given(st.integers(0, 1 << 20), st.integers(-1, 1 << 40))
def test_a_claim_outranks_everything_seen_and_every_older_generation(generation: int, highest: int) -> None:
    epoch = next_epoch(generation, highest)

    assert epoch > highest
    assert epoch >= generation << 16
