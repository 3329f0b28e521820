from torch import nn
from transformers import Dinov2Config, Dinov2Model

from janus_plugins.core.weights import load_pretrained


class Dino(nn.Module):
    def __init__(self, config, facts):
        super().__init__()
        sizes = {"hidden_size": config.width, "num_hidden_layers": config.depth, "use_mask_token": False}
        dino = Dinov2Config(**sizes, num_attention_heads=config.width // 64, image_size=518, patch_size=14)
        self.vit = Dinov2Model(dino)

    def forward(self, items):
        return self.vit(items["pixels"].to(self.vit.dtype)).last_hidden_state[:, 1:]

    def load_weights(self, source):
        load_pretrained(self.vit, source, drop=["embeddings.mask_token"])
