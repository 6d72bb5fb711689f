"""The table of rules: one file for each family of primitives.

`RULES` maps a primitive's name to its `Rule`; `surgery.register_rule` adds to it.
"""

from jprune.surgery._registry import Rule
from jprune.surgery.rules import (
    _contract,
    _control,
    _custom,
    _elementwise,
    _generate,
    _index,
    _loops,
    _pieces,
    _reduce,
    _reshape,
    _shape,
)
from jprune.surgery.rules._elementwise import elementwise_axes as elementwise_axes
from jprune.surgery.rules._elementwise import positionwise as positionwise

RULES: dict[str, Rule] = {
    **_elementwise.RULES,
    **_shape.RULES,
    **_reshape.RULES,
    **_pieces.RULES,
    **_contract.RULES,
    **_reduce.RULES,
    **_index.RULES,
    **_generate.RULES,
    **_control.RULES,
    **_loops.RULES,
    **_custom.RULES,
}
