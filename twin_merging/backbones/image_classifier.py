"""Any Hugging Face image encoder with a classification head a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import AutoImageProcessor, AutoModelForImageClassification

from twin_merging.ahead import ahead, processors
from twin_merging.backbones.encoders import Batch, EncoderBackbone
from twin_merging.backbones.features import Features, head_input, tokens_of
from twin_merging.backbones.pixels import PIXELS, DrawnPixels, Pixels, image_bytes, of_keys
from twin_merging.backbones.rows import Inputs, Row
from twin_merging.errors import UserError
from twin_merging.tasks.base import TRAIN, Task
from twin_merging.tasks.images import opened

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 8  # images that one thread decodes before it gives them away
AHEAD = 2  # batches in memory: one that the model works on, and one that is made meanwhile
NONE = "none"
Item = TypeVar("Item")


class ImageClassifierBackbone(EncoderBackbone):
    """Images, one a row, resized and cut to ``image_size`` as the model's own processor does it.

    Heads read the first token's last state or, as DINOv2's do, also the mean of the others', or a pooled feature map.
    """

    classifier: ClassVar[Any] = AutoModelForImageClassification

    @cached_property
    def processor(self) -> Any:
        """What makes the model's input of an image, at the size that is asked for.

        Raises:
            UserError: if the folder has none that can be read.
        """
        load = partial(
            AutoImageProcessor.from_pretrained, self.folder, trust_remote_code=self.options.trust_remote_code
        )
        try:
            processor, side = load(), self.options.image_size
        except (OSError, ValueError) as error:
            raise UserError(
                "what makes its input of an image cannot be read", key="backbone.pretrained", found=self.folder,
                expected="a folder with preprocessor_config.json",
            ) from error  # fmt: skip
        if side is None or side == self._side(processor):
            return processor
        given = {name: length for name, length in dict(processor.size).items() if length}
        size = {name: round(length * side / self._side(processor)) for name, length in given.items()}
        return load(size=size, crop_size={"height": side, "width": side})

    def inputs(self, task: Task, split: str, rows: Sequence[int] | None = None) -> Pixels:
        images, kept = self._images(task), task.pixels
        keys = [texts[0] for texts in task.splits[split].texts]
        keys = keys if rows is None else [keys[row] for row in rows]
        return Pixels(keys, self._tokens, partial(self.decoded, images) if kept is None else partial(of_keys, kept))

    def training_inputs(self, task: Task, seed: int) -> Inputs:
        if self.options.augment == NONE:
            return super().training_inputs(task, seed)
        keys = [texts[0] for texts in task.splits[TRAIN].texts]
        drawn = partial(self._drawn, self._images(task))
        return DrawnPixels(keys, self._tokens, drawn, f"seed {seed}, task {task.name}")

    def made_bytes(self, task: Task) -> int:
        return 0 if self.options.augment == NONE and task.pixels is not None else 4 * image_bytes(self.side)

    def decoded(self, images: Mapping[str, bytes], keys: Sequence[str]) -> Iterator[Tensor]:
        """Images of these keys as the model sees them, bytes of (3, S, S), decoded by threads."""
        return _by_threads(lambda some: self.pixels([opened(images, key) for key in some]), keys)

    def _drawn(self, images: Mapping[str, bytes], keys: Sequence[str], draws: Sequence[str]) -> Iterator[Tensor]:
        """Images of these keys as training sees them, each drawn from its own of ``draws``."""
        from twin_merging.backbones.augmentation import augmented

        kind, side = self.options.augment, self.side
        pairs = list(zip(keys, draws, strict=True))
        return _by_threads(lambda some: [augmented(opened(images, key), kind, side, draw) for key, draw in some], pairs)

    def batches(self, inputs: Inputs, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """``batch`` of each part, in their order, one ahead of the model: 12 · S² bytes an image of ``AHEAD`` batches."""
        return ahead(partial(self.batch, inputs), parts, AHEAD)

    @cached_property
    def side(self) -> int:
        """S, of the square that the model sees, in pixels."""
        return self._side(self.processor)

    def pixels(self, images: list[Image]) -> Tensor:
        """The bytes that the model sees of images, (n, 3, S, S)."""
        made = self.processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")[PIXELS]
        return made.round().clamp(0, 255).to(torch.uint8)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Numbers are (x / 255 − mean) / σ of each channel."""
        others = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != PIXELS}
        pixels = torch.stack([row[PIXELS] for row in rows])
        mean, deviation = self._scale
        return {PIXELS: (pixels.float() - mean) / deviation, **others}

    def example(self) -> Pixels:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, 256, (2, 3, self.side, self.side), generator=generator, dtype=torch.uint8)
        return Pixels("ab", self._tokens, partial(of_keys, dict(zip("ab", drawn, strict=True))))

    def save_reader(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def head_input(self, output: Any) -> Features:
        if output.last_hidden_state.dim() == 4:
            return head_input(output)
        if not self._reads_rest:
            return {"first": head_input(output)["first"]}
        states = output.last_hidden_state.float()
        return {"first_and_rest": torch.cat([states[:, 0], states[:, 1:].mean(1)], 1)}

    def _images(self, task: Task) -> Mapping[str, bytes]:
        """A task's images, of which a stored one's table is read here, and not by each worker process."""
        if task.images is None:
            raise UserError(
                "this backbone sees images",
                key="tasks",
                found=f"{task.name}, whose rows are texts",
                expected="tasks=vision",
            )
        len(task.images)
        return task.images

    @staticmethod
    def _side(processor: Any) -> int:
        """Of the square that the model sees, in pixels."""
        cut = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        size = dict(cut or processor.size)
        return int(size.get("height") or size["shortest_edge"])

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel's bytes, (3, 1, 1)."""
        processor = self.processor
        given = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        whole = 255.0 if processor.do_rescale else 1.0
        mean, deviation = (torch.tensor(each).view(3, 1, 1) * whole for each in given)
        return mean, deviation

    @cached_property
    def _tokens(self) -> int:
        """What an image is to the encoder: patches, and tokens of the model's own; or places of its last feature map."""
        side, config = self.side, self._skeleton.config
        if not hasattr(config, "patch_size"):
            with torch.inference_mode():
                states = self._skeleton.eval()(torch.zeros(1, 3, side, side, device=self.device)).last_hidden_state
            return tokens_of(states).shape[1]
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        return (side // patch) ** 2 + 1 + getattr(config, "num_register_tokens", 0)

    @cached_property
    def _reads_rest(self) -> bool:
        """Whether heads read twice the hidden size."""
        wide = 2 * self._plain.config.hidden_size
        return any(tensor.dim() == 2 and tensor.shape[1] == wide for tensor in self.head_state(self._plain).values())


def _by_threads(function: Callable[[Sequence[Item]], Iterable[Tensor]], items: Sequence[Item]) -> Iterator[Tensor]:
    """What a function makes of items, some at a time; a worker process has one thread, as the others have the processors."""
    threads = processors() if get_worker_info() is None else 1
    parts = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
    for made in ahead(function, parts, 2 * threads, threads):
        yield from made
