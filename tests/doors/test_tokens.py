import stat
import threading

import pytest

from ringzero.doors.tokens import Tokens
from ringzero.errors import ConflictError, HostError, InvalidValueError, NotFoundError


def test_a_token_lets_its_owner_in(tmp_path):
    tokens = Tokens(tmp_path / "serve")
    assert tokens.all() == []
    assert tokens.caller("rz_") is None
    text = tokens.create("laptop", reads=False)
    reader = tokens.create("ci", reads=True)
    assert text.startswith("rz_")
    assert len(text) > 40
    assert text != reader
    assert tokens.caller(text).name == "token laptop"
    assert not tokens.caller(text).reads
    assert tokens.caller(reader).reads
    for wrong in ("", text[:-1], text + "A", text.upper(), "\udcff", "ä"):
        assert tokens.caller(wrong) is None
    # Another process sees the same, and what it removes lets nobody in here any more.
    other = Tokens(tmp_path / "serve")
    assert [token.name for token in other.all()] == ["laptop", "ci"]
    other.remove("laptop")
    assert tokens.caller(text) is None
    assert tokens.caller(reader).name == "token ci"


def test_the_text_is_kept_nowhere(tmp_path):
    text = Tokens(tmp_path).create("laptop", reads=False)
    (path,) = tmp_path.glob("*.json")
    assert text.removeprefix("rz_") not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = Tokens(tmp_path).all()[0].to_dict()
    assert set(told) == {"name", "read_only", "created"}


def test_names(tmp_path):
    tokens = Tokens(tmp_path)
    tokens.create("a", reads=False)
    with pytest.raises(ConflictError):
        tokens.create("a", reads=True)
    with pytest.raises(InvalidValueError):
        tokens.create("a b", reads=True)
    with pytest.raises(NotFoundError):
        tokens.remove("b")


def test_a_file_that_others_could_have_written_is_not_believed(tmp_path):
    text = Tokens(tmp_path).create("a", reads=False)
    (path,) = tmp_path.glob("*.json")
    path.chmod(0o660)
    with pytest.raises(HostError, match="others can read"):
        Tokens(tmp_path).caller(text)
    path.chmod(0o600)
    path.write_text("{")
    with pytest.raises(HostError, match="does not hold tokens"):
        Tokens(tmp_path).caller(text)


def test_many_who_change_them_at_once(tmp_path):
    """Each has its own view of the file, as processes have."""

    def create(first):
        tokens = Tokens(tmp_path)
        for number in range(first, first + 10):
            tokens.create(f"t{number}", reads=False)

    threads = [threading.Thread(target=create, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in Tokens(tmp_path).all()} == {f"t{n}" for n in range(40)}
