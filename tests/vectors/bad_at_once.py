"""Bad vectors of stages 3 and 4 at once: shares asked for with the survivors, without the word of everyone in U2."""

from dataclasses import replace
from typing import Any

from vectors.bad import DROPOUT, THREE, _case
from vectors.play import Play

from common.secagg.keys import SIGNATURE_BYTES, sign
from common.secagg.transcript import digest, pack_numbers, participants_hash
from common.secagg.wire import parts_of


def at_once_vectors(three: Play, dropout: Play) -> dict[str, dict[str, Any]]:
    """Returns file name -> vector; the truth of the first is (1, 2, 3), and each's own signature "masked"."""
    cases = {name: {"base": THREE} | case for name, case in _words(three).items()}
    task = dropout.steps["confirm"][1].task
    words = b"".join(dropout.steps["mask"][number].reply.masked for number in task.survivors)
    silent = _case("confirm", "confirm_all", "shares together with the survivors", confirm=replace(task, masked=words))
    cases["at_once_though_one_fell_silent"] = {"base": DROPOUT} | silent
    receiver = {"receiver": "participant", "participant": 1}
    return {
        f"secagg_bad_{name}.json": {"about": name.replace("_", " ")} | receiver | case for name, case in cases.items()
    }


def _words(played: Play) -> dict[str, dict[str, Any]]:
    task, state = played.steps["confirm"][1].task, played.steps["mask"][1].after
    one, two, three = parts_of(task.masked, SIGNATURE_BYTES, "masked")
    second = participants_hash("second", state.session, pack_numbers(state.second))
    fewer = participants_hash("second", state.session, pack_numbers((1, 2)))

    def birch(*bound: bytes | int) -> bytes:
        return sign(played.cast.identities[2], "masked", *bound)

    def word(text: str, *words: bytes) -> dict[str, Any]:
        return _case("confirm", "_check_masked", text, confirm=replace(task, masked=b"".join(words)))

    bad = "masked body of birch: its signature is not"
    return {
        "at_once_one_word_missing": word("masked: 128 bytes, expected 3 parts", one, two),
        "at_once_words_of_one": word(bad, one, one, one),
        "at_once_words_swapped": word(bad, one, three, two),
        "at_once_word_flipped": word(bad, one, two[:-1] + bytes([two[-1] ^ 1]), three),
        "at_once_word_about_the_body": word(bad, one, played.steps["mask"][2].reply.signature, three),
        "at_once_word_within_another_context": word(
            bad, one, birch(digest("other"), state.first_hash, second, 2), three
        ),
        "at_once_word_within_another_first": word(bad, one, birch(state.context, digest("other"), second, 2), three),
        "at_once_word_within_another_second": word(bad, one, birch(state.context, state.first_hash, fewer, 2), three),
    }
