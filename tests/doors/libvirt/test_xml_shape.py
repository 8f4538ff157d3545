"""Shapes: one table reads and writes, and nothing that was sent is lost."""

import pytest

from ringzero.doors.libvirt.xml.shape import (
    NUMBER,
    ON_OFF,
    PROSE,
    YES_NO,
    Extra,
    Flag,
    Many,
    One,
    Shape,
    Size,
    Texts,
    Value,
    Verbatim,
)
from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.units import KIB, MIB


@record
class Wheel:
    size: int
    extra: tuple[Extra, ...] = ()


@record
class Car:
    name: str
    text: str | None = None
    doors: int | None = None
    weight: int | None = None
    open: bool | None = None
    running: bool | None = None
    radio: bool = False
    colours: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    spare: Wheel | None = None
    wheels: tuple[Wheel, ...] = ()
    extra: tuple[Extra, ...] = ()


WHEEL = Shape("wheel", Wheel, {"size": Value("@size", NUMBER)})
CAR = Shape(
    "car",
    Car,
    {
        "name": Value("name"),
        "text": Value("text", PROSE),
        "doors": Value("body/doors", NUMBER),
        "weight": Size("weight", "KiB", "KiB"),
        "open": Value("body/roof/@open", YES_NO),
        "running": Value("engine/@state", ON_OFF),
        "radio": Flag("body/radio"),
        "colours": Texts("colour", "name"),
        "notes": Verbatim("notes"),
        "spare": One("boot/wheel", WHEEL),
        "wheels": Many("wheels/wheel", WHEEL),
    },
)
WHOLE = """
<car>
  <name> a </name> <text> b
 </text>
  <body><doors>0x5</doors><roof open="no"/><radio/></body>
  <weight unit="MiB">2</weight> <engine state="on"/>
  <colour name="red"/><colour name="blue"/>
  <notes><n:x xmlns:n="urn:n">y</n:x><z/></notes>
  <boot><wheel size="13"/></boot>
  <wheels><wheel size="15"/><wheel size="16"/></wheels>
</car>
"""


def test_everything_is_read_and_written():
    car = CAR.parse(WHOLE)
    assert car == Car(
        "a",
        " b\n ",
        5,
        2 * MIB,
        False,
        True,
        True,
        ("red", "blue"),
        ('<n:x xmlns:n="urn:n">y</n:x>\n', "<z/>\n"),
        Wheel(13),
        (Wheel(15), Wheel(16)),
    )
    assert CAR.parse(CAR.render(car)) == car
    assert list(CAR.unknown(car)) == []


def test_what_is_not_there_or_empty_is_none():
    for text in (
        "<car><name>a</name></car>",
        "<car><name>a</name><text/><weight/><body>"
        "<doors> </doors><roof open=''/></body><colour/><notes/><wheels/></car>",
    ):
        car = CAR.parse(text)
        assert car == Car("a")
        assert CAR.render(car) == "<car>\n  <name>a</name>\n</car>\n"


def test_what_is_not_understood_is_kept_and_told():
    text = (
        "<car new='1'><name lang='de'>a</name><body><mirror side='left'>x</mirror><doors>2</doors>"
        "</body><engine state='on' fuel='none'>hot</engine><wheels><wheel size='1' worn='no'>"
        "<nut/></wheel></wheels><trailer><load/></trailer><name>second</name></car>"
    )
    car = CAR.parse(text)
    assert sorted(CAR.unknown(car)) == [
        "@new",
        "body/mirror",
        "engine/@fuel",
        "engine/text()",
        "name",
        "name/@lang",
        "trailer",
        "wheels/wheel/@worn",
        "wheels/wheel/nut",
    ]
    again = CAR.parse(CAR.render(car))
    assert again == car
    document = CAR.render(car)
    for piece in ('side="left"', 'fuel="none"', ">hot<", 'worn="no"', "<nut/>", "<load/>"):
        assert piece in document


def test_names_of_namespaces_are_nothing_to_tell():
    car = CAR.parse("<car xmlns:q='urn:q'><name>a</name><q:x/></car>")
    assert list(CAR.unknown(car)) == ["q:x"]
    assert 'xmlns:q="urn:q"' in CAR.render(car)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("<weight>2</weight>", 2 * KIB),
        ("<weight unit='b'>5</weight>", 5),
        ("<weight unit='bytes'>5</weight>", 5),
        ("<weight unit='B'>5</weight>", 5),
        ("<weight unit='KB'>5</weight>", 5000),
        ("<weight unit='K'>5</weight>", 5 * KIB),
        ("<weight unit='M'>5</weight>", 5 * MIB),
        ("<weight unit='MB'>5</weight>", 5_000_000),
        ("<weight unit='GiB'>1</weight>", 1 << 30),
        ("<weight unit='T'>1</weight>", 1 << 40),
        ("<weight unit='PiB'>1</weight>", 1 << 50),
        ("<weight unit='EiB'> 1 </weight>", 1 << 60),
    ],
)
def test_sizes_have_libvirts_units(text, size):
    car = CAR.parse(f"<car><name>a</name>{text}</car>")
    assert car.weight == size
    assert CAR.parse(CAR.render(car)).weight == size


@pytest.mark.parametrize(
    "text",
    [
        "<weight unit='parsec'>1</weight>",
        "<weight>-1</weight>",
        "<weight>1.5</weight>",
        "<weight>heavy</weight>",
        "<weight unit='EiB'>8</weight>",
        f"<weight>{'9' * 5000}</weight>",
        f"<body><doors>{'9' * 5000}</doors></body>",
        "<body><doors>four</doors></body>",
        "<body><roof open='maybe'/></body>",
        "<engine state='yes'/>",
        "<wheels><wheel/></wheels>",
        "<wheels><wheel size='x'/></wheels>",
    ],
)
def test_wrong_values_are_refused_by_their_place(text):
    with pytest.raises(InvalidValueError) as caught:
        CAR.parse(f"<car><name>a</name>{text}</car>")
    assert "<" in caught.value.message
    assert len(caught.value.message) < 200


def test_a_name_is_needed():
    with pytest.raises(InvalidValueError, match="<car> without name"):
        CAR.parse("<car/>")
    with pytest.raises(InvalidValueError, match="in the place of <car>"):
        CAR.parse("<bus/>")
