"""Mean curves over seeds as runs of TensorBoard, which has no such curves of its own.

mean_t = 1/n sum_i v_it,    sd_t^2 = 1/(n - 1) sum_i (v_it - mean_t)^2        for run i at step t
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from vaelab.pictures.files import read_events

Curves = dict[str, dict[int, float]]  # the values of each curve by step


def read_curves(folder: Path) -> Curves:
    """All scalar curves in the event files of a run. Raises UserError for a damaged file."""
    return {
        tag: {step: event.value for step, event in events.items()}
        for tag, events in read_events(folder, "scalars").items()
    }


def add_mean_curves(folder: Path, runs: Sequence[Path]) -> bool:
    """Write the runs mean, mean+sd and mean-sd of TensorBoard into `folder`, from at least two runs.

    The result is False, and nothing is written, if the runs have no curve in common.

    A curve has the steps that all runs have, so it ends with the shortest run. s.d. is the standard deviation of a
    sample, as in the formula above.
    """
    from torch.utils.tensorboard import SummaryWriter

    curves = [read_curves(run) for run in runs]
    tags = [tag for tag in curves[0] if all(tag in each for each in curves)]
    if not tags:
        return False
    for name, sign in (("mean", 0), ("mean+sd", 1), ("mean-sd", -1)):
        with SummaryWriter(str(folder / name), filename_suffix=".mean") as board:
            for tag in tags:
                steps = set.intersection(*(set(each[tag]) for each in curves))
                for step in sorted(steps):
                    values = [each[tag][step] for each in curves]
                    board.add_scalar(tag, statistics.mean(values) + sign * statistics.stdev(values), step)
    return True
