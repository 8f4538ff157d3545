"""What the stub answers, over a scripted engine: a debugger's session byte by byte."""

import queue
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.engine.exits import DebugStop, Kicked
from ringzero.errors import ConflictError, EngineError
from ringzero.isa.x86.state import flat_segment
from ringzero.records import replace
from ringzero.vm.exit import ExitReason
from ringzero.vm.gdb.listener import MachineTarget
from ringzero.vm.gdb.packets import Decoder, encode
from ringzero.vm.gdb.stub import Stub
from tests.vm.test_runloop import END, POWER_OFF, machine


class Debugger:
    """The debugger's side of a stub."""

    def __init__(self, vm):
        self.said = queue.Queue()
        self._decoder = Decoder()
        self.stub = Stub(MachineTarget(vm), self._hear)

    def _hear(self, data):
        for packet in self._decoder.feed(data):
            self.said.put(packet)

    def answer(self):
        packet = self.said.get(timeout=END)
        while packet in (b"+", b"-"):
            packet = self.said.get(timeout=END)
        return packet.removeprefix(b"$")

    def ask(self, text):
        self.stub.feed(encode(text if isinstance(text, bytes) else text.encode()))
        return self.answer()


@pytest.fixture
def held():
    """A machine that a debugger has before its first instruction."""

    def make(*script, **fields):
        vm, engine = machine(*script, **fields)
        vm.hand_over = lambda: None
        vm.start()
        made.append(vm)
        return vm, Debugger(vm), engine

    made = []
    yield make
    for vm in made:
        vm.stop()


def test_questions(held):
    _, gdb, _ = held(POWER_OFF, cpus=2)
    assert b"qXfer:features:read+" in gdb.ask("qSupported:swbreak+")
    assert gdb.ask("?") == b"T05thread:1;"
    assert gdb.ask("qfThreadInfo") == b"m1,2" and gdb.ask("qsThreadInfo") == b"l"
    assert bytes.fromhex(gdb.ask("qThreadExtraInfo,2").decode()) == b"vCPU 1"
    assert gdb.ask("T2") == b"OK" and gdb.ask("T3") == b"E01"
    assert gdb.ask("Hg2") == b"OK" and gdb.ask("qC") == b"QC2"
    assert gdb.ask("vCont?") == b"vCont;c;C;s;S"
    assert gdb.ask("vMustReplyEmpty") == gdb.ask("QTinit") == gdb.ask("Z3,0,1") == b""
    whole, part = b"", b"m"
    while part[:1] == b"m":
        part = gdb.ask(f"qXfer:features:read:target.xml:{len(whole):x},100")
        whole += part[1:]
    assert whole.endswith(b"</target>") and b"org.gnu.gdb.i386.core" in whole


def test_registers_and_memory(held):
    vm, gdb, _ = held(POWER_OFF)
    vm.memory[0x1000:0x1004] = b"\x01\x02\x03\x04"
    assert gdb.ask("m1000,4") == b"01020304"
    assert gdb.ask("M1002,2:aabb") == b"OK" and vm.memory[0x1002:0x1004] == b"\xaa\xbb"
    assert gdb.ask(b"X1000,3:#$}") == b"OK" and vm.memory[0x1000:0x1003] == b"#$}"
    assert gdb.ask("P0=efbeadde00000000") == b"OK"
    assert vm.cpus[0].registers.rax == 0xDEADBEEF
    assert gdb.ask("p0") == b"efbeadde00000000"
    assert gdb.ask("g").startswith(b"efbeadde00000000")
    assert gdb.ask("G" + gdb.ask("g").decode()) == b"OK"
    # Beyond memory: what is there, then an error.
    top = vm.memory.regions[-1][0] + vm.memory.regions[-1][1]
    assert len(gdb.ask(f"m{top - 16:x},20")) == 32
    assert gdb.ask(f"m{top:x},20") == b"E14" and gdb.ask(f"M{top:x},1:00") == b"E14"


