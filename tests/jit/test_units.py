"""How the engine is cut into units."""

from ringzero.isa.x86.table.instructions import MODULES, all_forms
from ringzero.jit import units


def test_each_module_of_instructions_is_one_unit():
    assert sorted(units.names()) == sorted((*MODULES, "core"))


def test_each_form_belongs_to_one_unit():
    forms = [form.index for name in units.names() for form in units.forms_of(name)]
    assert sorted(forms) == [form.index for form in all_forms()]
