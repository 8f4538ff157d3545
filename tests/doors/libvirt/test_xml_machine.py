"""A domain's XML as a machine, and a machine as a domain."""

import random
import time
from pathlib import Path

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.control.host.client import Host
from ringzero.doors.libvirt.xml.devices import parse_device
from ringzero.doors.libvirt.xml.domain import DOMAIN
from ringzero.doors.libvirt.xml.facts import MachineFacts, domain
from ringzero.doors.libvirt.xml.machine import Abilities, attachment, definition
from ringzero.doors.libvirt.xml.tree import parse, render
from ringzero.errors import ConfigError, InvalidValueError
from ringzero.units import MIB
from tests.chance import FUZZ, seed
from tests.doors.libvirt.documents import DOCUMENTS, of_kind, validate

UUID = "015d9b27-2460-498f-b445-0534630c8fa7"


def xml(body="", devices="", os="<os><type>hvm</type><kernel>/k</kernel></os>", kind="kvm"):
    return DOMAIN.parse(
        f"<domain type='{kind}'><name>a</name><memory unit='MiB'>256</memory>{os}{body}"
        f"<devices>{devices}</devices></domain>"
    )


def config(found):
    return MachineConfig.create(name=found.name, **found.fields)


def defined(*arguments, **named):
    found = definition(xml(*arguments, **named))
    return config(found), found.warnings


DISK = "<disk type='file'><driver type='qcow2'/><source file='/a'/><target dev='vda'/></disk>"


@pytest.mark.parametrize("name", of_kind("domain"))
def test_domains_of_real_clients_become_machines(name):
    sent = DOMAIN.parse(DOCUMENTS[name])
    found = definition(sent)
    machine = config(found)
    assert machine.name == sent.name
    assert machine.memory == sent.memory
    # Plain data: a machine's directory and a socket take them.
    assert config_from_tree(config_to_tree(machine)) == machine
    attached = [d for d in sent.disks if d.path is not None]
    assert {str(d.path) for d in machine.disks} == {d.path for d in attached}
    # And back: what is told of the machine describes the same one.
    for number in (None, 7):
        told = domain(MachineFacts(sent.name, UUID, machine, id=number, sent=sent))
        assert config(definition(DOMAIN.parse(DOMAIN.render(told)))) == machine
        assert (told.id, told.uuid) == (number, UUID)


@pytest.mark.peer
def test_what_is_told_of_machines_is_valid(tmp_path):
    told = []
    for name in of_kind("domain"):
        sent = DOMAIN.parse(DOCUMENTS[name])
        machine = config(definition(sent))
        told += [
            DOMAIN.render(domain(MachineFacts("m", UUID, machine, id=number, sent=sent)))
            for number in (None, 7)
        ]
    told += [
        DOMAIN.render(domain(MachineFacts("full", UUID, FULL, id=number, engine=engine)))
        for number, engine in ((None, "soft"), (1, "kvm"))
    ]
    validate(tmp_path, told)


FULL = MachineConfig.create(
    name="full",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd",
    command_line="quiet",
    memory="1G",
    cpus=2,
    cpu="max",
    disks=["/a.qcow2,format=qcow2", "/b.img,ro,format=raw", "/dev/sdb,format=raw"],
    nets=[
        "user,port=127.0.0.1:2222:22,port=8000-8003:80-83,port=53:53/udp",
        "default,mac=02:00:00:00:00:01",
        "bridge=br0",
        "tap=tap0",
        "none",
        "socket=/x,mtu=9000,queues=2,rate=1M",
    ],
    shares=["/src:/src", "/data:/data:ro,transport=auto"],
    vsock="/run/v,cid=7",
    agent=True,
)


