"""Goal: no family that the engine runs is left out where templates are compared. Method: the families are read out of the source that lists
them, and held against those that the templates of family_templates.py are for.
"""

import re

from family_templates import FAMILIES, MODEL_TYPES
from prompts import ROOT

SOURCES = ROOT / "src" / "checkpoint" / "families"


def model_types_that_run():
    """`model_type` of each entry of FAMILIES, in its order."""
    [listed] = re.findall(r"static FAMILIES: &\[&Family\] = &\[(.*?)\];", (SOURCES / "mod.rs").read_text(), re.S)
    types = []
    for module, name in re.findall(r"&(\w+(?:::\w+)*)::(\w+)", listed):
        family = rf"static {name}: Family =\s*Family \{{(.*?)\}};"
        [members] = re.findall(family, (SOURCES / f"{module.replace('::', '/')}.rs").read_text(), re.S)
        types += re.findall(r'model_type: "([^"]+)"', members)
    assert len(types) == listed.count("&"), types
    return types


def test_every_family_that_runs_has_a_template():
    types = model_types_that_run()
    assert len(types) == len(set(types)) >= 20
    assert MODEL_TYPES.keys() == FAMILIES.keys()
    assert {one for served in MODEL_TYPES.values() for one in served} == set(types)
