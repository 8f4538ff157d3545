"""What every engine must do: one suite of small guests, run on each engine."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.engine.exits import DebugStop, Halt, Kicked, MmioRead, MmioWrite, Shutdown
from ringzero.engine.x86 import MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.errors import EngineError
from ringzero.isa.x86 import cpuid
from ringzero.isa.x86.state import CpuState
from tests.engine import guest as toolkit
from tests.engine.guest import CODE, KERNEL_BASE, MMIO, RAM, long_mode

# Sum of 1..100 in a loop, then the result in two widths.
SUM = """
    xor ebx, ebx
    mov ecx, 100
again:
    add ebx, ecx
    dec ecx
    jnz again
    mov eax, ebx
    out 0x10, eax
    hlt
"""
SUM_16 = """
    xor bx, bx
    mov cx, 100
again:
    add bx, cx
    loop again
    mov ax, bx
    out 0x10, ax
    hlt
"""


class TestModes:
    def test_real_mode(self, guest):
        guest.load(SUM_16, toolkit.real_mode(), 16)
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [5050]

    def test_real_mode_segments(self, guest):
        guest.memory.write(0x12345, b"\x5a")
        guest.load(
            "mov ax, 0x1234; mov ds, ax; mov al, byte ptr [5]; out 0x10, al; hlt",
            toolkit.real_mode(),
            16,
        )
        guest.run()
        assert guest.writes() == [0x5A]

    @pytest.mark.hardware
    @pytest.mark.parametrize("paging", ["", "legacy", "pae"])
    def test_protected_mode(self, guest, paging):
        if paging == "legacy":
            toolkit.write_legacy_tables(guest.memory)
        elif paging == "pae":
            toolkit.write_pae_tables(guest.memory)
        guest.load(SUM, toolkit.protected_mode(paging=paging), 32)
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [5050]

    def test_compatibility_mode(self, guest):
        # In 64-bit mode 0x40 is a REX prefix, in 32-bit code it is INC EAX.
        guest.load("mov eax, 6; .byte 0x40; out 0x10, eax; hlt", long_mode(bits=32), 32)
        guest.run()
        assert guest.writes() == [7]

    @pytest.mark.parametrize("base", [0, KERNEL_BASE])
    def test_long_mode(self, guest, base):
        guest.load(SUM, long_mode(base=base))
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [5050]

    @pytest.mark.skipif("NESTED_KVM" in os.environ, reason="QEMU's SVM may hang with it")
    def test_from_real_over_protected_to_long_mode(self, guest):
        guest.memory.write(
            CODE + 0x40,
            toolkit.assemble(
                f"""
                mov ecx, 0xc0000080
                mov eax, 0x100
                xor edx, edx
                wrmsr
                mov eax, {toolkit.TABLES}
                mov cr3, eax
                mov eax, 0x20
                mov cr4, eax
                mov eax, 0x80000011
                mov cr0, eax
                .byte 0xea
                .long {CODE + 0x80}
                .word {toolkit.CODE64}
                """,
                32,
            ),
        )
        guest.memory.write(
            CODE + 0x80,
            toolkit.assemble("mov rax, 0x123456789abc\nshr rax, 16\nout 0x10, eax\nhlt", 64),
        )
        start = replace(toolkit.real_mode(), gdtr=long_mode().gdtr)
        enter = f"""
            mov eax, 0x11
            mov cr0, eax
            .byte 0x66, 0xea
            .long {CODE + 0x40}
            .word {toolkit.CODE32}
        """
        guest.load(enter, start, 16)
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [0x12345678]

    @pytest.mark.hardware
    def test_syscall_from_ring_3_and_back(self, guest):
        # Ring 3 may not OUT (IOPL 0, the TSS has no bitmap), so the kernel reports for it.
        kernel = "mov eax, edi; out 0x10, eax; cmp edi, 2; je 1f; sysretq; 1: hlt"
        guest.memory.write(toolkit.HANDLERS, toolkit.assemble(kernel.replace("; ", "\n"), 64))
        user = "mov edi, 1\nsyscall\nmov edi, 2\nsyscall\nud2"
        star = (toolkit.CODE64 << 32) | ((toolkit.USER64 - 16) << 48)
        state = long_mode(ring=3)
        msrs = {**state.msrs, 0xC0000081: star, 0xC0000082: toolkit.HANDLERS, 0xC0000084: 0x200}
        guest.load(user, replace(state, msrs=msrs))
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [1, 2]


class TestPortsAndMmio:
    @pytest.mark.parametrize(("register", "width"), [("al", 1), ("ax", 2), ("eax", 4)])
    def test_ports_of_every_width(self, guest, register, width):
        value = 0x11223344 & (1 << 8 * width) - 1
        guest.reads[0x345] = 0x99AABBCC & (1 << 8 * width) - 1
        guest.load(
            f"mov eax, 0x11223344\nmov dx, 0x345\nout dx, {register}\n"
            f"mov eax, 0\nin {register}, dx\nout 0x10, eax\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.quiet()[:3] == [
            PortWrite(0x345, width, value),
            PortRead(0x345, width),
            PortWrite(0x10, 4, guest.reads[0x345]),
        ]

    @pytest.mark.parametrize(("suffix", "width"), [("b", 1), ("w", 2), ("d", 4)])
    @pytest.mark.parametrize("down", [False, True])
    def test_repeated_port_instructions(self, guest, suffix, width, down):
        data = bytes(range(1, 1 + 5 * width))
        guest.memory.write(0x5000, data)
        items = [data[i : i + width] for i in range(0, len(data), width)]
        if down:
            items.reverse()
        values = [int.from_bytes(item, "little") for item in items]
        guest.reads[0x66] = list(reversed(values))
        last = 4 * width if down else 0
        guest.load(
            f"{'std' if down else 'cld'}\n"
            f"mov esi, {0x5000 + last}\nmov ecx, 5\nmov dx, 0x55\nrep outs{suffix}\n"
            f"mov edi, {0x5100 + last}\nmov ecx, 5\nmov dx, 0x66\nrep ins{suffix}\nhlt",
            long_mode(),
        )
        guest.run()
        writes = [e for e in guest.quiet() if isinstance(e, PortWrite)]
        assert writes == [PortWrite(0x55, width, value) for value in values]
        found = guest.memory.read(0x5100, 5 * width)
        there = [found[i : i + width] for i in range(0, len(found), width)]
        expected = list(reversed(items))
        assert there == (list(reversed(expected)) if down else expected)

    @pytest.mark.parametrize(("register", "width"), [("bl", 1), ("bx", 2), ("ebx", 4), ("rbx", 8)])
    def test_mmio_of_every_width(self, guest, register, width):
        mask = (1 << 8 * width) - 1
        guest.reads[MMIO + 0x20] = 0xF1F2F3F4F5F6F7F8 & mask
        guest.load(
            f"mov rbx, 0x1122334455667788\nmov [{MMIO + 8}], {register}\n"
            f"xor ebx, ebx\nmov {register}, [{MMIO + 0x20}]\nmov [0x5000], rbx\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.quiet()[:2] == [
            MmioWrite(MMIO + 8, width, 0x1122334455667788 & mask),
            MmioRead(MMIO + 0x20, width),
        ]
        assert guest.memory.read_int(0x5000, 8) == 0xF1F2F3F4F5F6F7F8 & mask

    def test_mmio_as_an_operand(self, guest):
        guest.reads[MMIO] = 40
        guest.load(
            f"mov eax, 2\nadd eax, [{MMIO}]\nout 0x10, eax\nadd dword ptr [{MMIO}], 3\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.quiet() == [
            MmioRead(MMIO, 4),
            PortWrite(0x10, 4, 42),
            MmioRead(MMIO, 4),
            MmioWrite(MMIO, 4, 43),
            Halt(),
        ]

    def test_string_instructions_reach_mmio(self, guest):
        guest.memory.write(0x5000, b"abcdefgh")
        guest.reads[MMIO + 0x40] = 0x64636261
        guest.reads[MMIO + 0x44] = 0x68676665
        guest.load(
            f"cld\nmov esi, 0x5000\nmov edi, {MMIO}\nmov ecx, 2\nrep movsd\n"
            f"mov esi, {MMIO + 0x40}\nmov edi, 0x5100\nmov ecx, 2\nrep movsd\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.quiet() == [
            MmioWrite(MMIO, 4, 0x64636261),
            MmioWrite(MMIO + 4, 4, 0x68676665),
            MmioRead(MMIO + 0x40, 4),
            MmioRead(MMIO + 0x44, 4),
            Halt(),
        ]
        assert guest.memory.read(0x5100, 8) == b"abcdefgh"

    def test_an_access_across_the_end_of_ram(self, guest):
        guest.memory.write(RAM - 2, b"\x11\x22")
        guest.reads[RAM] = 0x4433
        guest.load(f"mov eax, [{RAM - 2}]\nout 0x10, eax\nhlt", long_mode())
        guest.run()
        # Where RAM ends, an engine may split the rest into bytes; then each reads 0x33.
        assert guest.writes()[0] & 0xFFFFFF == 0x332211


class TestExceptions:
    @pytest.mark.hardware
    @pytest.mark.parametrize(
        ("vector", "text"),
        [
            (0, "xor ecx, ecx\ndiv ecx"),
            (3, "int3"),
            (6, "ud2"),
            (0x80, "int 0x80"),
        ],
    )
    def test_vectors_without_error_code(self, guest, vector, text):
        guest.on_vector(vector, "pop rax\nout 0x10, eax\nhlt")
        guest.load(f"{text}\nhlt", long_mode())
        assert isinstance(guest.run(), Halt)
        # Faults push the address of the instruction, traps the one behind it.
        length = {0: 2, 3: 1, 6: 0, 0x80: 2}[vector]
        assert guest.writes() == [CODE + length]

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("mov al, [0x40000000]", 0),
            ("mov [0x40000000], al", 2),
        ],
    )
    def test_page_fault(self, guest, text, code):
        guest.on_vector(14, "pop rax\nout 0x10, eax\nmov rax, cr2\nout 0x11, eax\nhlt")
        guest.load(f"{text}\nhlt", long_mode())
        guest.run()
        assert guest.writes() == [code, 0x40000000]

    def test_page_fault_from_ring_3(self, guest):
        guest.on_vector(14, "pop rax\nout 0x10, eax\nhlt")
        guest.load("mov [0x40000000], al", long_mode(ring=3))
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [6]

    def test_protection_fault_in_ring_3(self, guest):
        guest.on_vector(13, "pop rax\nout 0x10, eax\nhlt")
        guest.load("cli", long_mode(ring=3))
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [0]

    def test_return_from_an_exception(self, guest):
        guest.on_vector(6, "add qword ptr [rsp], 2\niretq")
        guest.load("mov ebx, 7\nud2\nmov eax, ebx\nout 0x10, eax\nhlt", long_mode())
        guest.run()
        assert guest.writes() == [7]

    def test_triple_fault(self, guest):
        guest.load("mov eax, 0x12345678\nud2", long_mode())
        end = guest.run()
        assert isinstance(end, Shutdown)
        if "keeps no registers" in end.detail:
            assert "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
            return
        assert "rax=0x0000000012345678" in end.detail
        assert "b8 78 56 34 12 <0f> 0b" in end.detail


class TestInterrupts:
    def test_an_interrupt_ends_a_halt(self, guest):
        guest.on_vector(0x41, "mov al, 0x41\nout 0x10, al\niretq")
        guest.load("sti\nhlt\nmov al, 1\nout 0x10, al\ncli\nhlt", long_mode())
        assert isinstance(guest.run(), Halt)
        threading.Timer(0.05, guest.apic.raise_vector, [0x41]).start()
        guest.vcpu.wait(10)
        assert guest.apic.pending()
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [0x41, 1]

    def test_wait_ends_with_its_timeout(self, guest):
        guest.load("sti\nhlt", long_mode())
        guest.run()
        start = time.monotonic()
        guest.vcpu.wait(0.1)
        assert 0.05 < time.monotonic() - start < 5

    @pytest.mark.hardware
    def test_a_masked_interrupt_waits_for_sti(self, guest):
        guest.on_vector(0x41, "mov al, 0x41\nout 0x10, al\niretq")
        guest.apic.raise_vector(0x41)
        guest.load(
            "mov al, 1\nout 0x10, al\nsti\nnop\nmov al, 2\nout 0x10, al\ncli\nhlt", long_mode()
        )
        guest.run()
        assert guest.writes() == [1, 0x41, 2]

    def test_the_instruction_after_sti_runs_first(self, guest):
        guest.on_vector(0x41, "mov al, 0x41\nout 0x10, al\niretq")
        guest.apic.raise_vector(0x41)
        guest.load("mov bl, 1\nsti\nmov bl, 2\nmov al, bl\nout 0x10, al\ncli\nhlt", long_mode())
        guest.memory.write(toolkit.HANDLERS, toolkit.assemble("mov al, bl\nout 0x11, al\niretq"))
        guest.run()
        assert guest.writes()[0] == 2

    @pytest.mark.hardware
    def test_task_priority_holds_back(self, guest):
        guest.on_vector(0x41, "mov al, 0x41\nout 0x10, al\niretq")
        guest.apic.raise_vector(0x41)
        guest.load(
            "mov eax, 5\nmov cr8, rax\nsti\nnop\nmov al, 1\nout 0x10, al\n"
            "xor eax, eax\nmov cr8, rax\nnop\nmov al, 2\nout 0x10, al\ncli\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.writes() == [1, 0x41, 2]

    def test_the_timer_ends_a_loop(self, guest):
        guest.on_vector(0x42, "mov al, 0x42\nout 0x10, al\ncli\nhlt")
        guest.load("sti\nagain: jmp again", long_mode())
        guest.apic.arm(guest.vm.read_counter() + guest.vm.counter_hz // 20, 0x42)
        assert isinstance(guest.run(), Halt)
        assert guest.writes() == [0x42]

    def test_the_timer_ends_a_halt(self, guest):
        guest.on_vector(0x42, "mov al, 0x42\nout 0x10, al\ncli\nhlt")
        guest.load("sti\nhlt", long_mode())
        guest.apic.arm(guest.vm.read_counter() + guest.vm.counter_hz // 20, 0x42)
        guest.run()
        for _ in range(100):
            if guest.writes():
                break
            guest.vcpu.wait(5)
            guest.run()
        assert guest.writes() == [0x42]


class TestModelSpecificRegisters:
    def test_a_register_of_the_boards(self, guest):
        index = 0x12345678
        guest.reads["msr", index] = 0x1122334455667788
        guest.load(
            f"mov ecx, {index}\nrdmsr\nout 0x10, eax\nmov eax, edx\nout 0x10, eax\n"
            f"mov eax, 5\nmov edx, 6\nwrmsr\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.writes() == [0x55667788, 0x11223344]
        assert MsrRead(index) in guest.log
        assert MsrWrite(index, 6 << 32 | 5) in guest.log

    @pytest.mark.parametrize("text", ["rdmsr", "wrmsr"])
    def test_nobodys_register_is_a_fault(self, guest, text):
        guest.on_vector(13, "mov al, 13\nout 0x10, al\nhlt")
        guest.load(f"mov ecx, 0x12345679\n{text}\nhlt", long_mode())
        guest.run()
        assert [e.value for e in guest.log if isinstance(e, PortWrite)] == [13]


class TestCpuid:
    def test_the_guest_sees_the_leaves_given(self, guest, engine):
        leaves = toolkit.processors(engine).leaves
        for function in (0, 0x40000000, 0x80000000, 0x80000002):
            guest.log.clear()
            guest.load(
                f"mov eax, {function}\nxor ecx, ecx\ncpuid\nout 0x10, eax\nmov eax, ebx\n"
                "out 0x10, eax\nmov eax, ecx\nout 0x10, eax\nmov eax, edx\nout 0x10, eax\nhlt",
                long_mode(),
            )
            guest.run()
            leaf = cpuid.find(leaves, function)
            assert guest.writes() == [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]


class TestStopping:
    def test_a_kick_before_run(self, guest):
        guest.load("again: jmp again", long_mode())
        guest.vcpu.kick()
        assert guest.vcpu.run() == Kicked()

    def test_kicks_from_another_thread(self, guest):
        guest.load("again: jmp again", long_mode())
        for delay in (0, 0.001, 0.01, 0.05):
            timer = threading.Timer(delay, guest.vcpu.kick)
            timer.start()
            start = time.monotonic()
            assert guest.vcpu.run() == Kicked()
            assert time.monotonic() - start < delay + 2
            timer.join()

    def test_a_storm_of_kicks_loses_nothing(self, guest):
        guest.load("mov ecx, 300\nagain: out 0x10, al\ninc al\nloop again\nhlt", long_mode())
        stop = threading.Event()

        def storm():
            while not stop.wait(0.0005):
                guest.vcpu.kick()

        thread = threading.Thread(target=storm, daemon=True)
        thread.start()
        try:
            assert isinstance(guest.run(), Halt)
        finally:
            stop.set()
            thread.join()
        assert guest.writes() == [n & 0xFF for n in range(300)]

    def test_a_kick_ends_wait(self, guest):
        guest.load("sti\nhlt", long_mode())
        guest.run()
        threading.Timer(0.02, guest.vcpu.kick).start()
        start = time.monotonic()
        guest.vcpu.wait(10)
        assert time.monotonic() - start < 5


class TestState:
    def test_round_trip_in_long_mode(self, guest):
        guest.load(
            "mov rax, 0x1122334455667788\nmov r15, 5\nout 0xf4, al\nmov eax, 3\nhlt", long_mode()
        )
        guest.run()
        saved = guest.vcpu.get_state()
        assert saved.gpr[0] == 0x1122334455667788
        assert saved.gpr[15] == 5
        tree = to_tree(saved)
        guest.vcpu.set_state(CpuState())
        guest.vcpu.set_state(from_tree(CpuState, tree))
        again = guest.vcpu.get_state()
        for name in saved.__dataclass_fields__:
            if name not in ("tsc", "msrs"):
                assert getattr(again, name) == getattr(saved, name), name
        for index in (0x174, 0x277, 0xC0000081, 0xC0000082):
            assert again.msrs.get(index) == saved.msrs.get(index)
        guest.run()
        assert guest.vcpu.get_state().gpr[0] == 3

    def test_state_after_an_access_is_whole(self, guest, engine):
        if engine.name == "soft":
            pytest.xfail("the software engine finishes an access in the next run")
        guest.reads[0x10] = 0x77
        guest.load("mov eax, 0\nin al, 0x10\nhlt", long_mode())
        while not isinstance(guest.step(), PortRead):
            pass
        state = guest.vcpu.get_state()
        assert state.gpr[0] == 0x77
        assert state.rip == CODE + 7

    def test_registers_of_the_vector_unit(self, guest):
        guest.load("movdqu xmm1, [0x5000]\nout 0xf4, al\nmovdqu [0x5100], xmm1\nhlt", long_mode())
        guest.memory.write(0x5000, bytes(range(16)))
        guest.run()
        state = guest.vcpu.get_state()
        # XMM1 lies at 176 of the area (SDM vol. 1, 13.4.2).
        assert state.xsave[176:192] == bytes(range(16))
        guest.vcpu.set_state(state)
        guest.run()
        assert guest.memory.read(0x5100, 16) == bytes(range(16))


def test_nothing_to_take_over(engine):
    guest = toolkit.build(engine, adopts=True)
    toolkit.write_long_tables(guest.memory)
    guest.load(SUM, long_mode())
    assert isinstance(guest.run(), Halt)
    assert guest.writes() == [5050]
    guest.vm.close()
    guest.memory.close()


class TestMemory:
    def test_code_changed_by_the_host_is_seen(self, guest):
        guest.load("again: mov al, 1\nout 0x10, al\njmp again", long_mode())
        guest.step()
        guest.memory.write(CODE + 1, b"\x02")
        while len(guest.writes()) < 2:
            guest.step()
        assert guest.writes()[:2] == [1, 2]

    def test_code_changed_by_the_guest_is_seen(self, guest):
        guest.load(
            f"mov ecx, 2\nagain:\nmov al, 1\nout 0x10, al\n"
            f"mov byte ptr [{CODE + 6}], 9\nloop again\nhlt",
            long_mode(),
        )
        guest.run()
        assert guest.writes() == [1, 9]

    def test_dirty_pages(self, guest):
        try:
            guest.vm.track_dirty(True)
        except EngineError as fault:
            pytest.skip(fault.message)
        guest.load("mov [0x5000], al\nmov [0x5fff], al\nmov [0x20000], al\nhlt", long_mode())
        guest.vm.take_dirty()
        guest.run()
        assert {5, 0x20} <= set(guest.vm.take_dirty())
        assert 5 not in guest.vm.take_dirty()
        guest.vm.track_dirty(False)


def try_debug(guest, *arguments):
    try:
        guest.vcpu.debug(*arguments)
    except NotImplementedError:
        pytest.skip("the engine has no debugging yet")


class TestDebugging:
    def test_single_step(self, guest):
        guest.load("nop\nnop\nmov eax, 5\nnop\nhlt", long_mode())
        try_debug(guest, True)
        seen = []
        while len(seen) < 4:
            event = guest.step()
            if isinstance(event, DebugStop):
                seen.append(event.address)
        assert seen == [CODE + 1, CODE + 2, CODE + 7, CODE + 8]
        guest.vcpu.debug(False)
        assert isinstance(guest.run(), Halt)

    def test_an_interrupt_waits_for_the_instruction_of_a_step(self, guest):
        guest.on_vector(0x51, "inc ebx\niretq")
        guest.load("sti\nnop\ninc eax\nnop\nnop\nhlt", long_mode())
        try_debug(guest, True)
        while guest.step() != DebugStop(CODE + 2):
            pass
        guest.apic.raise_vector(0x51)
        guest.vcpu.debug(True)
        while not isinstance(guest.step(), DebugStop):
            pass
        assert guest.vcpu.get_state().gpr[0] == 1
        guest.vcpu.debug(False)
        assert isinstance(guest.run(), Halt)
        assert guest.vcpu.get_state().gpr[3] == 1

    @pytest.mark.skipif(
        "NESTED_KVM" in os.environ, reason="QEMU's SVM does not load DR7 when a guest is entered"
    )
    def test_breakpoints(self, guest):
        guest.load("nop\nnop\nmov eax, 5\nnop\nhlt", long_mode())
        try_debug(guest, False, (CODE + 2, CODE + 7))
        stops = []
        while len(stops) < 2:
            event = guest.step()
            assert isinstance(event, (DebugStop, Kicked))
            if isinstance(event, DebugStop):
                stops.append(event.address)
                rest = tuple(a for a in (CODE + 2, CODE + 7) if a > event.address)
                guest.vcpu.debug(False, rest)
        assert stops == [CODE + 2, CODE + 7]
        assert isinstance(guest.run(), Halt)
