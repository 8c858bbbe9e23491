"""Win rates and how sure they are: wins, ties, intervals, agreement, ratings; numbers in, numbers out.

An outcome is 1 (win), 1/2 (tie) or 0 (loss) of one side in one verdict; the win rate is the mean outcome. Rows about
the same prompt are one cluster everywhere. docs/statistics.md says in words what each number means.
"""

from preferent.winrate import agreement, change, length, rating, resample
from preferent.winrate.calibration import Bin, calibration_error, reliability
from preferent.winrate.measure import Lengths, Mean, lengths, mean, rank_correlation
from preferent.winrate.rate import METHOD, WinRate, design_effect, p_value, wilson, win_rate

__all__ = [
    "METHOD",
    "Bin",
    "Lengths",
    "Mean",
    "WinRate",
    "agreement",
    "calibration_error",
    "change",
    "design_effect",
    "length",
    "lengths",
    "mean",
    "p_value",
    "rank_correlation",
    "rating",
    "reliability",
    "resample",
    "wilson",
    "win_rate",
]
