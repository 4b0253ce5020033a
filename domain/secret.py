"""Tells what looks like a secret: such a text is never remembered, whoever asks for it."""

import re
from typing import Final

# What gives access, by its name or its looks: keys of common services, PEM, JWT, SSN, IBAN, a URL with a password.
SECRET: Final = re.compile(
    r"""\b(?: pass\ ?(?:words?|phrase|codes?) | pins? | secrets? | credentials? | private\ keys? | seed\ phrase
            | otp | 2fa | (?:access|api|auth|bearer|secret)[ -]?(?:key|token)s? | tokens?\ (?:is|are)
            | credit\ ?card | card\ number | cvv | cvc | iban | ssn | social\ security )\b
      | -----BEGIN
      | \b(?:sk|pk|rk)[-_][\w-]{8,} | \b(?:gh[opsu]|xox[abp]|glpat|hf)[-_]\w{8,} | \bAKIA\w{8,}
      | \beyJ[\w-]{10,}
      | \b\d{3}-\d{2}-\d{4}\b | \b[A-Z]{2}\d{2}(?:\ ?[A-Z0-9]{4}){3,} | \w+://\S+:\S+@""",
    re.IGNORECASE | re.VERBOSE,
)
CARD: Final = re.compile(r"(?:\d[ -]?){12,19}")
RANDOM: Final = re.compile(r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+/=-]{20,}")


def is_secret(text: str) -> bool:
    """Return whether a text has, or speaks of, what gives access to something."""
    return any(pattern.search(text) for pattern in (SECRET, CARD, RANDOM))
