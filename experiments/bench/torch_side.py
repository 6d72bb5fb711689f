"""Torch-Pruning's side of `beside_torch_pruning`; run by a Python that has PyTorch.

Reads the name of a network from each line of standard input, builds it, cuts it, and
writes one line of JSON: processor seconds of the pruner's construction (its dependency
graph) and of all (with scores and the removal), and the share of parameters left. Needs
torch, torchvision and torch_pruning, but not JAX.
"""
# pyright: reportMissingImports=false

import json
import sys
import time

import torch
import torch_pruning
import torchvision
from torch import nn

RATIO = 0.3  # of every width: about half of the parameters


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (
            part(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        hidden = 4 * width
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = x + self.attention(self.first(x))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class GPT(nn.Module):
    """GPT-2 small, its logits through a table of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50257, 768), nn.Embedding(1024, 768)
        self.blocks = nn.ModuleList(Block(768, 12) for _ in range(12))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 50257, bias=False)

    def forward(self, x):
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def network(name):
    """The network, its input, its last layer, and the heads of its attentions."""
    image = torch.zeros(1, 3, 224, 224)
    if name == "ResNet-50":
        model = torchvision.models.resnet50(weights=None)
        return model, image, model.fc, {}
    if name == "DenseNet-121":
        model = torchvision.models.densenet121(weights=None)
        return model, image, model.classifier, {}
    if name == "ViT-B/16":
        model = torchvision.models.vit_b_16(weights=None)
        kinds = (nn.MultiheadAttention,)
        heads = {m: m.num_heads for m in model.modules() if isinstance(m, kinds)}
        return model, image, model.heads, heads
    model = GPT()
    found = [m for m in model.modules() if isinstance(m, Attention)]
    heads = {part: m.heads for m in found for part in (m.query, m.key, m.value)}
    return model, torch.zeros(1, 128, dtype=torch.int64), model.head, heads


def cut(name):
    model, x, last, heads = network(name)
    model.eval()
    before = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[last],
        num_heads=heads,
    )
    graph = time.process_time() - start
    pruner.step()
    total = time.process_time() - start
    after = sum(p.numel() for p in model.parameters())
    return {"graph": graph, "total": total, "parameters": after / before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    versions = {m.__name__: m.__version__ for m in (torch, torch_pruning)}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(cut(line.strip())), flush=True)
