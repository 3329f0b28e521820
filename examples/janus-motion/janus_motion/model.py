import torch
from torch import nn

from janus_motion.spec import STRIDE


class Encoder(nn.Module):
    def __init__(self, config, facts):
        super().__init__()
        self.first = nn.Linear(3 * STRIDE, config.width)
        self.places = nn.Embedding(config.max_tokens, config.width)
        self.block = nn.TransformerEncoderLayer(config.width, 4, 4 * config.width, 0.0, batch_first=True)

    def forward(self, items):
        motion = items["motion"].to(self.first.weight.dtype)  # [N, T, 30]
        places = torch.arange(motion.shape[1], device=motion.device)
        hidden = self.first(motion) + self.places(places)
        lengths = items.get("motion_lengths")  # there where items differ in length
        padding = None if lengths is None else places >= lengths[:, None]
        return self.block(hidden, src_key_padding_mask=padding)
