"""The table of rules: one file for each family of primitives.

`RULES` maps a primitive's name to its `Rule`; importing this package fills it, and
`surgery.register_rule` adds to it.
"""

from jprune.surgery._registry import RULES as RULES
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

for _family in (
    _elementwise,
    _shape,
    _reshape,
    _pieces,
    _contract,
    _reduce,
    _index,
    _generate,
    _control,
    _loops,
    _custom,
):
    RULES.update(_family.RULES)