def test_a_machine_of_ours_as_a_domain():
    told = domain(MachineFacts("full", UUID, FULL, id=1, engine="kvm", title="t"))
    assert (told.type, told.title, told.memory, told.vcpus) == ("kvm", "t", 1024 * MIB, 2)
    assert [d.target for d in told.disks] == ["vda", "vdb", "vdc"]
    assert [d.type for d in told.disks] == ["file", "file", "block"]
    assert [d.alias for d in told.disks] == ["disk0", "disk1", "disk2"]
    assert [n.target for n in told.interfaces] == ["net", "net1", "net2", "net3", "net4", "net5"]
    assert told.cpu.model == "max"
    assert told.vsock.cid == 7
    ranges = {f.protocol: f.ranges for f in told.interfaces[0].port_forwards}
    assert [(r.start, r.end, r.to) for r in ranges["tcp"]] == [(2222, None, 22), (8000, 8003, 80)]
    assert [(r.start, r.end, r.to) for r in ranges["udp"]] == [(53, None, 53)]
    assert told.channels[0].target_state == "disconnected"
    # Numbers and names are those of a machine that runs.
    still = domain(MachineFacts("full", UUID, FULL))
    assert (still.type, still.id, still.disks[0].alias) == ("qemu", None, None)
    assert still.interfaces[0].target is None


def test_the_program_that_runs_it_is_told():
    sent = xml(devices="<emulator>/usr/bin/qemu-system-x86_64</emulator>")
    machine = config(definition(sent))
    assert domain(MachineFacts("a", UUID, machine, sent=sent)).emulator is None
    facts = MachineFacts("a", UUID, machine, emulator="/usr/bin/ringzero", sent=sent)
    assert domain(facts).emulator == "/usr/bin/ringzero"


def test_the_action_takes_what_is_defined(tmp_path):
    """A domain becomes a machine of the host's, whose description is told as the same domain."""
    found = definition(xml(devices=DISK + "<interface type='user'/>"))
    host = Host(tmp_path)
    name = host.call("define", {"config": found.fields, "name": found.name, "serial": found.serial})
    machine = config_from_tree(host.call("inspect", {}, name)["config"])
    told = domain(MachineFacts(name, UUID, machine))
    assert [d.path for d in told.disks] == ["/a"]
    (net,) = told.interfaces
    assert (net.type, net.mac) == ("user", machine.nets[0].mac)


def test_formats_that_the_content_tells_are_told():
    machine = MachineConfig.create(name="a", kernel="/k", disks=["/a"])
    told = domain(MachineFacts("a", UUID, machine, formats={Path("/a"): "qcow2"}))
    assert told.disks[0].format == "qcow2"


def test_what_came_and_went_since():
    sent = xml(devices=DISK + "<disk type='file' device='cdrom'><target dev='sda'/></disk>")
    machine = MachineConfig.create(name="a", kernel="/k", disks=["/new,format=raw"], nets=["user"])
    told = domain(MachineFacts("a", UUID, machine, sent=sent))
    assert [(d.path, d.target) for d in told.disks] == [(None, "sda"), ("/new", "vdb")]
    assert [n.type for n in told.interfaces] == ["user"]


def test_many_disks_have_names():
    disks = [f"/{n},format=raw" for n in range(16)]
    machine = MachineConfig.create(name="a", kernel="/k", disks=disks)
    told = domain(MachineFacts("a", UUID, machine))
    assert told.disks[15].target == "vdp"


def test_a_screen_is_told_as_it_was_sent():
    sent = xml(devices="<graphics type='vnc' port='-1'/><video><model type='vga'/></video>")
    machine = config(definition(sent))
    for number in (None, 1):
        told = domain(MachineFacts("a", UUID, machine, id=number, sent=sent))
        # Nobody listens: it has no port.
        assert (told.graphics, told.videos) == (sent.graphics, sent.videos)


def test_memory_is_rounded_to_pages():
    found = definition(
        DOMAIN.parse(
            "<domain type='qemu'><name>a</name><memory unit='bytes'>100000001</memory><os>"
            "<type>hvm</type><kernel>/k</kernel></os></domain>"
        )
    )
    assert config(found).memory == 100003840


@pytest.mark.parametrize(
    ("interface", "network", "target"),
    [
        ("<interface type='user'/>", "user", ""),
        ("<interface type='network'><source network='lan'/></interface>", "lan", ""),
        ("<interface type='bridge'><source bridge='br0'/></interface>", "bridge", "br0"),
        ("<interface type='ethernet'><target dev='tap0'/></interface>", "tap", "tap0"),
    ],
)
def test_interfaces(interface, network, target):
    machine, warnings = defined(devices=interface)
    (net,) = machine.nets
    assert (net.network, net.target, warnings) == (network, target, ())


