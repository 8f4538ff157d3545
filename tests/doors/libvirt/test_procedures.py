"""The table of procedures: complete, and of the types that real clients send."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.doors.libvirt import procedures
from ringzero.doors.libvirt.limits import LIMITS
from ringzero.doors.libvirt.procedures import notation, qemu, remote
from ringzero.doors.libvirt.procedures.notation import STRUCTURES, Fields, Program, codec
from ringzero.doors.libvirt.values import (
    DomainHandle,
    Parameter,
    ParameterKind,
    PoolHandle,
    uuid_bytes,
    uuid_text,
)
from ringzero.doors.libvirt.wire import (
    Packet,
    PacketStatus,
    PacketType,
    split_descriptors,
)
from ringzero.errors import ProtocolError
from tests.chance import FUZZ, seed
from tests.doors.libvirt.recordings import conversations, packets

ALL = [found for each in (remote(), qemu()) for found in each.procedures.values()]
UUID = bytes(range(16))


def test_all_of_libvirt_9_0_are_there():
    assert sorted(remote().procedures) == list(range(1, 444))
    assert sorted(qemu().procedures) == list(range(1, 8))
    assert len(remote().by_name) == 443


def test_every_type_is_known():
    for procedure in ALL:
        assert procedure.arguments.types is not None
        assert not procedure.event or not procedure.results.types
    for kind, types in STRUCTURES.values():
        assert len(kind._fields) == len(types.split()), kind


def test_streams_are_those_of_the_protocol():
    found = {p.name: p.stream for p in remote().procedures.values() if p.stream}
    assert found == {
        "DOMAIN_MIGRATE_PREPARE_TUNNEL": (True, False),
        "DOMAIN_MIGRATE_PREPARE_TUNNEL3": (True, False),
        "STORAGE_VOL_UPLOAD": (True, False),
        "STORAGE_VOL_DOWNLOAD": (False, True),
        "DOMAIN_SCREENSHOT": (False, True),
        "DOMAIN_OPEN_CONSOLE": (True, True),
        "DOMAIN_OPEN_CHANNEL": (True, True),
    }


def test_a_procedure_is_found_by_its_numbers():
    assert procedures.find(0x20008086, 23).name == "DOMAIN_LOOKUP_BY_NAME"
    assert procedures.find(0x20008087, 3).name == "DOMAIN_AGENT_COMMAND"
    assert procedures.find(0x20008086, 444) is None
    assert procedures.find(0x20008088, 1) is None


def decoded(packet):
    """Return the types of a packet's body, and the body; None for what is a stream's."""
    if packet.type in (PacketType.STREAM, PacketType.STREAM_HOLE):
        return None
    procedure = procedures.find(packet.program, packet.procedure)
    if procedure is None or packet.status is not PacketStatus.OK:
        return None
    body = packet.body
    if packet.type in (PacketType.CALL_WITH_FDS, PacketType.REPLY_WITH_FDS):
        _, body = split_descriptors(body)
    reply = packet.type in (PacketType.REPLY, PacketType.REPLY_WITH_FDS)
    return procedure.results if reply else procedure.arguments, body


def check(items):
    """Decode what was recorded wholly and encode it to the same bytes; count procedures."""
    seen = set()
    for name, packet in items:
        found = decoded(packet)
        if found is not None:
            fields, body = found
            assert fields.encode(fields.decode(body)) == body, (name, packet.procedure)
            seen.add((packet.program, packet.procedure))
    return seen


def test_what_real_clients_and_servers_send_is_understood():
    assert len(check(packets())) >= 205


def test_whole_recordings_are_understood():
    whole = list(conversations())
    if not whole:
        pytest.skip("RINGZERO_LIBVIRT_RECORDINGS names no folder with recordings")
    seen = set()
    for _, items in whole:
        seen |= check(items)
    assert len(seen) >= 208


def test_a_call_as_python_values():
    call = next(p for name, p in packets() if p.procedure == 23 and p.type is PacketType.CALL)
    assert remote().procedures[23].arguments.decode(call.body).keys() == {"name"}
    info = remote().procedures[6].results
    values = info.decode(next(p for _, p in packets() if p.procedure == 6 and p.body).body)
    assert values["model"].rstrip(b"\0") == b"x86_64"
    assert len(values["model"]) == 32


# Values of each type, for every field of every procedure.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
NUMBERS = {
    "int": st.integers(-(1 << 31), (1 << 31) - 1),
    "uint": st.integers(0, (1 << 32) - 1),
    "hyper": st.integers(-(1 << 63), (1 << 63) - 1),
    "uhyper": st.integers(0, (1 << 64) - 1),
    "char": st.integers(-128, 127),
    "uchar": st.integers(0, 255),
    "ushort": st.integers(0, 65535),
    "string": NAMES,
    "uuid": st.binary(min_size=16, max_size=16),
}
PARAMETERS = st.one_of(
    *[
        st.builds(Parameter, NAMES, st.just(kind), values)
        for kind, values in {
            ParameterKind.INT: NUMBERS["int"],
            ParameterKind.UINT: NUMBERS["uint"],
            ParameterKind.LLONG: NUMBERS["hyper"],
            ParameterKind.ULLONG: NUMBERS["uhyper"],
            ParameterKind.DOUBLE: st.floats(allow_nan=False),
            ParameterKind.BOOLEAN: st.integers(0, 1),
            ParameterKind.STRING: NAMES,
        }.items()
    ]
)


def values_of(kind):
    name, optional, exactly, bound = notation._TYPE.fullmatch(kind).groups()
    if exactly:
        return st.binary(min_size=int(bound), max_size=int(bound))
    if name == "opaque" or (name == "char" and bound):
        return st.binary(max_size=12)
    if name == "parameter":
        found = PARAMETERS
    elif name in NUMBERS:
        found = NUMBERS[name]
    else:
        made, types = STRUCTURES[name]
        found = st.builds(made, *map(values_of, types.split()))
    if optional:
        return st.none() | found
    return st.lists(found, max_size=2) if bound else found


TYPES = sorted({k for p in ALL for f in (p.arguments, p.results) for k in f.types.values()})


@pytest.mark.parametrize("kind", TYPES)
def test_values_of_every_type_come_back(kind):
    fields = Fields(f"value: {kind}")

    @settings(max_examples=20 * FUZZ)
    @given(values_of(kind))
    def check(value):
        assert fields.decode(fields.encode({"value": value})) == {"value": value}

    check()


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_has_a_use(name):
    assert name in ("STRING",) or any(
        f"[{name}]" in kind for kind in [*TYPES, *(types for _, types in STRUCTURES.values())]
    )


def test_lists_end_at_their_limit():
    names = Fields("names: string[TUNABLES]")
    assert names.decode(names.encode({"names": ["a"] * 16})) == {"names": ["a"] * 16}
    with pytest.raises(ProtocolError):
        names.encode({"names": ["a"] * 17})
    with pytest.raises(ProtocolError):
        names.decode(b"\0\0\0\x11" + b"\0\0\0\x01a\0\0\0" * 17)


def test_bad_values_have_no_form():
    domain = Fields("domain: domain")
    for bad in (
        DomainHandle("a", b"short"),
        DomainHandle("a\0", UUID),
        DomainHandle("a", UUID, 1 << 31),
    ):
        with pytest.raises(ProtocolError):
            domain.encode({"domain": bad})
    model = Fields("model: char[=32]")
    assert model.decode(model.encode({"model": b"x86_64"}))["model"] == b"x86_64".ljust(32, b"\0")
    with pytest.raises(ProtocolError):
        model.encode({"model": bytes(33)})


def test_names_are_checked():
    fields = Fields("name: string, flags: uint")
    for wrong in ({}, {"name": "a"}, {"name": "a", "flags": 0, "more": 1}):
        with pytest.raises(TypeError):
            fields.encode(wrong)


def test_what_follows_the_values_is_refused():
    with pytest.raises(ProtocolError):
        remote().procedures[23].arguments.decode(b"\0\0\0\x01a\0\0\0more")


def test_a_parameter_of_unknown_type_is_refused():
    with pytest.raises(ProtocolError):
        Fields("params: parameter[TUNABLES]").decode(bytes.fromhex("000000010000000000000008"))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, ParameterKind.BOOLEAN),
        (-1, ParameterKind.LLONG),
        (1, ParameterKind.ULLONG),
        (0.5, ParameterKind.DOUBLE),
        ("a", ParameterKind.STRING),
    ],
)
def test_parameters_of_python_values(value, kind):
    assert Parameter.of("p", value).kind is kind


@pytest.mark.parametrize(
    "text", ["x", "1 A", "1 A ()\n1 B ()", "1 A (a)", "1 A () -> (b: nothing)"]
)
def test_a_wrong_table_is_noticed(text):
    with pytest.raises((ValueError, KeyError)):
        for found in Program("p", 1, 1, [text]).procedures.values():
            assert found.arguments.types is not None
            assert found.results.types is not None


def test_types_that_are_none_are_noticed():
    with pytest.raises(ValueError, match="no type"):
        codec("domain[")


def test_uuids_as_text():
    assert uuid_text(UUID) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert uuid_bytes(uuid_text(UUID)) == UUID
    assert uuid_bytes(" 000102030405060708090A0B0C0D0E0F ") == UUID
    for bad in ("", "0001", "z" * 32, uuid_text(UUID) + "0"):
        with pytest.raises(ProtocolError):
            uuid_bytes(bad)
    with pytest.raises(ProtocolError):
        uuid_text(b"short")


def test_fuzz_of_the_procedures():
    """Damaged bodies, and any bytes for any procedure: values or a ProtocolError."""
    chance = random.Random(seed())
    real = [(found[0], found[1]) for _, packet in packets() if (found := decoded(packet))]
    every = [fields for p in ALL for fields in (p.arguments, p.results)]
    for number in range(6000 * FUZZ):
        fields, body = chance.choice(real)
        data = bytearray(body)
        if number % 3 == 0:
            fields = chance.choice(every)
        for _ in range(chance.randrange(1, 4)):
            if data:
                data[chance.randrange(len(data))] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data) + 1)]
        try:
            values = fields.decode(bytes(data))
        except ProtocolError:
            continue
        # A flag may be any number but 0; what was understood has one form.
        assert fields.decode(fields.encode(values)) == values


def test_lengths_that_are_not_there_cost_nothing():
    """A list that claims all it may have, and holds nothing, is refused at its first item."""
    for kind in ("domain[OBJECTS]", "parameter[STATISTICS]", "opaque[CPUMAPS]", "char[SASL]"):
        limit = LIMITS[kind.split("[")[1][:-1]]
        with pytest.raises(ProtocolError):
            Fields(f"value: {kind}").decode(limit.to_bytes(4, "big"))


def test_a_pool_is_no_domain():
    pool = Fields("pool: pool")
    body = pool.encode({"pool": PoolHandle("p", UUID)})
    assert pool.decode(body)["pool"] == PoolHandle("p", UUID)
    with pytest.raises(ProtocolError):
        Fields("domain: domain").decode(body)


def test_a_packet_is_a_plain_tuple():
    packet = Packet(1, 2, 3, PacketType.CALL, 4, PacketStatus.OK)
    assert packet.body == b""
