"""Several vCPUs of the software engine over one memory: ordering, atomicity, changed code.

Each guest is a few instructions without a kernel. What a processor's memory model
allows (SDM vol. 3A, 8.2) is what may come out; every other outcome is a fault.
"""

import os
import struct
import threading
import time
from bisect import bisect_right
from dataclasses import replace

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import ENGINES
from ringzero.engine.exits import Halt, Shutdown
from ringzero.engine.x86 import PortWrite
from ringzero.errors import EngineError
from ringzero.isa.exclusive import MAX_VCPUS
from ringzero.isa.execution import REQUEST_KICK
from tests.engine import guest as toolkit
from tests.engine.guest import long_mode
from tests.oracle.assembler import assemble

pytestmark = pytest.mark.engine
RAM = 1 << 20
# Each vCPU has its own code page and stack; shared words have cache lines of their own.
CODE, CODE_STEP, STACK, STACK_STEP = 0x20000, 0x4000, 0x80000, 0x1000
X, Y, BARRIER, DONE, OUT = 0xA0000, 0xA0040, 0xA0080, 0xA00C0, 0xB0000
# Each takes both vCPUs on a host CPU at once, which a busy host grants only now and then.
# Rounds of each litmus test, of which a run has as many as OUT has room for.
WANTED_ROUNDS, MOST_ROUNDS = int(os.environ.get("LITMUS_ROUNDS", "2000")), 50_000
ROUNDS, RUNS = min(WANTED_ROUNDS, MOST_ROUNDS), -(-WANTED_ROUNDS // MOST_ROUNDS)
# Of each of two vCPUs.
INCREMENTS = max(20_000, WANTED_ROUNDS // 2)
# How often a reader looks for something new at most: where one host CPU has all vCPUs, there
# is something once in a time slice.
LOOKS = 1 << 24 if RUNS == 1 else 1 << 62


class Crew:
    """Some vCPUs, each on a thread of its own, until all have halted."""

    def __init__(self, engine, count, ram=RAM):
        self.memory = GuestMemory([(0, ram)])
        self.memory.write(toolkit.GDT, toolkit._GDT)
        toolkit.write_long_tables(self.memory)
        self.vm = engine.create_vm(self.memory, toolkit.processors(engine, cpus=count))
        self.vcpus = [self.vm.create_vcpu(n, toolkit.FakeApic()) for n in range(count)]
        self.ends = {}

    def load(self, number, text):
        at = CODE + number * CODE_STEP
        code = assemble(text, 64)
        assert len(code) <= CODE_STEP
        self.memory.write(at, code)
        state = long_mode().with_gpr(rsp=STACK + (number + 1) * STACK_STEP)
        self.vcpus[number].set_state(replace(state, rip=at))

    def start(self):
        self.threads = [
            threading.Thread(target=self._run, args=(n,), daemon=True)
            for n in range(len(self.vcpus))
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        try:
            while True:
                event = self.vcpus[number].run()
                if isinstance(event, (Halt, Shutdown)):
                    self.ends[number] = event
                    return
                if isinstance(event, PortWrite) and event.port == toolkit.DONE:
                    self.ends[number] = event
                    return
                if self.ends.get("stop"):
                    return
        except BaseException as fault:
            self.ends[number] = fault

    def join(self, seconds=60):
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        alive = [n for n, thread in enumerate(self.threads) if thread.is_alive()]
        self.ends["stop"] = True
        for vcpu in self.vcpus:
            vcpu.kick()
        for thread in self.threads:
            thread.join(10)
        assert not alive, f"vCPUs {alive} did not end: {self.ends}"
        faults = [e for n, e in self.ends.items() if n != "stop" and not isinstance(e, Halt)]
        assert not faults, faults

    def run(self, *programs, seconds=60):
        for number, text in enumerate(programs):
            self.load(number, text)
        self.start()
        self.join(seconds)

    def word(self, at, width=8):
        return self.memory.read_int(at, width)

    def close(self):
        self.vm.close()
        self.memory.close()


@pytest.fixture(scope="module")
def soft():
    return ENGINES.get("soft")()


@pytest.fixture
def crew(soft):
    made = []

    def make(count, ram=RAM):
        made.append(Crew(soft, count, ram))
        return made[-1]

    yield make
    for one in made:
        one.close()


def litmus(number, count, body, rounds=ROUNDS):
    """Run `body` in step with the others; it leaves its result in eax, kept for each round.

    `body` finds the round, from 1 on, in r15; words count up, so that none needs a reset.
    """
    return f"""
        mov r15d, 1
        mov r14d, {OUT + number * 0x10000}
        mov r13d, {BARRIER}
    round:
        lock add qword ptr [r13], 1
        imul r12, r15, {count}
    meet:
        cmp qword ptr [r13], r12
        jb meet
        {body}
        mov byte ptr [r14], al
        inc r14
        inc r15
        cmp r15d, {rounds}
        jbe round
        hlt
    """


def outcomes(crew, count, rounds=ROUNDS):
    """The set of results, and how often each came."""
    columns = [crew.memory.read(OUT + n * 0x10000, rounds) for n in range(count)]
    found = {}
    for result in zip(*columns, strict=True):
        found[result] = found.get(result, 0) + 1
    return found


def store(address):
    return f"mov qword ptr [{address}], r15\n"


def seen(address, into="al"):
    return f"cmp qword ptr [{address}], r15\n setae {into}\n"


@pytest.mark.parametrize("run", range(RUNS))
class TestOrdering:
    def test_message_passing(self, crew, run):
        """MP: who sees the flag sees the message."""
        pair = crew(2)
        pair.run(
            litmus(0, 2, store(X) + store(Y) + "xor eax, eax"),
            litmus(1, 2, "xor eax, eax\n xor ecx, ecx\n" + seen(Y) + seen(X, "cl")
                   + "lea eax, [rax + rcx*2]"),
        )  # fmt: skip
        # Bit 0: the flag, bit 1: the message.
        assert (0, 1) not in outcomes(pair, 2)

    def test_store_buffering_with_a_fence(self, crew, run):
        """SB with MFENCE: not both may miss the other's store."""
        pair = crew(2)
        pair.run(
            litmus(0, 2, "xor eax, eax\n" + store(X) + "mfence\n" + seen(Y)),
            litmus(1, 2, "xor eax, eax\n" + store(Y) + "mfence\n" + seen(X)),
        )
        assert (0, 0) not in outcomes(pair, 2)

    def test_store_buffering_with_a_locked_instruction(self, crew, run):
        """SB with an exchange, which is locked by itself."""
        pair = crew(2)
        swap = "mov rdx, r15\n xchg qword ptr [{}], rdx\n"
        pair.run(
            litmus(0, 2, "xor eax, eax\n" + swap.format(X) + seen(Y)),
            litmus(1, 2, "xor eax, eax\n" + swap.format(Y) + seen(X)),
        )
        assert (0, 0) not in outcomes(pair, 2)

    def test_load_buffering(self, crew, run):
        """LB: not both may see a store that comes behind their load."""
        pair = crew(2)
        pair.run(
            litmus(0, 2, "xor eax, eax\n" + seen(X) + store(Y)),
            litmus(1, 2, "xor eax, eax\n" + seen(Y) + store(X)),
        )
        assert (1, 1) not in outcomes(pair, 2)

    def test_independent_reads_of_independent_writes(self, crew, run):
        """IRIW: two readers agree on the order of two writers' stores (8.2.3.7).

        Nobody waits for another: the writers count, and each new pair of values that one
        reader sees is compared with all pairs of the other.
        """
        four = crew(4, ram=4 << 20)
        logs = (1 << 20, 2 << 20)

        def meet(number):
            return f"""
                lock add qword ptr [{BARRIER}], 1
            meet{number}:
                cmp qword ptr [{BARRIER}], 4
                jb meet{number}
            """

        def writer(number, address):
            return (
                meet(number)
                + f"""
                xor eax, eax
            write{number}:
                inc rax
                mov qword ptr [{address}], rax
                cmp qword ptr [{DONE}], 2
                jb write{number}
                hlt
            """
            )

        def reader(number, first, second, log):
            return (
                meet(number)
                + f"""
                mov r14d, {log}
                mov r15d, {ROUNDS}
                movabs r13, {LOOKS}
                xor ebx, ebx
                xor ebp, ebp
            look{number}:
                dec r13
                jz end{number}
                mov rax, qword ptr [{first}]
                mov rcx, qword ptr [{second}]
                cmp rax, rbx
                jne new{number}
                cmp rcx, rbp
                je look{number}
            new{number}:
                mov rbx, rax
                mov rbp, rcx
                mov qword ptr [r14], rax
                mov qword ptr [r14 + 8], rcx
                add r14, 16
                dec r15d
                jnz look{number}
            end{number}:
                lock add qword ptr [{DONE}], 1
                hlt
            """
            )

        four.run(
            writer(0, X), writer(1, Y), reader(2, X, Y, logs[0]), reader(3, Y, X, logs[1]),
            seconds=120,
        )  # fmt: skip
        # Where nothing was written there are two zeros, which no reader takes for new.
        one, other = (
            [
                pair
                for pair in struct.iter_unpack("<QQ", four.memory.read(log, 16 * ROUNDS))
                if any(pair)
            ]
            for log in logs
        )
        assert RUNS == 1 or len(one) == len(other) == ROUNDS
        # No word goes back: loads are not reordered with other loads (8.2.3.2).
        for column in (0, 1):
            for seen_pairs in (one, other):
                values = [pair[column] for pair in seen_pairs]
                assert values == sorted(values)
        assert disagreements(one, other) == 0


def disagreements(one, other):
    """How often `one` saw X without Y's store and `other` that store without X's.

    Pairs of values, each of the word that was read first and of the one behind it: X in
    `one`, Y in `other`. Values never go back.
    """
    firsts = [first for first, _ in one]
    count = 0
    for y, x in other:
        later = bisect_right(firsts, x)
        count += later < len(one) and one[later][1] < y
    return count


def test_a_disagreement_is_seen():
    assert disagreements([(1, 1), (2, 1)], [(1, 1), (2, 1)]) == 1
    assert disagreements([(1, 1), (2, 1)], [(1, 1), (2, 2)]) == 0
    assert disagreements([(1, 1), (2, 2)], [(1, 1), (2, 1)]) == 0


class TestAtomicity:
    @pytest.mark.parametrize(
        ("address", "add"),
        [
            pytest.param(X, "lock add dword ptr [rdi], 1", id="add"),
            pytest.param(X + 1, "lock inc dword ptr [rdi]", id="misaligned"),
            pytest.param(X + 62, "lock inc dword ptr [rdi]", id="across-lines"),
            pytest.param(0xA0FFE, "lock add dword ptr [rdi], 1", id="across-pages"),
            pytest.param(X, "mov eax, 1\n lock xadd dword ptr [rdi], eax", id="xadd"),
            pytest.param(
                X,
                "1: mov eax, [rdi]\n lea edx, [rax + 1]\n lock cmpxchg [rdi], edx\n jne 1b",
                id="cmpxchg",
            ),
            pytest.param(
                X,
                "mov eax, [rdi]\n mov edx, [rdi + 4]\n 1: mov ebx, eax\n mov ecx, edx\n"
                "add ebx, 1\n adc ecx, 0\n lock cmpxchg8b [rdi]\n jne 1b",
                id="cmpxchg8b",
            ),
            pytest.param(
                X,
                "mov rax, [rdi]\n mov rdx, [rdi + 8]\n 1: mov rbx, rax\n mov rcx, rdx\n"
                "add rbx, 1\n adc rcx, 0\n lock cmpxchg16b [rdi]\n jne 1b",
                id="cmpxchg16b",
            ),
        ],
    )
    def test_no_increment_is_lost(self, crew, address, add):
        pair = crew(2)
        text = f"""
            mov edi, {address}
            mov ebp, {INCREMENTS}
        again:
            {add}
            dec ebp
            jnz again
            hlt
        """
        pair.run(
            text.replace("again", "one"),
            text.replace("again", "two"),
            seconds=60 + INCREMENTS / 1000,
        )
        assert pair.word(address, 4) == 2 * INCREMENTS

    def test_a_counter_on_a_page_with_code(self, crew):
        """Where it goes by the slow path in pieces, and the other vCPU's plain stores too."""
        pair = crew(2)
        counter = CODE + 0x800
        text = f"""
            mov edi, {counter}
            mov ebp, 5000
        again:
            lock add dword ptr [rdi], 1
            mov dword ptr [rdi + {{}}], ebp
            dec ebp
            jnz again
            hlt
        """
        pair.run(text.format(64), text.format(128))
        assert pair.word(counter, 4) == 10000


class TestCalledOut:
    """One that runs translated code leaves it at its next access, not at its slice's end."""

    LOOP = f"again: add qword ptr [{X}], 1; mov eax, [{Y}]; test eax, eax; jz again; hlt"

    @pytest.fixture
    def busy(self, crew):
        """A vCPU in a slice without end."""
        one = crew(1)
        one.load(0, self.LOOP)
        cpu = one.vcpus[0].cpu
        cpu.slice = cpu.budget = 1 << 60
        one.start()
        end = time.monotonic() + 60
        while one.word(X) < 10000:
            assert time.monotonic() < end
        yield one
        one.memory.write_int(Y, 8, 1)
        one.join(20)

    def test_for_a_request(self, busy):
        vcpu = busy.vcpus[0]
        before = vcpu.statistics()["exits"]
        busy.vm.engine.notify(vcpu.address, REQUEST_KICK)
        end = time.monotonic() + 60
        while vcpu.statistics()["exits"] == before:
            assert time.monotonic() < end, "the request was not seen"
            time.sleep(0.001)

    def test_to_stand_still(self, busy):
        with busy.vm.engine.stopped(busy.vm.exclusive.address):
            seen = busy.word(X)
            time.sleep(0.01)
            assert busy.word(X) == seen
        end = time.monotonic() + 60
        while busy.word(X) == seen:
            assert time.monotonic() < end, "it does not go on"


class TestChangedCode:
    def test_code_that_another_changes(self, crew):
        """Cross-modifying code (SDM vol. 3A, 8.1.3): changed, told of, serialized, run."""
        pair = crew(2)
        routine, rounds = 0x90000, 3000
        self._routine(pair, routine)
        pair.run(
            f"""
                mov r15d, 1
            change:
                mov dword ptr [{routine + 1}], r15d
                mov qword ptr [{X}], r15
            wait:
                cmp qword ptr [{Y}], r15
                jne wait
                inc r15
                cmp r15d, {rounds}
                jbe change
                hlt
            """,
            f"""
                mov r15d, 1
            look:
                cmp qword ptr [{X}], r15
                jne look
                xor eax, eax
                cpuid
                mov r14d, {routine}
                call r14
                cmp rax, r15
                jne stale
                mov qword ptr [{Y}], r15
                inc r15
                cmp r15d, {rounds}
                jbe look
                hlt
            stale:
                ud2
            """,
            seconds=120,
        )
        assert pair.word(Y) == rounds

    @staticmethod
    def _routine(crew, at):
        """`mov eax, 0; ret`, whose immediate is to be changed."""
        crew.memory.write(at, assemble("mov eax, 0\nret", 64))

    def test_both_change_the_same_code(self, crew):
        """Under a lock, each writes and calls at once: what it has written is what it runs."""
        pair = crew(2)
        routine, rounds = 0x90000, 1500
        self._routine(pair, routine)
        text = f"""
            mov r15d, {{first}}
        change{{first}}:
            mov eax, 1
            xchg dword ptr [{X}], eax
            test eax, eax
            jnz change{{first}}
            mov dword ptr [{routine + 1}], r15d
            xor eax, eax
            cpuid
            mov r14d, {routine}
            call r14
            cmp eax, r15d
            jne stale{{first}}
            mov dword ptr [{X}], 0
            add r15d, 2
            cmp r15d, {2 * rounds}
            jbe change{{first}}
            hlt
        stale{{first}}:
            ud2
        """
        pair.run(text.format(first=1), text.format(first=2), seconds=120)

    def test_a_device_changes_code(self, crew):
        """A write from outside is seen at once by all vCPUs."""
        three = crew(3)
        routine, rounds = 0x90000, 300
        self._routine(three, routine)
        text = f"""
            mov r15d, 1
        look{{n}}:
            cmp qword ptr [{X}], r15
            jne look{{n}}
            mov r14d, {routine}
            call r14
            cmp rax, r15
            jne stale{{n}}
            mov qword ptr [{Y} + {{n}} * 64], r15
            inc r15
            cmp r15d, {rounds}
            jbe look{{n}}
            hlt
        stale{{n}}:
            ud2
        """
        for n in range(3):
            three.load(n, text.format(n=n))
        three.start()
        end = time.monotonic() + 100
        for number in range(1, rounds + 1):
            three.memory.write_int(routine + 1, 4, number)
            three.memory.write_int(X, 8, number)
            while any(three.word(Y + n * 64) != number for n in range(3)):
                assert time.monotonic() < end, three.ends
                if three.ends:
                    break
                time.sleep(0)
        three.join(5)

    def test_the_region_fills_while_others_run(self, crew):
        """All is dropped, again and again, under vCPUs that are in it."""
        pair = crew(2)
        # As with CODE_SIZE filled: little is left, so that each few blocks drop all.
        code = pair.vm.code
        text = f"""
            mov r15d, 40
        pass{{n}}:
            xor r14d, r14d
        next{{n}}:
            mov edi, {0xC0000 + 0x18000} * {{n}} + {0xC0000} * (1 - {{n}})
            mov eax, r14d
            shl eax, 4
            add rdi, rax
            mov dword ptr [rdi], 0xc3c0ff
            call rdi
            call rdi
            call rdi
            inc r14d
            cmp r14d, 1024
            jb next{{n}}
            dec r15d
            jnz pass{{n}}
            hlt
        """
        for n in range(2):
            pair.load(n, text.format(n=n))
        code.region_end = code.data
        code.region_start = code.out = code.data - (200 << 10)
        # Nor does anybody give more.
        code.low_water = 0
        pair.start()
        pair.join(120)
        assert code.count_flushes > 0


class TestMachine:
    def test_there_is_a_limit(self, crew):
        with pytest.raises(EngineError, match=f"at most {MAX_VCPUS}"):
            crew(MAX_VCPUS + 1)

    def test_the_counters_are_in_step(self, crew):
        """RDTSC never goes back from one vCPU to the other."""
        pair = crew(2)
        text = f"""
            mov ebp, 20000
        again:
            mov rbx, [{X}]
            lfence
            rdtsc
            shl rdx, 32
            or rax, rdx
            cmp rax, rbx
            jb back
            mov rcx, rax
            mov rax, rbx
            lock cmpxchg [{X}], rcx
            dec ebp
            jnz again
            hlt
        back:
            ud2
        """
        pair.run(text, text)

    def test_a_kick_reaches_a_vcpu_that_waits_for_none(self, crew):
        pair = crew(2)
        pair.load(0, "a: jmp a")
        pair.load(1, "b: jmp b")
        pair.start()
        time.sleep(0.2)
        pair.ends["stop"] = True
        for vcpu in pair.vcpus:
            vcpu.kick()
        for thread in pair.threads:
            thread.join(5)
            assert not thread.is_alive()
