"""Read-only looks at a network: what is left of it, what it costs, how a run went.

* What is left, leaf by leaf: `report`.
* What it costs: `flops`, `latency` (of several: side by side); all of it for a dense
  and a compact function: `compare`.
* For a budget: a plan's cost as a fraction of the dense network, for
  `surgery.select(cost=)`: `relative_cost`; what one coordinate of a group saves:
  `savings`.
* Its residual branches, for gates and samplers: `residual_branches`; how much a block
  changes the stream: `block_influence`.
* How it trains: `trainability`.
* Filters whose scale a norm hides: `scale_invariance` (their sizes and turns are its
  methods), and where these settle: `equilibrium`.
* Figures: `plot_groups`, `plot_widths`, `plot_front`, `plot_filters`, `plot_history`,
  `plot_sparsity`.
"""

from jprune._public import settled
from jprune.analysis._blocks import block_influence as block_influence
from jprune.analysis._branches import residual_branches as residual_branches
from jprune.analysis._compare import compare as compare
from jprune.analysis._flops import flops as flops
from jprune.analysis._latency import latency as latency
from jprune.analysis._plot_filters import plot_filters as plot_filters
from jprune.analysis._plot_structure import plot_front as plot_front
from jprune.analysis._plot_structure import plot_groups as plot_groups
from jprune.analysis._plot_structure import plot_widths as plot_widths
from jprune.analysis._plots import plot_history as plot_history
from jprune.analysis._plots import plot_sparsity as plot_sparsity
from jprune.analysis._relative_cost import relative_cost as relative_cost
from jprune.analysis._relative_cost import savings as savings
from jprune.analysis._report import report as report
from jprune.analysis._scale_invariance import equilibrium as equilibrium
from jprune.analysis._scale_invariance import scale_invariance as scale_invariance
from jprune.analysis._trainability import trainability as trainability

__dir__ = settled(globals())
