"""The rules of primitives, one file for each family, and what a rule is made of.

Importing this package fills the table `RULES`; `register_rule` adds to it. The names
here are those that rules are written with (`docs/surgery_rules.md`):

* a rule: `Rule`, `NoRule`; what it raises is raised under `strict`;
* the algebra of axes, first pass: `concat`, `cut`, `product`, `split`, `Info`, `Work`;
* cells, second pass: `Value`, `Layout`, `known`, `bad`, `compute`, `item`, `patterns`,
  `multiplicity`, `bind`;
* whole halves: `elementwise_axes`, `positionwise`.
"""

from jprune._jaxpr._compat import bind as bind
from jprune.surgery._analysis import AxisSite as AxisSite
from jprune.surgery._axes import concat as concat
from jprune.surgery._axes import cut as cut
from jprune.surgery._axes import product as product
from jprune.surgery._axes import split as split
from jprune.surgery._build import CellSite as CellSite
from jprune.surgery._cells import Value as Value
from jprune.surgery._cells import bad as bad
from jprune.surgery._cells import compute as compute
from jprune.surgery._cells import item as item
from jprune.surgery._cells import known as known
from jprune.surgery._cells import multiplicity as multiplicity
from jprune.surgery._cells import patterns as patterns
from jprune.surgery._cost import Work as Work
from jprune.surgery._layout import Layout as Layout
from jprune.surgery._registry import RULES as RULES
from jprune.surgery._registry import NoRule as NoRule
from jprune.surgery._registry import Rule as Rule
from jprune.surgery._registry import register_rule as register_rule
from jprune.surgery._registry import strict as strict
from jprune.surgery._scope import Info as Info
from jprune.surgery.rules import (
    _contract,
    _control,
    _custom,
    _elementwise,
    _generate,
    _index,
    _linalg,
    _loops,
    _mesh,
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
    _linalg,
    _generate,
    _control,
    _loops,
    _mesh,
    _custom,
):
    RULES.update(_family.RULES)