def test_an_interface_with_everything():
    machine, warnings = defined(
        devices="<interface type='user'><mac address='52:54:00:AB:cd:01'/><model type='e1000'/>"
        "<mtu size='9000'/><driver queues='2'/><link state='down'/><bandwidth><inbound "
        "average='100'/><outbound average='200' burst='50'/></bandwidth><portForward proto='tcp'>"
        "<range start='2222' to='22'/><range start='80' end='81'/><range start='90' exclude='yes'/>"
        "</portForward></interface>"
    )
    (net,) = machine.nets
    assert (net.mac, net.mtu, net.queues) == ("52:54:00:ab:cd:01", 9000, 2)
    assert (net.rate, net.burst) == (102400, 51200)
    assert [(p.port, p.guest_port) for p in net.ports] == [(2222, 22), (80, 80), (81, 81)]
    assert len(warnings) == 4


def test_folders():
    machine, warnings = defined(
        devices="<filesystem><source dir='/src'/><target dir='/src'/><readonly/></filesystem>"
        "<filesystem><source dir='/data'/><target dir='tag'/></filesystem>"
    )
    assert [(s.target, s.read_only) for s in machine.shares] == [
        ("/src", True),
        ("/mnt/tag", False),
    ]
    assert any("/mnt/tag" in warning for warning in warnings)


def test_the_serial_line_goes_into_a_file():
    for device in (
        "<serial type='file'><source path='/log'/></serial>",
        "<console type='pty'><log file='/log'/></console>",
    ):
        assert definition(xml(devices=device)).serial == "/log"
    assert definition(xml(devices="<serial type='pty'/>")).serial is None


def test_the_agents_channel():
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    assert defined(devices=channel)[0].agent
    assert not defined()[0].agent


@pytest.mark.parametrize(
    ("cpu", "kvm", "model"),
    [
        ("", True, None),
        ("<cpu mode='host-model'/>", True, None),
        ("<cpu mode='host-passthrough'/>", True, "host"),
        ("<cpu mode='host-passthrough'/>", False, "max"),
        ("<cpu mode='maximum'/>", False, "max"),
        ("<cpu mode='custom'><model>x86-64-v3</model></cpu>", False, "x86-64-v3"),
        ("<cpu mode='custom'><model>EPYC</model></cpu>", False, None),
    ],
)
def test_processors(cpu, kvm, model):
    found = definition(xml(cpu), Abilities(cpus=("max", "x86-64-v3"), kvm=kvm))
    assert config(found).cpu == model
    assert bool(found.warnings) == ("EPYC" in cpu)


def test_disks_are_in_the_order_of_their_names():
    devices = "".join(
        f"<disk type='file' device='{kind}'><source file='/{name}'/><target dev='{name}'/></disk>"
        for name, kind in (("vdaa", "disk"), ("sda", "cdrom"), ("vdb", "disk"), ("vda", "disk"))
    )
    machine, _ = defined(devices=devices)
    assert [str(d.path) for d in machine.disks] == ["/vda", "/vdb", "/vdaa", "/sda"]
    assert [d.read_only for d in machine.disks] == [False, False, False, True]
    # libvirt takes a disk for raw whose format it is not told.
    assert {d.format for d in machine.disks} == {"raw"}
    boots = "<os><type>hvm</type><boot dev='cdrom'/></os>"
    machine, _ = defined(devices=devices, os=boots)
    assert str(machine.disks[0].path) == "/sda"
    assert machine.boot_entry == ""


def test_volumes_are_looked_up():
    disk = "<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>"
    found = definition(xml(devices=disk), volumes=lambda pool, volume: f"/{pool}/{volume}")
    assert str(config(found).disks[0].path) == "/p/v"
    told = domain(MachineFacts("a", UUID, config(found), sent=xml(devices=disk)))
    assert (told.disks[0].type, told.disks[0].volume) == ("volume", "v")


