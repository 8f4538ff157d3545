"""The two oracles agree, but for what Unicorn is known to get wrong."""

import pytest

from tests.oracle.compare import comparable
from tests.oracle.fuzz import run_fuzz
from tests.oracle.programs import load_programs
from tests.oracle.unicorn_known import known_deviation

INTEGER = (
    "mov*,add,adc,sub,sbb,and,or,xor,cmp,test,inc,dec,neg,not,mul,imul,div,idiv,sh*,sa*,ro*,"
    "rc*,bt*,bs*,push*,pop*,call,ret,j*,loop*,set*,cmov*,xchg,xadd,cmpxchg*,lea,leave,enter,"
    "cmps*,scas*,lods*,stos*,cbw,cwd*,cdq*,cqo,lahf,sahf,xlatb,crc32,popcnt,aa*,da*,bound"
)
BEYOND_UNICORN = ("sse", "x87", "mmx", "fx", "misaligned", "alignment", "page_end")


@pytest.mark.peer
@pytest.mark.parametrize("seed", [1, 2])
def test_unicorn_and_the_host_agree(native, unicorn, seed):
    only = INTEGER if seed == 1 else None
    report = run_fuzz(native, unicorn, instances=4000, seed=seed, only=only, keep=10**6)
    news = [
        mismatch
        for mismatch in report.mismatches
        if known_deviation(mismatch.case, mismatch.expected, mismatch.got) is None
    ]
    assert not news, "\n\n".join(mismatch.explain() for mismatch in news[:5])
    assert report.instances.total() == 4000


@pytest.mark.peer
def test_integer_programs_agree(native, unicorn):
    programs = [p for p in load_programs() if not any(word in p.name for word in BEYOND_UNICORN)]
    cases = [program.case for program in programs]
    for program, want, have in zip(programs, native.run(cases), unicorn.run(cases), strict=True):
        assert comparable(want, have), program.name
        same = (want.vector, want.state.gpr, want.state.rip, want.memory)
        assert same == (have.vector, have.state.gpr, have.state.rip, have.memory), program.name
