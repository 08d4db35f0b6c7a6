"""Words told by a sparse int8 model of a fleet of voices: python examples/keywords.py FOLDER

Needs espeak-ng, whose voices are synthetic. The C in FOLDER takes samples; its program `wav` tells
the words of files. The network is a CNN, or a Transformer: python examples/keywords.py FOLDER kwt-1
"""

import subprocess
import sys
from typing import Any

import edge
import fedkit
from fedkit.preprocess.wav import write_wav
from fedkit.tasks import keywords, load_task

FLEET: dict[str, Any] = {
    "devices": 24, "partition": "natural-id", "density": 0.2, "sparse_epochs": 10,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "ds-cnn": {
        "task": "keywords", "rounds": 40, "epochs": 3, "batch_size": 32, "server_epochs": 10,
    },
    "kwt-1": {
        "task": "keywords-kwt", "rounds": 10, "epochs": 2, "batch_size": 8, "server_epochs": 30,
        "lr": 0.01, "lr_final": 0.002,
    },
}  # fmt: skip


def main(folder: str, network: str = "ds-cnn", **settings: Any) -> tuple[float, list[str]]:
    run = fedkit.run(**{**FLEET, **NETWORKS[network], **settings})
    task = load_task(run.config.task)
    some = task.examples("train").inputs[::7]
    saved = edge.export_model(
        run.module(), some, f"{folder}/keywords-c99", raw_input=task.raw_input
    )
    files = [f"{folder}/{word}.wav" for word in keywords.WORDS]
    for word, file in zip(keywords.WORDS, files, strict=True):
        sound = keywords.spoken(keywords.Utterance(word, keywords.VOICES[-1], 0))
        write_wav(file, sound, keywords.AUDIO.front_end.rate)
    subprocess.run(["make", "-s", "wav"], cwd=saved.path, check=True)
    told = subprocess.run([saved.path / "wav", *files], stdout=subprocess.PIPE, check=True)
    print(f"{run.density:.0%} of the weights, {run.accuracy:.1%} of the words of unheard voices")
    print(told.stdout.decode())
    return run.accuracy, [line.split("\t")[1] for line in told.stdout.decode().splitlines()]


if __name__ == "__main__":
    main(*sys.argv[1:])