@pytest.mark.parametrize(
    ("warned", "arguments"),
    [
        ("devices/graphics", {"devices": "<graphics type='vnc'/>"}),
        ("devices/sound", {"devices": "<sound model='ich9'/>"}),
        ("devices/tpm", {"devices": "<tpm><backend type='emulator'/></tpm>"}),
        ("devices/channel", {"devices": "<channel type='spicevmc'/>"}),
        ("devices/disk/iotune", {"devices": DISK.replace("</disk>", "<iotune/></disk>")}),
        ("currentMemory", {"body": "<currentMemory unit='MiB'>128</currentMemory>"}),
        ("vcpu/@current", {"body": "<vcpu current='1'>2</vcpu>"}),
        ("clock/@offset", {"body": "<clock offset='localtime'/>"}),
        ("memoryBacking", {"body": "<memoryBacking><hugepages/></memoryBacking>"}),
        ("os/loader", {"os": "<os firmware='efi'><type>hvm</type></os>", "devices": DISK}),
        ("empty drive", {"devices": "<disk device='cdrom'><target dev='sda'/></disk>"}),
        ("a floppy", {"devices": "<disk device='floppy'><source file='/f'/></disk>"}),
        ("not ide", {"devices": DISK.replace("dev='vda'", "dev='hda' bus='ide'")}),
        (
            "qemu:commandline",
            {"body": "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>"},
        ),
    ],
)
def test_what_is_not_carried_out_is_told(warned, arguments):
    _, warnings = defined(**arguments)
    assert any(warned in warning for warning in warnings), warnings


def test_what_asks_for_nothing_is_not_told():
    body = "<features><acpi/><hap/></features><pm><suspend-to-mem enabled='no'/></pm>"
    devices = "<controller type='pci' model='pcie-root'/><memballoon model='virtio'/>"
    assert defined(body, devices)[1] == ()


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        ("domain type 'xen'", {"kind": "xen"}),
        ("os type 'linux'", {"os": "<os><type>linux</type><kernel>/k</kernel></os>"}),
        (
            "architecture 'aarch64'",
            {"os": "<os><type arch='aarch64'>hvm</type><kernel>/k</kernel></os>"},
        ),
        ("nothing to boot", {"os": "<os><type>hvm</type></os>"}),
        ("type 'network'", {"devices": "<disk type='network'><source protocol='rbd'/></disk>"}),
        ("no source", {"devices": "<disk type='file'><target dev='vda'/></disk>"}),
        ("type 'direct'", {"devices": "<interface type='direct'><source dev='eth0'/></interface>"}),
        ("type 'network'", {"devices": "<interface type='network'/>"}),
        ("type 'ram'", {"devices": "<filesystem type='ram'><target dir='/t'/></filesystem>"}),
        ("MAC", {"devices": "<interface type='user'><mac address='zz'/></interface>"}),
        (
            "at most",
            {
                "devices": "<interface type='user'><portForward proto='tcp'><range start='1' "
                "end='99999999999'/></portForward></interface>"
            },
        ),
        ("CPUs", {"body": "<vcpu>100000</vcpu>"}),
    ],
)
def test_what_cannot_work_is_refused(fault, arguments):
    with pytest.raises(ConfigError) as caught:
        definition(xml(**arguments))
    assert fault in caught.value.message


def test_all_faults_are_told_together():
    with pytest.raises(ConfigError) as caught:
        definition(xml(kind="xen", devices="<interface type='direct'/>", os="<os/>"))
    assert len(caught.value.faults) == 3


def test_memory_is_needed_and_not_too_little():
    for memory, fault in (("", "no memory"), ("<memory>1024</memory>", "memory")):
        boots = "<os><type>hvm</type><kernel>/k</kernel></os>"
        text = f"<domain type='kvm'><name>a</name>{memory}{boots}</domain>"
        with pytest.raises(ConfigError) as caught:
            definition(DOMAIN.parse(text))
        assert fault in caught.value.message


ODD = (
    *("", " ", "0", "-1", "1", "99999999999999999999", "x" * 300, "/", "a/../b", "\0", "\ud800"),
    *("é", "yes", "qemu", "network", "user", "\n", "::", "0x10", "1e9"),
)


