"""Joins an interrupted answer to what the model says when it is asked to go on.

The text so far is given to the model as the beginning of its answer. Some servers continue it (prefill), others
begin anew; nothing in the protocol tells which. The new text does, once it has gone on for long enough.
"""


class Overlap:
    """Cuts the text so far off the new text, if the new text begins with it. Pieces may be of any size.

    While the new text is the beginning of the text so far, it is held back. When it covers all of it, the answer
    was begun anew: that much is dropped, and what follows is passed on. When it departs from it before, it is a
    continuation, and all of it is passed on. So a continuation that happens to begin with the whole text so far
    loses those words; that takes a very short text so far, and a server known to continue needs no `Overlap`.
    """

    __slots__ = ("_deciding", "_held", "_so_far")

    def __init__(self, so_far: str) -> None:
        self._so_far = so_far
        self._held = 0  # characters; what is held equals the text so far up to there
        self._deciding = True

    def push(self, text: str) -> str:
        """Take the next piece of the new text; return what may be shown now."""
        if not self._deciding:
            return text
        if self._held + len(text) < len(self._so_far) and self._so_far.startswith(text, self._held):
            self._held += len(text)
            return ""
        self._deciding = False
        missing = self._so_far[self._held :]
        if text.startswith(missing):
            return text[len(missing) :]
        return self._so_far[: self._held] + text

    def close(self) -> str:
        """Return what is still held when the model has come to its end.

        It is the exact beginning of the text so far, and then stops. An answer begun anew would have got further,
        as it did before, so this is a continuation that repeats some words. Where that is wrong, words are read
        twice; dropping them where it is right would lose the answer's last words.
        """
        held = self._so_far[: self._held] if self._deciding else ""
        self._deciding = False
        return held
