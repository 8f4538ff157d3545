"""Vmfiles: what they say, and every fault at its place."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.faults import FaultError
from ringzero.build.vmfile.grammar import READERS
from ringzero.build.vmfile.instructions import Command, Instruction
from ringzero.build.vmfile.parse import parse
from ringzero.build.vmfile.words import Word, expand, split
from ringzero.errors import ConfigError
from ringzero.units import GIB, MIB


def step(text: str, at: int = 0) -> Instruction:
    """Return an instruction behind a FROM."""
    return parse("FROM micro\n" + text).stages[-1].steps[at]


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.faults


def texts(words: tuple[Word, ...]) -> list[str]:
    return [word.text for word in words]


def test_all_that_a_file_says_is_read():
    file = parse(
        """# syntax=anything
# escape=\\

ARG VERSION=12
FROM debian:${VERSION} AS build
# a comment
RUN apt-get update && \\
    # in between
    apt-get install -y hello
COPY --chown=1:2 --chmod=0755 a b /c/
FROM scratch
COPY --from=build /usr/bin/hello /hello
ENTRYPOINT ["/hello"]
"""
    )
    assert [stage.name for stage in file.stages] == ["build", ""]
    assert file.arguments[0].names[0][0] == "VERSION"
    run, copy = file.stages[0].steps
    assert isinstance(run, kinds.Run)
    assert run.command.text.split() == [
        "apt-get",
        "update",
        "&&",
        "apt-get",
        "install",
        "-y",
        "hello",
    ]
    assert isinstance(copy, kinds.Copy)
    assert texts(copy.sources) == ["a", "b"]
    assert (copy.target.text, copy.owner and copy.owner.text, copy.mode and copy.mode.text) == (
        "/c/", "1:2", "0755",
    )  # fmt: skip
    assert file.stage("build") == 0 == file.stage("0")
    assert file.stage("9") is None
    assert file.stage("other") is None


@pytest.mark.parametrize(
    ("text", "words", "shell"),
    [
        ('RUN ["a", "b c"]', ("a", "b c"), ""),
        ("RUN [ -f x ] && y", (), "[ -f x ] && y"),
        ("RUN echo it's", (), "echo it's"),
        ("run Echo", (), "Echo"),
        ("RUN   a   b  ", (), "a   b"),
    ],
)
def test_a_command_is_an_array_or_the_shells(text, words, shell):
    found = step(text)
    assert isinstance(found, kinds.Run)
    assert (found.command.words, found.command.text) == (words, shell)


def test_here_documents():
    run = step("RUN <<EOF\necho a\necho $b\nEOF\nRUN x")
    assert isinstance(run, kinds.Run)
    assert run.command.text == "<<EOF"
    assert run.command.documents[0].content == "echo a\necho $b\n"
    assert run.command.documents[0].expands
    copy = step("COPY <<-'one' <<two /to/\n\ta\n\tone\n b\ntwo\n")
    assert isinstance(copy, kinds.Copy)
    assert texts(copy.sources) == ["one", "two"]
    assert [(d.content, d.expands) for d in copy.documents] == [("a\n", False), (" b\n", True)]
    quoted = step("RUN echo '<<EOF' \"<<EOF\" <<<EOF")
    assert isinstance(quoted, kinds.Run)
    assert not quoted.command.documents


def test_a_backtick_escapes_where_the_file_says_so():
    run = parse("# escape=`\nFROM micro\nRUN a `\n  b\\\nRUN c").stages[0].steps[0]
    assert isinstance(run, kinds.Run)
    assert run.command.text == "a   b\\"


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('ENV a=1 b="2 3" c=x\\ y', [("a", "1"), ("b", '"2 3"'), ("c", "x\\ y")]),
        ("ENV a some  more", [("a", "some  more")]),
        ("ENV a b=c", [("a", "b=c")]),
        ("LABEL org.x.y=z", [("org.x.y", "z")]),
        ("ENV a=", [("a", "")]),
    ],
)
def test_pairs(text, pairs):
    found = step(text)
    assert isinstance(found, kinds.Pairs)
    assert [(key.text, value.text) for key, value in found.pairs] == pairs


def test_what_a_machine_has():
    memory, cpus, disk, service, ready, keep = (
        parse(
            """FROM micro