@pytest.mark.parametrize(
    "packet",
    ["m", "mzz,4", "m0", "p999", "pzz", "P0=00", "G00", "M0,4:00", "Hg99", "vCont;x", "Z0",
     "Z0,zz,1", "qThreadExtraInfo,zz", "qXfer:features:read:target.xml:zz",
     "qRcmd,zz", "X0,5:a", "Z2,0,0"],
)  # fmt: skip
def test_bad_packets_are_errors(held, packet):
    _, gdb, _ = held(POWER_OFF)
    assert gdb.ask(packet)[:1] == b"E"
    assert gdb.ask("?") == b"T05thread:1;"


def test_a_breakpoint_and_the_end(held):
    vm, gdb, engine = held(DebugStop(0x2000), POWER_OFF)
    assert gdb.ask("Z0,2000,1") == b"OK"
    assert engine.vm.vcpus[0].breakpoints == (0x2000,)
    assert gdb.ask("vCont;c") == b"T05thread:1;swbreak:;"
    assert not vm.running
    assert gdb.ask("z0,2000,1") == b"OK" and engine.vm.vcpus[0].breakpoints == ()
    assert gdb.ask("c") == b"W00"
    assert vm.wait(END).reason is ExitReason.POWEROFF


def test_an_interrupt(held):
    vm, gdb, _ = held(*[lambda vcpu: time.sleep(0.001) or Kicked()] * 100_000)
    # Nothing but an interrupt is heard while the machine runs.
    gdb.stub.feed(encode(b"vCont;c"))
    gdb.stub.feed(encode(b"g"))
    gdb.stub.feed(b"\x03")
    assert gdb.answer() == b"T02thread:1;" and not vm.running
    assert len(gdb.ask("g")) > 200


def test_a_step_is_of_one_vcpu(held):
    vm, gdb, _ = held(DebugStop(0x2001), POWER_OFF, others={1: [POWER_OFF]}, cpus=2)
    assert gdb.ask("vCont;s:1;c") == b"T05thread:1;"
    assert not vm.running and vm.wait(0) is None


def test_two_that_stop_at_once_are_told_one_after_the_other(held):
    vm, gdb, _ = held(DebugStop(0x2000), POWER_OFF)
    assert gdb.ask("Z0,2000,1") == b"OK"
    assert gdb.ask("c") == b"T05thread:1;swbreak:;"
    cpu = vm.cpus[0]
    cpu.state = replace(cpu.state, rip=0x2000, cs=flat_segment(8, code=True))
    with vm.control.changed:
        vm.debugger._stops.append((cpu, 0x2000))
    assert gdb.ask("c") == b"T05thread:1;swbreak:;" and vm.wait(0) is None
    assert gdb.ask("c") == b"W00"


def test_a_change_of_memory(held):
    def write(vcpu):
        vm.memory[0x3004] = 9
        return DebugStop(0x2001)

    vm, gdb, engine = held(DebugStop(0x2000), write, POWER_OFF)
    steps = []
    engine.vm.vcpus[0].debug = lambda step, addresses: steps.append(step)
    assert gdb.ask("Z2,3000,8") == b"OK" and steps[-1] is True
    assert gdb.ask("c") == b"T05thread:1;watch:3000;"
    assert gdb.ask("z2,3000,8") == b"OK" and steps[-1] is False
    assert gdb.ask("Z2,3000,100000") == b"E22"
    assert gdb.ask("c") == b"W00"


def test_more_breakpoints_than_there_are_is_told(held):
    vm, gdb, engine = held(POWER_OFF)

    def four(step, addresses):
        if len(addresses) > 4:
            raise EngineError("too many breakpoints")

    engine.vm.vcpus[0].debug = four
    assert all(gdb.ask(f"Z1,{n:x}000,1") == b"OK" for n in range(1, 5))
    assert gdb.ask("Z1,9000,1") == b"E.too many breakpoints"
    assert gdb.ask("z1,1000,1") == b"OK" and gdb.ask("Z1,9000,1") == b"OK"
    # What was refused is not left behind.
    assert gdb.ask("Z1,a000,1") == b"E.too many breakpoints" and gdb.ask("D") == b"OK"
    assert not vm.debugger.waits and vm.wait(END).reason is ExitReason.POWEROFF


