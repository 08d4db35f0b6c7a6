"""A server that asks weights, statistics and gradients apart, for `fedkit bench fleet`."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkit.config import make_config
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.run_config import run_keys
from fedkit.flower.serve import serve
from fedkit.methods.interface import Answer, Phase, Request
from fedkit.server.scenario import server_scenario
from fedkit.wire.messages import Packet

app = ServerApp()


class NaiveFleet(FlowerFleet):
    """Asks for the parts of a round one after the other."""

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        """See `fedkit.methods.interface.Fleet.exchange`; all devices must answer."""
        if phase != "train":
            return super().exchange(phase, request, read)
        weights = super().exchange(phase, request, lambda packet: packet)
        number = weights[0].numbers["round"]
        parts = [weights]
        for part in ("norm_statistics", "top_gradients"):
            self.message_types = {"train": f"query.{part}"}
            asked = Request(lambda: Packet({}, {"round": number}))
            parts.append(super().exchange(phase, asked, lambda packet: packet))
        self.message_types = FlowerFleet.message_types
        return [read(_joined(pieces)) for pieces in zip(*parts, strict=True)]


def _joined(pieces: tuple[Packet, ...]) -> Packet:
    arrays = {name: array for piece in pieces for name, array in piece.arrays.items()}
    return Packet(arrays, pieces[0].numbers)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds over the connected devices and record them in a run folder."""
    values, place = run_keys(context.run_config)
    serve(server_scenario(make_config(values)), grid, place, NaiveFleet)
