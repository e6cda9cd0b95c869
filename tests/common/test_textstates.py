"""Each distinct text is encoded once; the cache survives damage, company and a disk that cannot be written."""

import importlib.util
import logging
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common import textstates
from common.cachefolder import default_cache_dir
from common.errors import ConfigError
from common.pretrained import Pretrained, locate
from common.textstates import TextStates

WIDTH = 4
ROOT = Path(textstates.__file__).parents[1]


class Counting:
    """Stands in for a TextEncoder: states that depend on the text and, in the last bits, on the call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        self.calls.append(list(texts))
        return np.array([[len(text), max_tokens, len(self.calls), 0.1] for text in texts], dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Counting:
    encoder = Counting()
    monkeypatch.setattr(textstates, "load_text_encoder", lambda pretrained: encoder)
    return encoder


def _pretrained(fingerprint: str = "ab" * 32) -> Pretrained:
    return Pretrained("path:x", Path("x"), ("model.safetensors",), (), "cd" * 32, fingerprint, WIDTH)


def _make(folder: Path, max_tokens: int = 8, fingerprint: str = "ab" * 32) -> TextStates:
    return TextStates(_pretrained(fingerprint), max_tokens, folder)


def _file(folder: Path) -> Path:
    (path,) = folder.glob("*.sqlite3")
    return path


def test_each_distinct_text_is_encoded_once(tmp_path: Path, encoder: Counting) -> None:
    found = _make(tmp_path).states(["bb", "a", "bb", "ccc", "a"])
    assert encoder.calls == [["bb", "a", "ccc"]]
    assert found.index_N.tolist() == [0, 1, 0, 2, 1]
    assert found.index_N.dtype == np.int64
    assert found.states_TE[:, 0].tolist() == [2, 1, 3]
    assert (found.encoded, found.reused) == (3, 0)


def test_a_second_run_encodes_only_what_is_new_and_has_the_same_bits(tmp_path: Path, encoder: Counting) -> None:
    first = _make(tmp_path).states(["a", "b"])
    second = _make(tmp_path).states(["b", "new", "a"])
    assert encoder.calls == [["a", "b"], ["new"]]
    assert (second.encoded, second.reused) == (1, 2)
    np.testing.assert_array_equal(second.states_TE[[2, 0]], first.states_TE)


def test_no_texts(tmp_path: Path, encoder: Counting) -> None:
    found = _make(tmp_path).states([])
    assert found.states_TE.shape == (0, WIDTH)
    assert found.index_N.shape == (0,)
    assert encoder.calls == []


def test_another_encoder_or_length_has_a_cache_of_its_own(tmp_path: Path, encoder: Counting) -> None:
    for states in (_make(tmp_path), _make(tmp_path, max_tokens=9), _make(tmp_path, fingerprint="ef" * 32)):
        assert states.states(["a"]).encoded == 1
    assert len(list(tmp_path.glob("*.sqlite3"))) == 3


def test_texts_are_not_in_the_file(tmp_path: Path, encoder: Counting) -> None:
    _make(tmp_path).states(["a very secret headline"])
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_odd_texts_are_told_apart(tmp_path: Path, encoder: Counting) -> None:
    assert _make(tmp_path).states(["", " ", "\ud800", "?", "é", "e\u0301"]).encoded == 6


def test_chunks_are_kept_when_a_run_is_stopped(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textstates, "CHUNK", 2)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path).states(list("abcde"), stop)
    assert seen == [(2, 5), (4, 5)]
    rest = _make(tmp_path).states(list("abcde"), lambda done, total: seen.append((done, total)))
    assert (rest.encoded, rest.reused) == (1, 4)
    assert seen[2:] == [(1, 1)]


def test_progress_is_silent_when_all_is_cached(tmp_path: Path, encoder: Counting) -> None:
    _make(tmp_path).states(["a"])
    _make(tmp_path).states(["a"], lambda done, total: pytest.fail("called"))


def test_the_first_writer_wins(tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process stores a text while this one encodes it: both go on with the stored bits."""
    other = Counting()
    other.calls = [[]] * 41
    plain = encoder.encode

    def late(texts: Sequence[str], max_tokens: int) -> np.ndarray:
        rival = _make(tmp_path)
        rival._cache._encoder = other
        rival.states(["a"])
        return plain(texts, max_tokens)

    monkeypatch.setattr(encoder, "encode", late)
    assert _make(tmp_path).states(["a", "b"]).states_TE[:, 2].tolist() == [42, 1]


