"""The algorithm without Flower, step by step: python examples/in_process.py"""

from fedkit.config import make_config
from fedkit.server.rounds import run_rounds
from sim.scenario import make_scenario


def main() -> float:
    config = make_config({"task": "digits", "devices": 4, "rounds": 3, "epochs": 2, "seed": 3})
    scenario = make_scenario(config)
    accuracy = 0.0
    for step in run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data):
        accuracy = step.accuracy or 0.0
        sent = step.bytes_down + step.bytes_up
        print(f"{step.phase} {step.round}: accuracy {accuracy:.3f}, {sent / 1e3:.0f} kB")
    return accuracy


if __name__ == "__main__":
    main()
