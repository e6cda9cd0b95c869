"""An answer that refuses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """What a reply says in the place of an answer; it holds no data of the partner's.

    Attributes:
        code: of `common.message_types`.
        text: for the server's log.
    """

    code: int
    text: str
