"""The fold under writers that take a turn from each other, sleep, wake up, repeat themselves and leave holes.

`test_fold.py` has the rule itself; here the writers keep to the protocol, and the readers come when they like.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from domain.tokens import Fold, Token, next_epoch, text_of

TURN = "t"
LONGEST = 15  # words of an answer


class Writer:
    """A worker: it has claimed the turn once, and goes on from what the log showed at its claim."""

    def __init__(self, epoch: int, words: list[str], seq: int) -> None:
        self.epoch = epoch
        self.words = words
        self.seq = seq
        self.wrote: list[Token] = []


class Reader:
    """Someone who reads the log from its beginning, as far and as fast as it likes."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.at = 0
        self.pieces: list[Token] = []

    def read(self, log: list[Token], count: int) -> None:
        for token in log[self.at : self.at + count]:
            if self.fold.feed(token) is not None:
                self.pieces.append(token)
            self.at += 1


class Log(RuleBasedStateMachine):
    """A log, and beside it what the answer is by the protocol: who claimed last, and what that one may still say.

    Each writer has words of its own, so that the text tells whose pieces counted.
    """

    writers: Bundle[Writer] = Bundle("writers")
    readers: Bundle[Reader] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Token] = []
        self.owner: Writer | None = None
        self.said: list[str] = []  # the answer so far
        self.ended = False
        self.claims = 0

    @rule(target=writers, generation=st.integers(0, 3))
    def claim(self, generation: int) -> Writer:
        """Claim above all that the log has, and go on from there, as every worker does that takes a turn up."""
        here = Reader()
        here.read(self.log, len(self.log))
        writer = Writer(next_epoch(generation, here.fold.epoch), list(self.said), here.fold.next or 1)
        self.log.append(Token(TURN, writer.epoch, 0, "claim", "{}"))
        if not self.ended:
            self.owner = writer
            self.claims += 1
        return writer

    @rule(writer=writers, arrives=st.booleans(), twice=st.booleans())
    def write(self, writer: Writer, *, arrives: bool, twice: bool) -> None:
        """Write the next word, which may get lost, or be written twice by a retry."""
        if len(writer.words) == LONGEST:
            return
        word = f"{writer.epoch}:{writer.seq} "
        self.put(writer, Token(TURN, writer.epoch, writer.seq, "token", word), arrives=arrives, twice=twice)
        writer.words.append(word)
        writer.seq += 1

    @rule(writer=writers, arrives=st.booleans())
    def end(self, writer: Writer, *, arrives: bool) -> None:
        self.put(writer, Token(TURN, writer.epoch, writer.seq, "end", "{}"), arrives=arrives, twice=False)

    @rule(writer=writers, data=st.data())
    def repeat(self, writer: Writer, data: st.DataObject) -> None:
        """Write something again that was acknowledged and is thought lost."""
        if writer.wrote:
            self.log.append(data.draw(st.sampled_from(writer.wrote)))

    def put(self, writer: Writer, token: Token, *, arrives: bool, twice: bool) -> None:
        if not arrives:
            return
        self.log.extend([token] * (1 + twice))
        writer.wrote.append(token)
        # By the protocol it counts if its writer is the last that claimed, and nothing of it is missing.
        if writer is self.owner and not self.ended and token.seq == len(self.said) + 1:
            self.ended = token.kind == "end"
            if not self.ended:
                self.said.append(token.text)

    @rule(target=readers)
    def join(self) -> Reader:
        return Reader()

    @rule(reader=readers, count=st.integers(1, 10))
    def read(self, reader: Reader, count: int) -> None:
        before = list(reader.pieces)
        reader.read(self.log, count)
        assert reader.pieces[: len(before)] == before
        whole = Reader()
        whole.read(self.log, len(self.log))
        assert whole.pieces[: len(reader.pieces)] == reader.pieces

    @invariant()
    def a_reader_of_everything_has_the_answer_by_the_protocol(self) -> None:
        whole = Reader()
        whole.read(self.log, len(self.log))
        assert text_of(whole.pieces) == "".join(self.said)
        assert [piece.seq for piece in whole.pieces] == list(range(len(whole.pieces)))
        assert (whole.fold.ended, whole.fold.claims) == (self.ended, self.claims)


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=60, stateful_step_count=50)
