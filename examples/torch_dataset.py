"""A torch Dataset: fedkit run --task examples.torch_dataset:TASK --devices 4 --alpha 5"""

from sklearn.datasets import load_wine
from torch import Tensor, nn, tensor
from torch.utils.data import Dataset

from fedkit import Task
from fedkit.tasks import sources


class Wines(Dataset[tuple[Tensor, int]]):
    def __init__(self, test: bool) -> None:
        features, kinds = load_wine(return_X_y=True)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        rows = [row for row in range(len(kinds)) if (row % 4 == 0) == test]
        self.items = [(tensor(scaled[row]).float(), int(kinds[row])) for row in rows]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


TASK = Task("wines", lambda: nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3)),
            lambda: sources.torch_dataset(Wines(test=False)),
            lambda: sources.torch_dataset(Wines(test=True)))  # fmt: skip
