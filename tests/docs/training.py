"""What do the documentation's examples take for granted? A small model, its data, and the words they use for them."""

from __future__ import annotations

from typing import Any


def prepared_names() -> dict[str, Any]:
    """Names that stand in the reader's own script and therefore not in the examples."""
    import torch

    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    targets = inputs.sum(1, keepdim=True).sign().clamp(0, 1)
    train_set = torch.utils.data.TensorDataset(inputs, targets)

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 64)

    def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, batch: Any) -> float:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"val/loss": torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), targets).item()}

    return {
        "torch": torch,
        "build": build,
        "train_step": train_step,
        "evaluate": evaluate,
        "train_set": train_set,
        "hp": {"learning_rate": 1e-2, "epochs": 2},
    }
