"""The algorithm without Flower, step by step: python examples/in_process.py"""

import fedkit


def tell(step: fedkit.Report) -> None:
    sent = step.bytes_down + step.bytes_up
    print(f"{step.phase} {step.round}: accuracy {step.accuracy:.3f}, {sent / 1e3:.0f} kB")


def main() -> float:
    return fedkit.run("digits", after_step=tell, devices=4, rounds=3, epochs=2, seed=3).accuracy


if __name__ == "__main__":
    main()
