"""The import order of the layers, of the rooms inside them, and of modules; a light start.

Read from the source. Imports inside functions and for the type checker count, and so do
names of modules in strings, by which registries import. What the layout still owes is
listed here, and each list may only become shorter.
"""

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ringzero

ROOT = Path(ringzero.__file__).parent
# Each layer imports only itself and what stands before it.
ORDER = (
    "version", "basedirs", "errors", "digest", "units", "records", "plain", "settings", "registry",
    "config", "api", "host", "core", "disk", "storage", "native", "isa", "jit", "image", "engine",
    "devices", "board", "net", "share", "vm", "build", "control", "deployment", "remote",
    "doors", "cli", "testing",
)  # fmt: skip
# Parts that a part must not import, whatever the order says.
FORBIDDEN = {
    "devices": ("engine", "jit", "isa", "native"),
    "disk": ("devices",),
    # What generates code knows neither guest nor host, what encodes it for the host no guest.
    "jit.compile": ("isa", "jit.host", "jit.x86"),
    "jit.host": ("isa", "jit.compile", "jit.x86"),
    **{
        f"jit.{name}": ("isa.x86", "jit.x86")
        for name in (
            "assembly",
            "blocks",
            "build",
            "compile_unit",
            "doors",
            "emit",
            "entry",
            "exits",
            "guest",
            "stencil",
            "tables",
            "workers",
        )
    },
    **{
        f"engine.soft.{name}": ("engine.soft.x86", "isa.x86", "jit.x86")
        for name in ("contract", "code", "translations")
    },
    "isa.x86.table": ("isa.x86.privileged",),
    # The host's half needs no process of a machine's.
    "control.host": ("control.machine",),
    "control.machine.keeper": tuple(f"control.machine.{m}" for m in ("life", "fork", "actions")),
    "control.machine.life": tuple(f"control.machine.{m}" for m in ("fork", "actions", "vmm")),
    "control.machine.fork": tuple(f"control.machine.{m}" for m in ("actions", "vmm")),
    "control.machine.actions": ("control.machine.vmm",),
}
# Arrows that point up, or to what is forbidden: (importer, imported).
OWED_ARROWS: set[tuple[str, str]] = set()
# Arrows that close a circle of modules: without them there is none.
OWED_CIRCLES = {
    # A machine makes snapshots and a snapshot machines, both in one call of the public interface.
    ("vm.saved.snapshot", "vm.machine"),
}
# What `import ringzero` and `--help` must not load.
HEAVY = ("llvmlite", "ringzero.jit", "ringzero.isa", "ringzero.engine.soft", "lz4", "zstandard")


def sources(root):
    """Return the files of the package in `root` by the names of their modules."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources(ROOT)


def within(name, part):
    """Whether a module is `part` or lies in it."""
    return name == part or name.startswith(f"{part}.")


def module_names(node):
    """Return the full names of the modules, or of what they define, that a node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def arrows(modules, *, strings):
    """Return (importer, imported, line) for all modules, by their names below ringzero.

    With `strings`, modules that a string names count as imported.
    """
    found = []
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            targets = module_names(node)
            text = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            if strings and isinstance(text, str) and re.fullmatch(r"ringzero(\.\w+)+", text):
                targets = [text]
            for target in targets:
                top, _, other = target.partition(".")
                if top != "ringzero":
                    continue
                if other not in modules:
                    other = other.rpartition(".")[0]
                if other in modules and other != name:
                    found.append((name, other, node.lineno))
    return found


def violations(modules):
    """Return the arrows that the layers' order or FORBIDDEN does not allow, and their lines."""
    found = {}
    for name, other, line in arrows(modules, strings=True):
        mine, its = name.partition(".")[0], other.partition(".")[0]
        if not mine or mine == "__main__" or not its:
            continue
        against = any(
            within(name, part) and within(other, bad)
            for part, several in FORBIDDEN.items()
            for bad in several
        )
        if ORDER.index(its) > ORDER.index(mine) or against:
            found[name, other] = line
    return found


def circle(pairs):
    """Return one circle of modules, or None."""
    graph = {}
    for name, other in pairs:
        graph.setdefault(name, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        return fault.args[1]
    return None


def test_every_layer_has_a_place():
    assert {name.partition(".")[0] for name in MODULES} - {"", "__main__"} == set(ORDER)


def test_imports_point_down():
    found = violations(MODULES)
    new = [f"{name}:{line} imports {other}" for (name, other), line in found.items()
           if (name, other) not in OWED_ARROWS]  # fmt: skip
    assert new == []
    assert set(found) >= OWED_ARROWS, "paid: take it off the list"


def test_modules_import_one_another_in_no_circle():
    pairs = {(name, other) for name, other, _ in arrows(MODULES, strings=False)}
    rest = pairs - OWED_CIRCLES
    assert circle(rest) is None
    for owed in sorted(OWED_CIRCLES):
        assert owed in pairs and circle(rest | {owed}), f"paid: take {owed} off the list"


def test_only_jit_imports_llvmlite():
    offenders = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if any(within(target, "llvmlite") for target in module_names(node))
        and not within(name, "jit")
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from ringzero.devices.virtio import block\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ringzero.devices.virtio\n",
        "PLUGINS = Registry('disk', 'ringzero.devices.virtio')\n",
    ],
)
def test_the_check_sees_a_violation(tmp_path, text):
    for name in ("disk/wrong.py", "devices/virtio/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text if "wrong" in name else "")
    assert list(violations(sources(tmp_path))) == [("disk.wrong", "devices.virtio")]


def test_the_check_sees_a_circle(tmp_path):
    for mine, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (tmp_path / f"{mine}.py").write_text(f"def f():\n    from ringzero.{other} import f\n")
    pairs = [(name, other) for name, other, _ in arrows(sources(tmp_path), strings=False)]
    assert set(circle(pairs)) == {"one", "two", "three"}


COMMANDS = {
    "import": "import ringzero",
    "help": "import sys; sys.argv = ['ringzero', '--help']\n"
    "import runpy\n"
    "try: runpy.run_module('ringzero', run_name='__main__')\n"
    "except SystemExit as end: assert not end.code",
}


def child(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_light_start_loads_nothing_heavy(command):
    tail = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = child(COMMANDS[command] + tail)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "ringzero.version" in loaded
    assert [m for m in loaded if m.startswith(HEAVY)] == []


@pytest.mark.speed
@pytest.mark.parametrize("command", COMMANDS)
def test_a_light_start_is_quick(command):
    """User and system time, the best of five: Python itself needs about 15 ms of the 150."""
    report = (
        "\nimport resource\nused = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('\\n' + str(used.ru_utime + used.ru_stime))"
    )
    seconds = min(
        float(child(COMMANDS[command] + report).stdout.splitlines()[-1]) for _ in range(5)
    )
    print(f"{command}: {seconds * 1000:.0f} ms")
    assert seconds < 0.150