def mutated(root, chance):
    """Change a document somewhere: a value, an element more or less."""
    every = [root]
    for item in every:
        every += list(item)
    item = chance.choice(every)
    what = chance.randrange(5)
    if what == 0 and item.attributes:
        item.attributes[chance.choice(list(item.attributes))] = chance.choice(ODD)
    elif what == 1:
        item.content = [chance.choice(ODD)]
    elif what == 2 and item.content:
        item.content.append(chance.choice(item.content))
    elif what == 3 and item.content:
        del item.content[chance.randrange(len(item.content))]
    else:
        item.content.append(chance.choice(every).copy())


def test_fuzz_of_domains():
    """Damaged domains are machines, or refused; what is told of one reads as the same one."""
    chance, names = random.Random(seed()), of_kind("domain")
    good = 0
    for _ in range(150 * FUZZ):
        root = parse(DOCUMENTS[chance.choice(names)])
        for _ in range(chance.randrange(1, 5)):
            mutated(root, chance)
        try:
            sent = DOMAIN.parse(render(root))
            machine = config(definition(sent))
        except (InvalidValueError, ConfigError):
            continue
        good += 1
        told = DOMAIN.render(domain(MachineFacts(sent.name, UUID, machine, id=1, sent=sent)))
        assert config(definition(DOMAIN.parse(told))) == machine
    assert good > 10


def test_devices_that_are_attached():
    kind, item = parse_device(DOCUMENTS["virsh-attach-disk"])
    assert kind == "disk"
    disk, warnings = attachment(item)
    assert (str(disk.path), disk.format, disk.read_only) == (item.file, item.format or "raw", False)
    assert warnings == ()
    kind, item = parse_device(DOCUMENTS["vagrant-interface"])
    assert (kind, item.alias) == ("interface", "ua-net-0")
    net, warnings = attachment(item)
    assert (net.network, warnings) == ("vagrant-libvirt", ())
    kind, item = parse_device("<filesystem><source dir='/src'/><target dir='/src'/></filesystem>")
    assert attachment(item)[0].target == "/src"
    _, item = parse_device("<disk><source file='/a'/><iotune/></disk>")
    assert attachment(item)[1] == ("iotune: not carried out",)
    _, item = parse_device("<disk type='volume'><source pool='p' volume='v'/></disk>")
    assert str(attachment(item, lambda pool, volume: f"/{pool}/{volume}")[0].path) == "/p/v"


@pytest.mark.parametrize(
    "document",
    [
        "<disk type='network'/>",
        "<disk device='cdrom'/>",
        "<disk device='floppy'><source file='/f'/></disk>",
        "<interface type='direct'/>",
        "<interface type='user'><mac address='zz'/></interface>",
        "<filesystem type='ram'/>",
        "<filesystem><source dir='/src'/><target dir='/a/../b'/></filesystem>",
    ],
)
def test_devices_that_cannot_be_attached(document):
    with pytest.raises(ConfigError):
        attachment(parse_device(document)[1])


def test_devices_that_nobody_knows():
    with pytest.raises(InvalidValueError, match="no device is called <toaster>"):
        parse_device("<toaster/>")
    for name in ("serial", "console", "channel", "graphics", "video", "rng", "memballoon", "vsock"):
        assert parse_device(f"<{name} type='pty'/>")[0] == name


LARGE = {
    "disks": {"devices": "<disk><source file='/a'/></disk>" * 4_000},
    "drives": {"devices": "<disk device='cdrom'/>" * 5_000},
    "interfaces": {"devices": "<interface type='user'/>" * 5_000},
    "ports": {
        "devices": "<interface type='user'><portForward proto='tcp'>"
        + "<range start='1' end='512'/>" * 5_000
        + "</portForward></interface>"
    },
    "boot devices": {"os": "<os><type>hvm</type>" + "<boot dev='hd'/>" * 5_000 + "</os>"},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_domains_are_refused_soon(name):
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        definition(xml(**LARGE[name]))
    assert time.process_time() - began < 10
    assert len(caught.value.faults) <= 101


def test_many_warnings_are_few_lines():
    body = "".join(f"<unknown{n}/>" for n in range(1000))
    warnings = definition(xml(body)).warnings
    assert len(warnings) == 101
    assert warnings[-1] == "and 900 more"
