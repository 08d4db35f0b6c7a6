"""A CNN of your own, trained sparse in one process, on C kernels: python examples/own_cnn.py"""

from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.engine.base import LocalTraining
from fedkit.engine.choose import sparse_equivalent
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.masks import layer_masks
from fedkit.tasks import digits
from fedkit.tasks.task import Task, accuracy


class OwnCNN(nn.Module):
    """Three convolutions with a shortcut; 1x8x8 -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.first = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in (32, 32, 64)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(x + self.norms[1](self.first(x)))
        x = F.relu(self.norms[2](self.second(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


TASK = Task("own-cnn", OwnCNN, digits.train_data, digits.test_data)
HOW = LocalTraining(epochs=15, batch_size=64, lr=0.1, momentum=0.9, weight_decay=5e-4)


def main() -> float:
    engine = sparse_equivalent(TorchEngine.for_task(TASK, "", seed=1), TASK)
    dense = engine.initial_state()
    counts = {name: round(0.1 * mask.size) for name, mask in dense.masks.items()}
    masks = layer_masks(dense.weights, counts)
    state, loss = engine.train(dense.with_masks(masks), TASK.train_data(), HOW, seed=1)
    test = TASK.test_data()
    found = accuracy(engine.outputs(state, test.inputs), test.targets)
    print(f"accuracy {found:.1%}, density {state.density:.1%}, training loss {loss:.3f}")
    memory = engine.program(state, "train", HOW.batch_size).memory
    parts = ", ".join(f"{part} {size / 1e3:.0f} kB" for part, size in vars(memory).items())
    print(f"memory of a training step: {memory.peak / 1e6:.2f} MB ({parts})")
    return found


if __name__ == "__main__":
    main()
