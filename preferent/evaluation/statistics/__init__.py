"""Statistics of verdicts: win rates, intervals, tests, agreement and ratings; numbers in, numbers out.

An outcome is 1 (win), 1/2 (tie) or 0 (loss) of one side in one verdict; the win rate is the mean outcome. Rows about
the same prompt are one cluster everywhere. docs/statistics.md explains each number.
"""

from preferent.evaluation.statistics.calibration import Bin, calibration_error, reliability
from preferent.evaluation.statistics.means import LengthComparison, Mean, lengths, mean, rank_correlation
from preferent.evaluation.statistics.win_rates import METHOD, WinRate, p_value, wilson, win_rate

__all__ = [
    "METHOD",
    "Bin",
    "LengthComparison",
    "Mean",
    "WinRate",
    "calibration_error",
    "lengths",
    "mean",
    "p_value",
    "rank_correlation",
    "reliability",
    "wilson",
    "win_rate",
]
