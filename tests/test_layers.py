"""The import order of the layers, read from the source; and that a light import stays light."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero

ROOT = Path(ringzero.__file__).parent
# Each layer imports only itself and what stands before it.
ORDER = (
    "errors", "units", "records", "settings", "registry", "config", "host", "core", "disk",
    "native", "isa", "jit", "engine", "devices", "board", "net", "vm", "image", "control", "cli",
)  # fmt: skip
# Names of layers (or parts of one) that a layer must not import, whatever the order says.
FORBIDDEN = {
    "devices": ("engine", "jit", "isa", "native"),
    "disk": ("devices",),
    "isa": ("jit",),
    "native": ("isa", "jit"),
}
# What `import ringzero` and `--help` must not load.
HEAVY = ("llvmlite", "ringzero.jit", "ringzero.isa", "ringzero.engine.soft", "lz4", "zstandard")
SOURCES = sorted(ROOT.rglob("*.py"))


def layer(module):
    """Return the layer of a dotted module name below ringzero; the package itself is the top."""
    return module.split(".")[1] if "." in module else "ringzero"


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Return (line, module) for every import in a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "ringzero":
                found += [(node.lineno, f"ringzero.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module))
    return found


def is_typing_only(path, line):
    """Whether a line is inside `if TYPE_CHECKING:`."""
    return any(
        node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )


def violations(path):
    mine = layer(module_name(path))
    if mine in ("ringzero", "__main__"):
        return []
    result = []
    for line, name in imports(path):
        if name.split(".")[0] != "ringzero" or is_typing_only(path, line):
            continue
        other = layer(name)
        if other in ("ringzero", "__version__", mine):
            continue
        if ORDER.index(other) > ORDER.index(mine) or other in FORBIDDEN.get(mine, ()):
            result.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    return result


def test_every_layer_has_a_place():
    layers = {layer(module_name(path)) for path in SOURCES} - {"ringzero", "__main__"}
    assert layers == set(ORDER)


def test_layers_import_only_what_stands_before_them():
    assert [v for path in SOURCES for v in violations(path)] == []


def test_only_jit_imports_llvmlite():
    offenders = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line, name in imports(path)
        if name.split(".")[0] == "llvmlite" and layer(module_name(path)) != "jit"
    ]
    assert offenders == []


def test_the_check_sees_a_violation(tmp_path, monkeypatch):
    package = tmp_path / "ringzero" / "disk"
    package.mkdir(parents=True)
    wrong = package / "wrong.py"
    wrong.write_text("def f():\n    from ringzero.devices.virtio import block\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "ringzero")
    assert violations(wrong) == ["disk/wrong.py:2: disk imports ringzero.devices.virtio"]


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
    assert "ringzero.errors" in loaded
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
