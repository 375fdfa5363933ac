"""A small language model of one's own: a transformer on characters, AdamW, cross-entropy at every position.

Two networks learn a text that comes with Python from different beginnings; the path joins them, and every point of it
writes that text.

    python examples/own_language_model.py
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import llpf_fast
from llpf_fast.find import ArrivalSettings, CorrectionSettings, ScreeningSettings, Settings, StepSettings
from llpf_fast.report.picture import draw_path
from llpf_fast.verify import Certificate

CONTEXT = 24


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, normalization first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.norm2(x))


class CharacterModel(nn.Module):
    """Characters ``[B, T]`` (int64) -> logits of the next one at every position ``[B, T, characters]``."""

    def __init__(self, characters: int, width: int = 48, heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(x)))


def next_character_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all positions, in nats: logits ``[B, T, characters]``, targets ``[B, T]``."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def zen() -> str:
    """The text behind ``import this``."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def windows(text: str, alphabet: str) -> tuple[Tensor, Tensor]:
    """Every stretch of ``CONTEXT`` characters, and the same one character later: int64 ``[n, CONTEXT]`` each."""
    numbers = torch.tensor([alphabet.index(character) for character in text])
    pieces = numbers.unfold(0, CONTEXT + 1, 1)
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(steps):
        batch = torch.randint(len(data[0]), (64,), generator=generator)
        optimizer.zero_grad()
        next_character_loss(model(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def write(model: nn.Module, alphabet: str, beginning: str, length: int) -> str:
    """Continue ``beginning``, always with the likeliest character."""
    text = beginning
    model.eval()
    for _ in range(length):
        seen = torch.tensor([[alphabet.index(character) for character in text[-CONTEXT:]]])
        text += alphabet[int(model(seen)[0, -1].argmax())]
    return text


def main(out: Path, steps: int = 300, characters: int | None = None) -> Certificate:
    torch.set_num_threads(1)
    text = zen()[:characters]
    alphabet = "".join(sorted(set(text)))
    data = windows(text, alphabet)
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(train(CharacterModel(len(alphabet)), data, steps, seed))
        with torch.no_grad():
            print(f"network {seed}: {next_character_loss(ends[-1](data[0]), data[1]):.3f} nats a character")

    settings = Settings(
        threshold=0.8,
        max_ticks=1000,
        step=StepSettings(relative=0.08),
        correction=CorrectionSettings(threshold=0.45, batch_size=64, max_steps=200),
        arrival=ArrivalSettings(every=5, margin=0.9),
        screening=ScreeningSettings(samples=300),
    )
    path = llpf_fast.find_path(
        CharacterModel(len(alphabet)),
        *ends,
        data=data,
        loss_fn=next_character_loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0),
        settings=settings,
        out=out,
    )
    print(f"path of {len(path)} waypoints in {out}")
    middle = CharacterModel(len(alphabet))
    middle.load_state_dict(path.interpolate((len(path) - 1) / 2))
    print(f"the network half-way writes: {write(middle, alphabet, 'Beautiful is better', 40)!r}")

    certificate = llpf_fast.verify_run(
        out, model=CharacterModel(len(alphabet)), loss_fn=next_character_loss, train=data
    )
    highest = max(point.train_loss for point in certificate.straight_line)
    print(f"connected: {certificate.connected} at threshold {certificate.threshold}")
    print(f"highest loss {certificate.max_loss:.3f} on the path, {highest:.3f} on the straight line")
    print(f"picture: {draw_path(out)}")
    return certificate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="run directory to create (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=300, help="gradient steps that train an endpoint")
    chosen = parser.parse_args()
    main(chosen.out or Path(tempfile.mkdtemp()) / "run", chosen.steps)
