"""Read-only looks at a network: what is left of it, what it costs, how a run went.

* What is left, leaf by leaf: `report`.
* What it costs: `flops`, `latency`, `latencies` (side by side); all of it for a dense
  and a compact function: `compare`.
* How it trains: `trainability`.
* Figures: `plot_history`, `plot_sparsity`.
"""

from jprune.analysis._compare import compare as compare
from jprune.analysis._flops import flops as flops
from jprune.analysis._latency import latencies as latencies
from jprune.analysis._latency import latency as latency
from jprune.analysis._plot_structure import plot_front as plot_front
from jprune.analysis._plot_structure import plot_groups as plot_groups
from jprune.analysis._plot_structure import plot_widths as plot_widths
from jprune.analysis._plots import plot_history as plot_history
from jprune.analysis._plots import plot_sparsity as plot_sparsity
from jprune.analysis._report import report as report
from jprune.analysis._trainability import trainability as trainability
