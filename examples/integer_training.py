"""A model of your own, trained in 4-bit integers: python examples/integer_training.py"""

import numpy as np
from torch import nn

from fedkit.nn.norm import L1BatchNorm2d
from fedkit.shiftquant import convert
from fedkit.tasks import digits
from fedkit.tasks.task import accuracy


def main() -> float:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), L1BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), L1BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip
    train, test = digits.train_data(), digits.test_data()
    integer = convert(model, input_shape=(1, 8, 8), bits=4)
    rng, batch = np.random.default_rng(0), 64
    for epoch in range(5):
        order = rng.permutation(len(train))
        batches = [train.take(order[i : i + batch]) for i in range(0, len(train) - batch, batch)]
        losses = [integer.train_step(b.inputs, b.targets, lr=0.05) for b in batches]
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}")
    integer.calibrate(*(b.inputs for b in batches))
    found = accuracy(integer.outputs(test.inputs), test.targets)
    integer.store(model)
    print(f"4 bits: {found:.1%} of the test images are recognised")
    return found


if __name__ == "__main__":
    main()
