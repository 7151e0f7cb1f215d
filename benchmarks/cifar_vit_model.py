"""The CIFAR-10 vision transformer that somebody else trained, as a plain nn.Module.

Patch 4, width 128, depth 6, 8 heads, MLP 256, post-norm ReLU encoder layers and a class token;
weights in `$EDGEPORT_DATA/weights/cifar_vit`. It is the benchmark's model from outside:

    edgeport export benchmarks/cifar_vit_model.py:vit --input "image:float32[1,3,32,32]" \
        --weights $EDGEPORT_DATA/weights/cifar_vit/vit_cifar10.pth --calib-data IMAGES
"""

import torch
from torch import Tensor, nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in its training


class PatchEmbedding(nn.Module):
    """Maps images `B x 3 x 32 x 32` to patch tokens `B x 64 x dim`."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Classifies images `B x 3 x 32 x 32` in 0..1 into 10 logits."""

    def __init__(self, dim: int = 128, depth: int = 6, heads: int = 8, mlp: int = 256) -> None:
        super().__init__()
        tokens = 1 + (32 // 4) ** 2
        # Not persistent: they are no part of the weights file.
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(DEVIATION).reshape(3, 1, 1), False)
        self.patch_embed = PatchEmbedding(dim, patch=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, dim_feedforward=mlp, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed((image - self.mean) * self.scale)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat((cls, patches), dim=1) + self.pos_embed
        return self.mlp_head(self.transformer(tokens)[:, 0])


def vit() -> VisionTransformer:
    """Returns the network without weights; `--weights` loads them."""
    return VisionTransformer().eval()