def test_a_vcpu_on_a_breakpoint_leaves_no_room_for_a_fifth(held):
    vm, gdb, _ = held(DebugStop(0x1000), DebugStop(0x1001), POWER_OFF)
    assert all(gdb.ask(f"Z1,{n:x}000,1") == b"OK" for n in range(1, 5))
    assert gdb.ask("c") == b"T05thread:1;hwbreak:;"
    assert gdb.ask("Z1,9000,1") == b"E.too many breakpoints"
    assert gdb.ask("vCont;s:1") == b"T05thread:1;" and vm.wait(0) is None


def test_a_debugger_that_disappears_while_the_machine_runs_leaves_the_next_one_its_stops(held):
    vm, gdb, _ = held(*[lambda vcpu: time.sleep(0.001) or Kicked()] * 100_000)
    gdb.stub.feed(encode(b"c"))
    gdb.stub.close()
    assert vm.running and not vm.debugger.taken
    second = Debugger(vm)
    second.stub.feed(encode(b"c"))
    second.stub.feed(b"\x03")
    assert second.answer() == b"T02thread:1;"


def test_detaching_lets_the_machine_run(held):
    vm, gdb, _ = held(POWER_OFF)
    assert gdb.ask("Z0,2000,1") == b"OK" and gdb.ask("D") == b"OK"
    assert vm.wait(END).reason is ExitReason.POWEROFF
    assert not vm.debugger.waits and not vm.debugger.taken


def test_a_debugger_that_disappears_lets_the_machine_run(held):
    vm, gdb, _ = held(POWER_OFF)
    gdb.stub.close()
    assert vm.wait(END).reason is ExitReason.POWEROFF


def test_one_debugger_at_a_time(held):
    vm, gdb, _ = held(POWER_OFF)
    with pytest.raises(ConflictError):
        Debugger(vm)
    gdb.stub.close()


def test_kill_ends_the_machine(held):
    vm, gdb, _ = held(POWER_OFF)
    assert gdb.ask("vKill;1") == b"OK"
    assert vm.wait(END).reason is ExitReason.STOPPED


def test_acknowledgements_and_sending_again(held):
    _, gdb, _ = held(POWER_OFF)
    gdb.stub.feed(b"$?#00")
    assert gdb.said.get(timeout=END) == b"-"
    gdb.stub.feed(encode(b"?"))
    assert [gdb.said.get(timeout=END) for _ in range(2)] == [b"+", b"$T05thread:1;"]
    gdb.stub.feed(b"-")
    assert gdb.said.get(timeout=END) == b"$T05thread:1;"
    assert gdb.ask("QStartNoAckMode") == b"OK"
    gdb.stub.feed(encode(b"?"))
    assert gdb.said.get(timeout=END) == b"$T05thread:1;"


def test_monitor(held):
    _, gdb, _ = held(POWER_OFF)

    def monitor(line):
        packet = gdb.ask(f"qRcmd,{line.encode().hex()}")
        text = b""
        while packet.startswith(b"O") and packet != b"OK":
            text += bytes.fromhex(packet[1:].decode())
            packet = gdb.answer()
        assert packet == b"OK"
        return text.decode()

    assert "translate" in monitor("help")
    assert "rip" in monitor("info registers") and "vCPU 0" in monitor("info threads")
    assert monitor("translate 0x1000") == "0x1000\n"
    assert "no such command" in monitor("bogus")
    assert "physical" in monitor("phys on") and gdb.stub.by_physical


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from("gGpPmMXHTZzqQ?!v"),
    st.text("0123456789abcdef,;:=-QRcmdXferont", max_size=40),
)
def test_random_packets_fuzz(held_once, kind, rest):
    packet = kind + rest
    if not packet.startswith(("vCont", "vKill")):
        held_once.ask(packet)
    while not held_once.said.empty():
        held_once.said.get()


@pytest.fixture(scope="module")
def held_once():
    vm, _ = machine(POWER_OFF)
    vm.hand_over = lambda: None
    vm.start()
    yield Debugger(vm)
    vm.stop()
