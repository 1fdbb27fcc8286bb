"""A network trained with snnTorch alone, then deployed to Lava with proof: import, integers, simulator, report.

uv run python examples/from_snntorch.py
"""

import subprocess
import sys
from pathlib import Path

import snntorch as snn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import functional, spikegen
from torch import nn

STEPS, EPOCHS = 16, 20
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "runs" / "from-snntorch" / "trained_elsewhere.pt"


class Net(nn.Module):
    """As in snnTorch's tutorials: a loop over time, membranes passed by hand, spikes in a list."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 64), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(64, 10), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        emitted = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step].flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            emitted.append(spk2)
        return torch.stack(emitted)


def train():
    torch.manual_seed(0)
    digits = load_digits()
    # Held out as the data set "digits" holds them out, so that nothing is measured on what was trained on.
    images, _, labels, _ = train_test_split(
        digits.images / 16, digits.target, test_size=360, stratify=digits.target, random_state=1797
    )
    images, labels = torch.from_numpy(images).float(), torch.from_numpy(labels)
    net = Net()
    optimizer, loss_of = torch.optim.Adam(net.parameters(), lr=5e-3), functional.ce_rate_loss()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            loss = loss_of(net(spikegen.rate(images[batch], num_steps=STEPS)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}/{EPOCHS}, loss {loss.item():.3f}")
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), WEIGHTS)


def trained():
    """The network with its weights; this is what --model names."""
    net = Net()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return net


if __name__ == "__main__":
    train()
    command = [sys.executable, "../pipeline.py", "deploy", "--model", "from_snntorch:trained", "--data", "digits"]
    command += ["--set", f"data.steps={STEPS}", "--out", "../runs/from-snntorch"]
    sys.exit(subprocess.run(command, cwd=HERE).returncode)
