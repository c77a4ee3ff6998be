"""The frozen networks that metrics read pictures with: Inception, DINOv2, CLIP.

Two numbers can be compared only if their protocols agree (name, preprocessing, weights). A missing
network gives `Skipped`, never a number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from mmface.core.files import weights_sha256
from mmface.core.sources import load_network, opened, read_weights
from mmface.encoders.reference import CLIP_STATISTICS, IMAGENET
from mmface.encoders.text import load_tokenizer
from mmface.metrics.inception import NUM_FEATURES, FidInception
from mmface.metrics.metric import Skipped, or_skipped
from mmface.metrics.preprocessing import PillowBicubic, Preprocessing, TorchBilinear

UNTRAINED = "untrained:"
"""Prefix of the name of a backbone that nobody trained; tables warn of its numbers."""

DINOV2_ID = "facebook/dinov2-large"
"""The network of FDD (Stein et al., arXiv 2306.04675)."""
CLIP_SCORE_ID = "openai/clip-vit-base-patch32"
"""The default network of the CLIP score; the paper does not name its own."""
CMMD_ID = "openai/clip-vit-large-patch14-336"
"""The network of CMMD (Jayasumana et al., arXiv 2401.09603)."""


class Backbone(nn.Module, ABC):
    """A frozen network with its preprocessing; gives one feature vector a picture."""

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, name: str, num_features: int
    ) -> None:
        """A `name` that starts with `UNTRAINED` marks a network that nobody trained."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.name = name
        self.num_features = num_features

    @abstractmethod
    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch features"]:
        """Read preprocessed pictures."""

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float32[Tensor, "batch features"]:
        """Read pictures."""
        parameter = next(self.network.parameters())
        pixels = self.preprocessing(images).to(parameter.device, parameter.dtype)
        return self.features(pixels).float()

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all weights by name, whatever the file they came in."""
        return weights_sha256(self.network.state_dict())

    @property
    def protocol(self) -> str:
        """Network, preprocessing and weights: what two numbers must share to be compared."""
        return f"{self.name}/{self.preprocessing.name}/sha256:{self.weights_sha256[:12]}"


class InceptionBackbone(Backbone):
    """The 2048 pooled features of FID's Inception."""

    def __init__(
        self,
        network: FidInception,
        preprocessing: Preprocessing | None = None,
        name: str = "inception-2015-12-05",
    ) -> None:
        super().__init__(network, preprocessing or TorchBilinear(), name, NUM_FEATURES)

    @classmethod
    def from_file(
        cls, path: str | Path, preprocessing: Preprocessing | None = None
    ) -> "InceptionBackbone":
        """Load pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`; another file is refused."""
        weights = read_weights(path)
        classes = weights.pop("fc.weight", torch.empty(0)).shape[0]
        weights.pop("fc.bias", None)
        if classes != 1008:
            raise ValueError(
                f"{path} holds an Inception of {classes} classes, not the 2015-12-05 graph's 1008; "
                "take pt_inception-2015-12-05-6726825d.pth: no published FID uses another one"
            )
        network = FidInception()
        missing, unexpected = network.load_state_dict(weights, strict=False)
        # The oldest files have no counters of batches; they do not change the features.
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(
                f"{path} is not FID's Inception: {len(missing)} tensors are missing and "
                f"{len(unexpected)} unknown, first {(missing + unexpected)[0]}"
            )
        return cls(network, preprocessing)

    def features(self, pixels: Float[Tensor, "batch 3 299 299"]) -> Float[Tensor, "batch 2048"]:
        """Pool the last block."""
        return self.network(pixels)


class Dinov2Backbone(Backbone):
    """DINOv2's class token after the last norm, the features of FDD (arXiv 2306.04675)."""

    def __init__(self, network: Dinov2Model, name: str, size_px: int = 224) -> None:
        width = network.config.hidden_size
        super().__init__(network, PillowBicubic(size_px, *IMAGENET), name, width)

    @classmethod
    def from_pretrained(cls, path: str | Path = DINOV2_ID) -> "Dinov2Backbone":
        """Load a DINOv2 in float32 from a folder or hub id."""
        with opened("DINOv2", path) as source:
            network = load_network(Dinov2Model, source, dtype=torch.float32)
        return cls(network, _short(path))

    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch features"]:
        """Take the class token."""
        return self.network(pixel_values=pixels).pooler_output


class ClipBackbone(Backbone):
    """CLIP's projected picture and caption embeddings, of unit length."""

    network: CLIPModel

    def __init__(
        self,
        network: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Without `preprocessing`, OpenAI's at the size of the picture tower."""
        config = network.config
        if preprocessing is None:
            preprocessing = PillowBicubic(config.vision_config.image_size, *CLIP_STATISTICS)
        super().__init__(network, preprocessing, name, config.projection_dim)
        self.tokenizer = tokenizer
        positions = config.text_config.max_position_embeddings
        self.max_length: int = min(tokenizer.model_max_length, positions)

    @classmethod
    def from_pretrained(cls, path: str | Path = CLIP_SCORE_ID) -> "ClipBackbone":
        """Load a CLIP pair in float32 and its tokenizer from a folder or hub id."""
        with opened("CLIP pair", path) as source:
            network = load_network(CLIPModel, source, dtype=torch.float32)
            tokenizer = load_tokenizer(source)
        return cls(network, tokenizer, _short(path))

    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch features"]:
        """Embed preprocessed pictures."""
        states = self.network.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.network.visual_projection(states).float(), dim=-1)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Float32[Tensor, "batch features"]:
        """Embed captions; a longer one is cut before its end-of-text token, which stays."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(next(self.network.parameters()).device)
        states = self.network.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return F.normalize(self.network.text_projection(states).float(), dim=-1)

    def is_cut(self, caption: str) -> bool:
        """Whether a caption has more tokens than the text tower reads."""
        return len(self.tokenizer(caption, verbose=False).input_ids) > self.max_length


class ClipStatesBackbone(ClipBackbone):
    """The picture tower's pooled states; the built-in CLIP reads rendered faces with them.

    Distances between sets of unit-length embeddings vanish in a table's two digits; these are not
    of unit length. The built-in CLIP reads rendered faces with them.
    """

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer, name: str) -> None:
        super().__init__(network, tokenizer, f"{name}-states")
        self.num_features: int = network.config.vision_config.hidden_size

    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch features"]:
        """Give the pooled states of preprocessed pictures."""
        states: torch.Tensor = self.network.vision_model(pixel_values=pixels).pooler_output
        return states


class BackboneSource:
    """A backbone that is loaded when it is first needed, or known to be missing."""

    def __init__(self, load: Callable[[], Backbone], remedy: str) -> None:
        """`remedy` says how to get what `load` needs."""
        self._load = load
        self._remedy = remedy
        self._loaded: Backbone | Skipped | None = None

    def open(self, device: torch.device | str = "cpu") -> Backbone | Skipped:
        """Load the backbone, once, and move it to a device."""
        if self._loaded is None:
            self._loaded = or_skipped(self._load, self._remedy)
        if isinstance(self._loaded, Backbone):
            self._loaded.to(device)
        return self._loaded


def _short(path: str | Path) -> str:
    return Path(path).resolve().name if Path(path).is_dir() else str(path)
