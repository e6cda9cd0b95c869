"""Writes every vector file of this folder: `PYTHONPATH=tests python -m vectors.generate` in the repository's root.

The files are committed; `test_vectors.py` fails when they are not what this writes. A change of theirs is a change of
the protocol: other implementations, and rounds that are under way, do not fit any more. Where a hash, key, signature,
share or word changes it wants a new protocol name in `common/secagg/transcript.py`; where only a message has another
field, or is asked for elsewhere, a new `PROTOCOL_VERSION`. Either wants an entry in CHANGELOG.md.
"""

from vectors import transcripts
from vectors.bad import bad_vectors
from vectors.bad_at_once import at_once_vectors
from vectors.records import FOLDER, text_of


def vectors() -> dict[str, str]:
    """Returns file name -> text."""
    three, dropout = transcripts.three_clients(), transcripts.dropout()
    found = {
        "secagg_three_clients.json": transcripts.transcript(
            three, "a round of three, complete to the last byte", "hushclick test vector: three clients"
        ),
        "secagg_dropout.json": transcripts.transcript(
            dropout,
            "five participants; 3 falls silent before MASK, 5 before UNMASK",
            "hushclick test vector: dropout",
        ),
        "secagg_digest.json": transcripts.digests(),
        "secagg_shamir.json": transcripts.shares(),
        "secagg_keystream.json": transcripts.keystreams(),
        "secagg_coding.json": transcripts.codings(),
        "secagg_context.json": transcripts.contexts(),
    }
    found |= bad_vectors(three, dropout) | at_once_vectors(three, dropout)
    return {name: text_of(vector) for name, vector in found.items()}


def main() -> None:
    """Writes the files, and removes those that are no longer made."""
    written = vectors()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for path in FOLDER.glob("secagg_*.json"):
        if path.name not in written:
            path.unlink()


if __name__ == "__main__":
    main()