MEMORY 2G
CPUS 4
DISK 512M /var/lib/data
SERVICE --restart=always --after=net,db web python3 -m http.server
READY --timeout=1m30s tcp:8000
SNAPSHOT
"""
        )
        .stages[0]
        .steps
    )
    assert isinstance(memory, kinds.Memory)
    assert isinstance(cpus, kinds.Cpus)
    assert isinstance(disk, kinds.DataDisk)
    assert isinstance(service, kinds.Service)
    assert isinstance(ready, kinds.Ready)
    assert isinstance(keep, kinds.KeepMemory)
    assert (memory.size, cpus.count) == (2 * GIB, 4)
    assert (disk.size, disk.path.text) == (512 * MIB, "/var/lib/data")
    assert (service.name, service.after, service.restart) == ("web", ("net", "db"), "always")
    assert service.command.text == "python3 -m http.server"
    assert (ready.port, ready.timeout) == (8000, 90)


def test_probes():
    health = step("HEALTHCHECK --interval=500ms --retries=5 CMD curl -f http://x")
    assert isinstance(health, kinds.Healthcheck)
    assert (health.interval, health.retries) == (0.5, 5)
    assert health.command == Command(text="curl -f http://x")
    none = step("HEALTHCHECK NONE")
    assert isinstance(none, kinds.Healthcheck)
    assert none.command is None
    url = step("READY http://localhost:80/ready")
    assert isinstance(url, kinds.Ready)
    assert url.url == "http://localhost:80/ready"


def test_mounts():
    run = step(
        "RUN --mount=type=cache,target=/c --mount=type=secret,id=key,required"
        " --mount=from=build,src=/a,dst=/b --network=none make"
    )
    assert isinstance(run, kinds.Run)
    cache, secret, bind = run.mounts
    assert (cache.name, cache.read_only) == ("/c", False)
    assert (secret.name, secret.target, secret.required) == ("key", "/run/secrets/key", True)
    assert (bind.stage, bind.source, bind.target, bind.read_only) == ("build", "/a", "/b", True)
    assert run.network == "none"


def test_all_faults_are_told_at_once_and_where():
    found = faults(
        "FROM micro\nRUNN echo\nCOPY a\nENV\n  EXPOSE --x=1 80\nRUN --mount=type=cach,target=/x y\n"
        "SHELL sh\nFROM micro AS a\nFROM micro AS a\nCOPY --from=a x y\nMEMORY lots\n"
    )
    heads = [re.match(r"Vmfile:(\d+):(\d+): (.*)", fault) for fault in found]
    assert all(heads)
    assert [(int(h[1]), int(h[2])) for h in heads if h] == [
        (2, 1), (3, 6), (4, 3), (5, 10), (6, 13), (7, 7), (9, 15), (10, 13), (11, 8),
    ]  # fmt: skip
    assert "did you mean RUN?" in found[0]
    assert found[0].splitlines()[1:] == ["    RUNN echo", "    ^^^^"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no FROM"),
        ("RUN x", "before the first FROM"),
        ("FROM a b", "FROM IMAGE [AS NAME]"),
        ("FROM a AS 1", "a stage's name"),
        ("FROM micro\nRUN <<EOF\nx", "never ends"),
        ('FROM micro\nENV a="b', "never closed"),
        ("FROM micro\nENV a=${b", "never closed"),
        ("FROM micro\nENV a=${b:=c}", "behind a variable"),
        ("FROM micro\nENV a=${}", "no name"),
        ("FROM micro\nCOPY --from=0 a b", "no stage 0"),
        ("FROM micro\nCOPY --fom=0 a b", "did you mean --from?"),
        ("FROM micro\nUSER", "one user"),
        ("FROM micro\nCPUS 0", "from 1 to"),
        ("FROM micro\nHEALTHCHECK --interval=x CMD y", "no time"),
        ("FROM micro\nONBUILD RUN x", "ONBUILD"),
        ("# escape=x\nFROM micro", "escape is"),
        ("# escape=`\n# escape=`\nFROM micro", "second directive"),
        ("FROM micro\nREADY what", "tcp:PORT"),
        ("FROM micro\nSNAPSHOT now", "nothing stands behind"),
        ("a\0", "no Vmfile"),
    ],
)
def test_a_fault_says_what_is_wrong(text, says):
    assert says in "\n".join(faults(text))


VALUES = {"a": "one", "empty": "", "path": "/usr/lib/x.tar.gz"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$a", "one"),
        ("${a}b", "oneb"),
        ("$b", ""),
        ("${b:-x$a}", "xone"),
        ("${empty:-x}", "x"),
        ("${empty-x}", ""),
        ("${a:+yes}", "yes"),
        ("${b+yes}", ""),
        ("${empty+yes}", "yes"),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ('"$a b"', "one b"),
        ('"\\x\\""', '\\x"'),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("$-", "$-"),
        ("${path#*/}", "usr/lib/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/lib/x.tar"),
        ("${path%%.*}", "/usr/lib/x"),
        ("${path/lib/share}", "/usr/share/x.tar.gz"),
        ("${path//\\//_}", "_usr_lib_x.tar.gz"),
    ],
)
def test_variables(text, value):
    assert expand(Word(text, 0), VALUES.get, "\\") == value


def test_a_variable_that_must_be_there():
    with pytest.raises(FaultError, match="b: give it"):
        expand(Word("${b:?give it}", 0), VALUES.get, "\\")


@given(st.text(alphabet="ab \t\"'\\$", max_size=20))
def test_words_are_what_they_were_and_in_order(text):
    try:
        words = split(text, "\\")
    except FaultError:
        return
    assert [text[word.at : word.at + len(word.text)] for word in words] == texts(tuple(words))
    left = "".join(text.split())
    assert "".join("".join(word.text.split()) for word in words) == left


@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(READERS)),
            st.text(alphabet="a1=,:./-$'\"{}[]<>\\#` \n\t", max_size=12),
        ),
        max_size=8,
    )
)
def test_hostile_text_is_read_or_refused(pieces):
    try:
        parse("FROM micro\n" + " ".join(pieces))
    except ConfigError as fault:
        assert all(re.match(r"Vmfile:\d+:\d+: ", text) for text in fault.faults[:20])
