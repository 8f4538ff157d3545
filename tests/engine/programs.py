"""Random small programs in ring 0 and ring 3 that end by a write to DONE, in assembler.

What the manuals leave undefined is left out, or written over before anyone can
see it: flags after a multiplication or a shift are set anew by an addition.
"""

from __future__ import annotations

from tests.engine.guest import DONE

# Two pages that programs read and write through RBX; RSI and RDI walk in them.
DATA, DATA_SIZE = 0x30000, 0x2000
REGISTERS = ("rax", "rcx", "rdx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
NARROW = {
    8: {"rax": "al", "rcx": "cl", "rdx": "dl", "rbp": "bpl"},
    16: {"rax": "ax", "rcx": "cx", "rdx": "dx", "rbp": "bp"},
    32: {"rax": "eax", "rcx": "ecx", "rdx": "edx", "rbp": "ebp"},
}
SUFFIX = {8: "b", 16: "w", 32: "d"}
POINTER = {8: "byte", 16: "word", 32: "dword", 64: "qword"}
CONDITIONS = (
    "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip
# Model-specific registers that take any canonical address.
ADDRESS_MSRS = (0xC0000082, 0xC0000083, 0xC0000102, 0xC0000100, 0xC0000101, 0x175, 0x176)


class Generator:
    """Draws programs from a `random.Random`.

    Without `vectors`, they hold only what KVM's instruction emulator knows too.
    """

    def __init__(self, random, *, vectors=True):
        self.random = random
        self._vectors = vectors
        self._label = 0

    def program(self, length, *, ring):
        """Return the text of a program of about `length` instructions."""
        kinds = [*UNPRIVILEGED, *(PRIVILEGED if ring == 0 else ())]
        kinds += VECTORS if self._vectors else ()
        lines = [f"mov rbx, {DATA}", f"lea rsi, [rbx + {DATA_SIZE // 2}]", "mov rdi, rbx"]
        for register in REGISTERS:
            lines.append(f"movabs {register}, {self.value(64)}")
        for number in range(8 if self._vectors else 0):
            lines.append(f"movdqu xmm{number}, [rbx + {16 * number}]")
        lines.append("test eax, eax")
        for _ in range(length):
            lines += getattr(self, f"_{self.random.choice(kinds)}")()
        # AF is undefined after TEST, and so it is left out of the comparison.
        lines += ["test rax, rax", f"out {DONE}, al", "end: jmp end"]
        return "\n".join(lines)

    def value(self, bits):
        """An interesting or a random number of `bits`."""
        near = self.random.choice((0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1))
        return self.random.choice((near, self.random.getrandbits(bits), self.random.getrandbits(7)))

    def register(self, bits=64):
        name = self.random.choice(REGISTERS)
        if bits == 64:
            return name
        return NARROW[bits].get(name) or name + SUFFIX[bits]

    def memory(self, bits=64):
        offset = self.random.choice((self.random.randrange(DATA_SIZE - 16), 4090, 4096, 8))
        return f"{POINTER[bits]} ptr [rbx + {offset}]"

    def label(self):
        self._label += 1
        return f"l{self._label}"

    def bits(self):
        return self.random.choice((8, 16, 32, 64))

    def _arithmetic(self):
        bits, name = self.bits(), self.random.choice(("add", "sub", "adc", "sbb", "cmp"))
        return [self._two(name, bits)]

    def _logic(self):
        bits, name = self.bits(), self.random.choice(("and", "or", "xor", "test"))
        return [self._two(name, bits)]

    def _two(self, name, bits):
        left = self.random.choice((self.register(bits), self.memory(bits)))
        if self.random.random() < 0.3:
            return f"{name} {left}, {self.value(min(bits, 32) - 1)}"
        right = self.register(bits)
        return f"{name} {left}, {right}"

    def _load(self):
        bits = self.bits()
        pair = [self.register(bits), self.memory(bits)]
        self.random.shuffle(pair)
        return [f"mov {pair[0]}, {pair[1]}"]

    def _extend(self):
        small = self.random.choice((8, 16))
        name = self.random.choice(("movzx", "movsx"))
        source = self.random.choice((self.register(small), self.memory(small)))
        return [f"{name} {self.register(self.random.choice((32, 64)))}, {source}"]

    def _one(self):
        bits, name = self.bits(), self.random.choice(("inc", "dec", "neg", "not"))
        return [f"{name} {self.random.choice((self.register(bits), self.memory(bits)))}"]

    def _shift(self):
        bits, name = self.bits(), self.random.choice(("shl", "shr", "sar", "rol", "ror"))
        count = self.random.choice(("cl", str(self.random.randrange(64))))
        return [f"{name} {self.register(bits)}, {count}", self._two("add", bits)]

    def _multiply(self):
        form = self.random.choice(
            (f"mul {self.register()}", f"imul {self.register()}, {self.memory()}",
             f"imul {self.register(32)}, {self.register(32)}, {self.value(31)}")
        )  # fmt: skip
        return [form, self._two("add", 64)]

    def _divide(self):
        return [
            "xor edx, edx", f"mov r8d, {self.random.randrange(1, 1 << 31)}", "div r8",
            self._two("add", 64),
        ]  # fmt: skip

    def _condition(self):
        name = self.random.choice(CONDITIONS)
        return [self.random.choice((
            f"set{name} {self.register(8)}", f"set{name} {self.memory(8)}",
            f"cmov{name} {self.register()}, {self.memory()}",
            f"cmov{name} {self.register(32)}, {self.register(32)}",
        ))]  # fmt: skip

    def _branch(self):
        label = self.label()
        return [f"j{self.random.choice(CONDITIONS)} {label}", *self._arithmetic(), f"{label}:"]

    def _loop(self):
        label = self.label()
        count = self.random.randrange(1, 40)
        body = [f"add r8, {self.value(31)}", "xor r9, r8", "rol r9, 7", "add r10, r9"]
        return [f"mov ecx, {count}", f"{label}:", *body, f"loop {label}", "test ecx, ecx"]

    def _call(self):
        over, function = self.label(), self.label()
        return [
            f"jmp {over}", f"{function}:", *self._arithmetic(), "ret", f"{over}:",
            f"call {function}",
        ]  # fmt: skip

    def _stack(self):
        first, second = self.register(), self.register()
        return [f"push {first}", f"push {self.value(31)}", f"pop {second}", f"pop {first}"]

    def _string(self):
        name = self.random.choice(("movsb", "movsq", "stosb", "stosd", "lodsw"))
        count = self.random.randrange(70)
        return [
            f"mov ecx, {count}", self.random.choice(("cld", "cld", "std")) if count < 30 else "cld",
            f"lea rsi, [rbx + {DATA_SIZE // 2}]", f"lea rdi, [rbx + {DATA_SIZE // 4}]",
            f"rep {name}", "cld",
        ]  # fmt: skip

    def _compare_strings(self):
        name = self.random.choice(("repe cmpsb", "repne scasb"))
        return [
            "mov ecx, 50", "cld", f"lea rsi, [rbx + {DATA_SIZE // 2}]",
            f"lea rdi, [rbx + {DATA_SIZE // 4}]", name,
        ]  # fmt: skip

    def _atomic(self):
        return [self.random.choice((
            f"lock add {self.memory()}, {self.register()}",
            f"lock xadd {self.memory()}, {self.register()}",
            f"xchg {self.memory()}, {self.register()}",
            f"lock cmpxchg {self.memory()}, {self.register()}",
            f"lock inc {self.memory(32)}",
        ))]  # fmt: skip

    def _bit(self):
        name = self.random.choice(("bts", "btr", "btc", "bt"))
        return [f"{name} {self.register()}, {self.random.randrange(64)}", self._two("add", 32)]

    def _swap(self):
        return [self.random.choice((
            f"bswap {self.register()}", f"xchg {self.register()}, {self.register()}", "cdqe", "cqo",
            "clc", "stc", "cmc",
        ))]  # fmt: skip

    def _count(self):
        return [f"popcnt {self.register()}, {self.memory()}"]

    def _vector(self):
        name = self.random.choice(("paddq", "pxor", "psubb", "pand", "punpcklbw", "pmuludq"))
        left, right = (f"xmm{self.random.randrange(8)}" for _ in range(2))
        offset = self.random.randrange(0, DATA_SIZE - 16)
        return [f"{name} {left}, {right}", f"movdqu [rbx + {offset}], {left}"]

    def _float(self):
        name = self.random.choice(("addsd", "mulsd", "subsd", "divsd", "sqrtsd"))
        left, right = (f"xmm{self.random.randrange(8)}" for _ in range(2))
        return [
            f"cvtsi2sd {left}, {self.register(32)}", f"cvtsi2sd {right}, {self.register(32)}",
            f"{name} {left}, {right}",
        ]  # fmt: skip

    # ---- ring 0 -----------------------------------------------------------

    def _msr(self):
        value = self.random.getrandbits(40)
        return [
            f"mov ecx, {self.random.choice(ADDRESS_MSRS):#x}", f"mov eax, {value & 0xFFFFFFFF}",
            f"mov edx, {value >> 32}", "wrmsr", "xor eax, eax", "xor edx, edx", "rdmsr",
        ]  # fmt: skip

    def _control(self):
        register = self.register()
        return [self.random.choice((
            f"mov cr2, {register}", f"mov {register}, cr0", f"mov {register}, cr3",
            f"mov {register}, cr4", f"mov {register}, cr3\nmov cr3, {register}",
            f"invlpg [rbx + {self.random.randrange(DATA_SIZE)}]", "clts",
        ))]  # fmt: skip

    def _flags(self):
        # IF stays off; AF would show what a logical instruction left there.
        return [self._two("add", 64), "pushfq", f"pop {self.register()}"]

    def _segment(self):
        return [self.random.choice((
            "mov eax, 0x10\nmov ds, eax", "xor eax, eax\nmov es, eax", "mov eax, ds", "swapgs",
            "mov eax, 0x10\nmov fs, eax", f"mov {self.register()}, cs",
        ))]  # fmt: skip

    def _table(self):
        offset = self.random.randrange(0, DATA_SIZE - 16)
        return [self.random.choice((f"sgdt [rbx + {offset}]", f"sidt [rbx + {offset}]"))]

    def _port(self):
        return [f"mov al, {self.random.getrandbits(7)}", "out 0x10, al", "in al, 0x11"]


UNPRIVILEGED = (
    "arithmetic", "arithmetic", "logic", "load", "extend", "one", "shift", "multiply", "divide",
    "condition", "branch", "loop", "call", "stack", "string", "compare_strings", "atomic", "bit",
    "swap",
)  # fmt: skip
VECTORS = ("count", "vector", "float")
PRIVILEGED = ("msr", "control", "flags", "segment", "table", "port")
