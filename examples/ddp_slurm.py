"""The same on several devices, under a scheduler that may take the machine away.

On this machine, with CPUs or GPUs:

    torchrun --nproc-per-node 2 ddp_slurm.py

Under SLURM, which sends USR1 two minutes before the end and starts the same job again, as the same run:

    #SBATCH --nodes=1 --gpus-per-node=4 --requeue --open-mode=append --signal=USR1@120
    srun torchrun --nproc-per-node 4 --signals-to-handle SIGTERM,SIGUSR1 ddp_slurm.py

USR1 rather than TERM, because torch's loader workers die of a TERM that goes to their whole group, and the training
with them.
"""

import pydoc_data.topics

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from experiment_tracking_checkpointing_system import ExperimentConfig, ExperimentTrackingSystem

HP = {"epochs": 2, "batch_size": 32, "context": 32, "width": 128, "dropout": 0.1, "learning_rate": 1e-3, "seed": 0}


class LanguageModel(nn.Module):
    """Guesses each byte from those before it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, HP["width"])
        self.read = nn.GRU(HP["width"], HP["width"], batch_first=True)
        self.guess = nn.Sequential(nn.Dropout(HP["dropout"]), nn.Linear(HP["width"], 256))

    def forward(self, windows):
        """Mean cross-entropy of ``(batch, context + 1)`` bytes."""
        hidden, _ = self.read(self.embed(windows[:, :-1]))
        return functional.cross_entropy(self.guess(hidden).flatten(0, 1), windows[:, 1:].flatten())


def windows(first, last):
    """Pieces of ``context + 1`` bytes of Python's own manual: a text that is there without a download."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()[first:last]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unfold(0, HP["context"] + 1, HP["context"])


@torch.no_grad()
def evaluate(model, validation):
    model.eval()
    loss = model(validation)
    model.train()
    return {"val/loss": loss}


def main():
    dist.init_process_group()
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(HP["seed"] + dist.get_rank())  # another dropout on each rank; DDP makes the weights the same

    # Every rank builds a system; all join the run of rank 0, whose metrics are the run's.
    system = ExperimentTrackingSystem(
        ExperimentConfig(
            save_frequency=50,
            max_checkpoints=3,
            best_metric="val/loss",
            save_on_signal=("SIGTERM", "SIGUSR1"),  # a signal makes should_save() and should_stop true, on all ranks
        )
    )
    model = DistributedDataParallel(LanguageModel().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=HP["learning_rate"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.8)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    train_set, validation = windows(0, 300_000), windows(300_000, 330_000).to(device)
    loader = StatefulDataLoader(
        train_set, batch_size=HP["batch_size"], sampler=DistributedSampler(train_set), num_workers=2
    )

    system.start_experiment("python-manual-ddp", hyperparameters=HP, tags=["ddp"], resume="auto")
    at = system.resume(model, optimizer, scheduler, scaler=scaler, loader=loader)
    step = at.step
    for epoch in range(at.epoch, HP["epochs"]):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(batch.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            system.log_metrics({"train/loss": loss.detach(), "lr": scheduler.get_last_lr()[0]}, step, epoch=epoch)
            if system.should_save(step):
                metrics = {} if system.should_stop else evaluate(model.module, validation)  # no time after a signal
                system.log_metrics(metrics, step, epoch=epoch)
                system.save_checkpoint(step=step, epoch=epoch, metrics=metrics)
            if system.should_stop:
                system.end_experiment(status="preempted")  # waits for the checkpoint's commit; the next start goes on
                return
            step += 1
    system.end_experiment(evaluate(model.module, validation))


if __name__ == "__main__":
    main()
