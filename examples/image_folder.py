"""Images in a folder for each class: IMAGES=folder fedkit run --task examples.image_folder:TASK

`$IMAGES/train` and `$IMAGES/test` hold CLASS/FILE.png each. Images are read when a batch needs
them, and shifted by up to a pixel whenever a device trains on them.
"""

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedkit import Examples, Task
from fedkit.tasks import sources


def shift(images: NDArray[np.float32], draws: np.random.Generator) -> NDArray[np.float32]:
    down, right = draws.integers(-1, 2, size=2)
    return np.roll(images, (down, right), axis=(2, 3))


def images(part: str) -> Examples:
    folder = f"{os.environ['IMAGES']}/{part}"
    return sources.image_folder(folder, mean=[0.3], std=[0.4])


TASK = Task("images", "resnet8", lambda: replace(images("train"), augment=shift),
            lambda: images("test"))  # fmt: skip
