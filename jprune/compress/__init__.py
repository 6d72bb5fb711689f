"""Changes of values at removal: merge equal units, fold constants, measure statistics.

`jprune.surgery` removes coordinates and leaves every value that stays as it was. The
functions here change values so that removal costs less, or nothing.
"""

from jprune.compress._recalibrate import recalibrate as recalibrate
