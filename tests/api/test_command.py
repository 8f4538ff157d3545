"""How a command is asked for, and what comes of it; no guest is needed."""

from pathlib import PurePosixPath

import pytest

from ringzero.api.command import CommandResult, Invocation, invocation, takes_options
from ringzero.errors import CommandError, InvalidValueError


def test_plain_words_stay_as_they_are():
    assert Invocation("echo $HOME").words() == "echo $HOME"
    assert Invocation(["ls", b"\xff"]).words() == ["ls", b"\xff"]


def test_options_where_the_guest_takes_them():
    def words(command, **options):
        return Invocation(command, **options).words(takes_options=True)

    assert words("pwd", env={"A": "1 2", "B": ""}, cwd=PurePosixPath("/tmp"), user="0:44") == [
        *("--user=0:44", "--env=A=1 2", "--env=B=", "--workdir=/tmp", "--", "sh", "-c", "pwd")
    ]
    assert words(["-x", b"\xff"], user="me") == ["--user=me", "--", "-x", b"\xff"]
    assert words(["ls"]) == ["ls"]
    for wrong in ({"env": {"A=B": ""}}, {"user": "-c"}):
        with pytest.raises(InvalidValueError, match="cannot be called"):
            words("true", **wrong)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("quiet ringzero.root=/dev/vda", True),
        ("ringzero.root=share,rw", True),
        ("quiet root=/dev/vda xringzero.root=/dev/vda", False),
        ("", False),
        (None, False),
    ],
)
def test_whose_init_makes_the_root_takes_options(line, wanted):
    assert takes_options(line) is wanted


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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shell": True}, "a string is for the guest's shell"),
        ({"capture_output": True}, "always captured"),
        ({"timout": 3}, "there are input, timeout, env, cwd, user, check, text"),
    ],
)
def test_options_of_subprocess_are_told_what_they_are_here(options, told):
    with pytest.raises(TypeError, match=told):
        invocation("true", text=False, options=options)


@pytest.mark.parametrize("command", [b"ls", PurePosixPath("/bin/ls"), 5, None, ["ls", 1], {"ls"}])
def test_what_is_no_command(command):
    with pytest.raises(InvalidValueError, match="a string, or a sequence of words"):
        invocation(command, text=False, options={})


def test_a_directory_may_be_a_path():
    assert "/a/b" in invocation("ls", text=True, options={"cwd": PurePosixPath("/a/b")}).words()


def test_what_failed_is_told_as_subprocess_tells_it():
    with pytest.raises(CommandError) as caught:
        Invocation("x", check=True, text=True).result(3, b"out", b"err")
    assert (caught.value.returncode, caught.value.stdout, caught.value.stderr) == (3, "out", "err")


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
