"""What differs between the processes of a run: random states, sums of metrics and the loader's noise."""

from typing import Any

import torch
import torch.distributed as dist


def collect(module: Any) -> list[dict[str, Any]]:
    """The states of all processes, by rank. All processes have to call this together."""
    sums, data = module.metrics.sums["train"], module.trainer.datamodule
    own = {"cpu": torch.get_rng_state(), "window": dict(sums.window), "epoch": dict(sums.epoch)}
    own["loader"] = data.state_dict() if data else {}
    if module.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(module.device)
    if module.trainer.world_size == 1:
        return [own]
    states: list[Any] = [None] * module.trainer.world_size
    dist.all_gather_object(states, own)
    return states


def restore_sums(module: Any, states: list[dict[str, Any]]) -> None:
    """Restore the sums of this process. Another number of processes continues with those of the first one."""
    rank = module.global_rank if len(states) == module.trainer.world_size else 0
    sums = module.metrics.sums["train"]
    sums.window, sums.epoch = dict(states[rank]["window"]), dict(states[rank]["epoch"])


def restore_noise(module: Any, states: list[dict[str, Any]]) -> None:
    """Restore the random states, or at the start of a run, or for another number of processes, seed them by rank."""
    rank = module.global_rank
    same = len(states) == module.trainer.world_size
    if states:
        state = states[rank if same else 0]
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and module.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], module.device)
        if same and rank and state["loader"]:  # Lightning has given the loader the state of the first process
            module.trainer.train_dataloader.load_state_dict(state["loader"])
    if rank and not same:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * rank + module.trainer.global_step)
