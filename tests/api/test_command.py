"""How a command is asked for, and what comes of it; no guest is needed."""

import pytest

from ringzero.api.command import CommandResult, Invocation
from ringzero.errors import CommandError, InvalidValueError


def test_plain_words_stay_as_they_are():
    assert Invocation("echo $HOME").words() == "echo $HOME"
    assert Invocation(["ls", b"\xff"]).words() == ["ls", b"\xff"]


def test_environment_directory_and_user_wrap_the_words():
    words = Invocation("pwd", env={"A": "1 2", "B": ""}, cwd="/tmp", user="nobody").words()
    assert words[:8] == ["su", "-s", "/bin/sh", "-c", 'exec "$@"', "--", "nobody", "sh"]
    assert words[8:10] == ["sh", "-c"]
    assert words[11:] == ["/tmp", "env", "A=1 2", "B=", "sh", "-c", "pwd"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": {"A=B": "x"}}, "an environment variable cannot be called 'A=B'"),
        ({"env": {"": "x"}}, "an environment variable"),
        ({"user": "-c"}, "a user cannot be called"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(InvalidValueError, match=message):
        Invocation("true", **options).words()


def test_an_empty_command_has_no_words():
    with pytest.raises(InvalidValueError, match="an empty command"):
        Invocation([], cwd="/").words()


@pytest.mark.parametrize("data", ["text", b"text", bytearray(b"text"), memoryview(b"text")])
def test_input_is_bytes_or_text(data):
    assert Invocation("cat", input=data).data() == b"text"


def test_input_of_another_kind_is_refused():
    with pytest.raises(InvalidValueError, match="bytes or str, not int"):
        Invocation("cat", input=7).data()


def test_unknown_options_are_refused():
    with pytest.raises(TypeError):
        Invocation("true", timout=3)


def test_text_and_check():
    assert Invocation("x", text=True).result(0, b"\xe2\x82\xac\xff", b"") == CommandResult(
        "€�", "", 0
    )
    assert Invocation("x").result(3, b"out", b"").returncode == 3
    with pytest.raises(CommandError, match="status 3: no such thing") as caught:
        Invocation("x", check=True).result(3, b"out", b"first\nno such thing\n")
    assert caught.value.context == {
        "exit_code": 3,
        "stdout": b"out",
        "stderr": b"first\nno such thing\n",
    }