def _scribble(path: Path) -> None:
    path.write_bytes(b"this is no database" * 500)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_layout(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE states (a, b)")
    connection.close()


def _flip_bit(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE states SET state = zeroblob(16)")
    connection.close()


def _other_width(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE states SET state = zeroblob(12)")
    connection.close()


def _two_rows(path: Path) -> None:
    value = bytes(2 * 4 * WIDTH)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE states SET state = ?, crc = ?", (value, zlib.crc32(value)))
    connection.close()


@pytest.mark.parametrize("damage", [_scribble, _truncate, _other_layout, _flip_bit, _other_width, _two_rows])
def test_a_damaged_cache_is_set_aside_and_rebuilt(
    tmp_path: Path, encoder: Counting, caplog: pytest.LogCaptureFixture, damage
) -> None:
    texts = [f"text {number}" for number in range(200)]
    before = _make(tmp_path).states(texts)
    damage(_file(tmp_path))
    with caplog.at_level(logging.WARNING):
        after = _make(tmp_path).states(texts)
    assert after.encoded == 200
    np.testing.assert_array_equal(after.states_TE[:, 0], before.states_TE[:, 0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set aside" in caplog.text
    assert _file(tmp_path).with_name(_file(tmp_path).name + ".damaged").exists()
    assert _make(tmp_path).states(texts).reused == 200


def test_a_folder_that_cannot_be_made_means_no_cache_and_one_warning(
    tmp_path: Path, encoder: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textstates, "CHUNK", 2)
    (tmp_path / "file").touch()
    states = _make(tmp_path / "file" / "cache")
    assert states.states(list("abcde")).encoded == 5
    assert states.states(["a"]).encoded == 1
    assert caplog.text.count("cannot be used") == 1


def test_a_full_disk_means_no_cache_and_one_warning(
    tmp_path: Path, encoder: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textstates, "CHUNK", 50)
    plain = sqlite3.connect

    def small(path: Path, timeout: float) -> sqlite3.Connection:
        connection = plain(path, timeout=timeout)
        connection.execute("PRAGMA max_page_count = 5")  # SQLite then says "database or disk is full"
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    texts = [f"text {number:04}" for number in range(1000)]
    found = _make(tmp_path).states(texts)
    assert found.encoded == 1000
    assert (found.states_TE[:, 0] == 9).all()
    assert caplog.text.count("disk is full") == 1


def test_a_read_only_file_means_no_cache_and_one_warning(
    tmp_path: Path, encoder: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path).states(["a"])
    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: plain(f"file:{path}?mode=ro", uri=True))
    assert _make(tmp_path).states(["a", "b"]).states_TE[:, 0].tolist() == [1, 1]
    assert caplog.text.count("cannot be used") == 1
    assert not list(tmp_path.glob("*.damaged"))


_WORKER = """
import logging, sys
import numpy as np
from pathlib import Path
from common import textstates
from common.pretrained import Pretrained
class Encoder:
    def encode(self, texts, max_tokens):
        return np.array([[float(t), int(sys.argv[2]), 0, 0] for t in texts], dtype=np.float32)
logging.basicConfig(stream=sys.stderr)
textstates.load_text_encoder = lambda pretrained: Encoder()
textstates.CHUNK = 20
states = textstates.TextStates(Pretrained("path:x", Path("x"), (), (), "", "ab" * 32, 4), 8, Path(sys.argv[1]))
found = states.states([str(number) for number in range(400)])
np.save(sys.argv[3], found.states_TE)
"""


def test_processes_share_one_file_and_agree(tmp_path: Path) -> None:
    outputs = [tmp_path / f"{number}.npy" for number in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path / "cache"), str(number), str(output)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for number, output in enumerate(outputs)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [b""] * 4
    results = [np.load(output) for output in outputs]
    assert results[0][:, 0].tolist() == list(range(400))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_twenty_thousand_texts_are_read_in_a_second(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Pretrained("path:x", Path("x"), (), (), "", "ab" * 32, 384)
    monkeypatch.setattr(
        encoder, "encode", lambda texts, max_tokens: np.ones((len(texts), 384), dtype=np.float32), raising=True
    )
    texts = [f"title number {number}" for number in range(20_000)]
    TextStates(wide, 8, tmp_path).states(texts)
    start = time.process_time()
    assert TextStates(wide, 8, tmp_path).states(texts).reused == 20_000
    assert time.process_time() - start < 1.0


def _write_tiny_encoder(folder: Path) -> Path:
    # By path: an installed wheel carries a stray package called `tests`, which would win over this folder.
    spec = importlib.util.spec_from_file_location("tiny_encoder", Path(__file__).parents[1] / "tiny_encoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_tiny_encoder(folder)


def test_a_second_run_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = _write_tiny_encoder(tmp_path / "tiny")
    pretrained = locate(f"path:{folder}")
    first = TextStates(pretrained, 16, tmp_path / "cache").states(["the lion king", "war"])
    assert first.states_TE.shape == (2, 32)
    code = (
        "import sys; from pathlib import Path; from common.pretrained import locate;"
        "from common.textstates import TextStates;"
        "found = TextStates(locate(sys.argv[1]), 16, Path(sys.argv[2])).states(['war', 'the lion king']);"
        "sys.stdout.buffer.write(found.states_TE.tobytes());"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, f"path:{folder}", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == first.states_TE[[1, 0]].tobytes()


def test_cache_folder_comes_from_the_first_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUSHCLICK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_cache_dir("") == Path("/home/ada/.cache/hushclick")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir("") == Path("/home/ada/.cache/hushclick")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert default_cache_dir("") == Path("/var/cache/ada/hushclick")
    monkeypatch.setenv("HUSHCLICK_CACHE", "~/texts")
    assert default_cache_dir("") == Path("/home/ada/texts")
    assert default_cache_dir("/data/texts") == Path("/data/texts")


def test_no_home_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    for name in ("HUSHCLICK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="HUSHCLICK_CACHE"):
        default_cache_dir("")
