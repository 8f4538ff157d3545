"""How x86's engine is cut into units."""

from ringzero.isa.x86.table.instructions import MODULES, all_forms
from ringzero.jit.guest import GUESTS
from ringzero.jit.x86 import assembly, units


def test_each_module_of_instructions_is_one_unit():
    assert sorted(units.NAMES) == sorted((*MODULES, "core"))


def test_each_form_belongs_to_one_unit():
    forms = [form.index for name in units.NAMES for form in units.forms_of(name)]
    assert sorted(forms) == [form.index for form in all_forms()]


def test_the_engine_is_these_units_and_the_stencils():
    code = GUESTS.get("x86_64")()
    assert code.objects == units.NAMES
    stencils = {f"stencils{n}" for n in range(assembly.SHARES)}
    assert set(code.units()) == {*units.NAMES, *stencils}
    assert code.units()[0] == units.NAMES[0]
