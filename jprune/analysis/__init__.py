"""Read-only looks at a network: what is left of it, what it costs, how a run went."""

from jprune.analysis._compare import Comparison as Comparison
from jprune.analysis._compare import Measures as Measures
from jprune.analysis._compare import compare as compare
from jprune.analysis._flops import flops as flops
from jprune.analysis._latency import Latency as Latency
from jprune.analysis._latency import latencies as latencies
from jprune.analysis._latency import latency as latency
from jprune.analysis._plot_structure import plot_front as plot_front
from jprune.analysis._plot_structure import plot_groups as plot_groups
from jprune.analysis._plot_structure import plot_widths as plot_widths
from jprune.analysis._plots import plot_history as plot_history
from jprune.analysis._plots import plot_sparsity as plot_sparsity
from jprune.analysis._report import LeafReport as LeafReport
from jprune.analysis._report import Report as Report
from jprune.analysis._report import report as report
from jprune.analysis._trainability import Trainability as Trainability
from jprune.analysis._trainability import trainability as trainability
