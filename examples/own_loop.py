"""The kernels in a loop of one's own: no finder, no files, any optimiser.

One network is pulled toward another, layer by layer along its variance spheres, with a little training after each move.

    python examples/own_loop.py
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from llpf_fast import ops
from llpf_fast.data import load_dataset
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model, train_model


def main() -> None:
    torch.set_num_threads(1)
    inputs, targets = load_dataset("digits").train
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(train_model(build_model("mlp"), inputs, targets, seed=seed, epochs=30, lr=0.05))
    model, goal = networks

    flat = FlatParameters(model)
    destination = flat.flatten(goal.state_dict())
    table, scratch = flat.table, flat.table.scratch()
    moments = ops.moments(flat.data, None, table.segments, table.chunks, scratch)
    # Unbiased variance a segment: what each move is rescaled to.
    variance = moments[:, 2] / (table.segments[:, 1] - 1)
    step = torch.tensor([0.0, 0.05], dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model.train()
    for tick in range(1, 61):
        flat.ensure()
        ops.tick_(
            flat.data,
            destination,
            table.segments,
            table.chunks,
            variance,
            step,
            scratch=scratch,
            project_first=tick > 1,
        )
        for _ in range(20):
            batch = torch.randint(len(inputs), (64,))
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
        if tick % 10 == 0:
            with torch.no_grad():
                whole = cross_entropy(model(inputs), targets)
            left = (flat.data - destination).norm()
            print(f"tick {tick:2}  training loss {whole:.4f}  distance left {left:.3f}")


if __name__ == "__main__":
    main()
