"""A dataset in memory and a predictor that fills boxes: what the loop needs, and nothing slow."""

from __future__ import annotations

import threading

import numpy as np

from structsam.evaluation.datasets.base import Dataset
from structsam.evaluation.sample import ObjectMask, Problem, ProblemError, Sample

SIZE = (96, 128)


def toy_sample(name: str) -> Sample:
    """One to three rectangles on noise, and one object that is too small; drawn from the name."""
    rng = np.random.default_rng([ord(c) for c in name])
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    objects = []
    for number in range(int(rng.integers(1, 4))):
        mask = np.zeros(SIZE, bool)
        y, x = rng.integers(0, 60, 2)
        mask[y : y + 24, x : x + 33] = True
        mask[y, x] = False
        objects.append(ObjectMask(str(number), mask, category="box"))
    dot = np.zeros(SIZE, bool)
    dot[3, 4] = True
    return Sample(name, image, (*objects, ObjectMask("dot", dot)))


class ToyDataset(Dataset):
    name = "toy"
    title = "toy"
    layout = "nothing"

    def __init__(self, count: int = 5, broken: tuple[str, ...] = ()) -> None:
        super().__init__(".")
        self.ids = [f"image{i:02d}" for i in range(count)]
        self.broken = broken
        self.loaded: list[str] = []
        self.lock = threading.Lock()

    @property
    def image_ids(self) -> list[str]:
        return self.ids

    def load(self, image_id: str) -> Sample:
        with self.lock:
            self.loaded.append(image_id)
        if image_id in self.broken:
            raise ProblemError(Problem(image_id, "unreadable", "damaged for the test"))
        return toy_sample(image_id)


class BoxFiller:
    """Predicts the inside of the box; of an image of 128 x 96 the logits' upper three quarters."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.timings: dict[str, float] = {}
        self.images = 0
        self.fail_at = fail_at
        self.calls: list[dict[str, object]] = []

    def set_image(self, image: np.ndarray) -> None:
        if self.images == self.fail_at:
            raise KeyboardInterrupt
        self.images += 1
        self.shape = image.shape[:2]
        self.timings |= {"preprocess": 1.0, "encode": 2.0}

    def predict_low_res(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(
            {"points": point_coords, "labels": point_labels, "box": box, "mask": mask_input}
        )
        self.timings["decode"] = 3.0
        scale = 256 / max(self.shape)
        if box is None:
            assert point_coords is not None
            box = np.concatenate([point_coords[:, 0] - 10, point_coords[:, 0] + 10], 1)
        count = 3 if multimask_output else 1
        low_res = np.full((len(box), count, 256, 256), -4.0, np.float32)
        for plane, (x0, y0, x1, y1) in zip(low_res, np.maximum(box * scale, 0), strict=True):
            plane[:, round(y0) : round(y1), round(x0) : round(x1)] = 4.0
        return np.tile([0.5, 0.9, 0.7][:count], (len(box), 1)), low_res

    def upscale(self, low_res: np.ndarray) -> np.ndarray:
        rows, columns = (
            ((np.arange(size) + 0.5) * 256 / max(self.shape)).astype(int) for size in self.shape
        )
        return (low_res > 0)[..., rows[:, None], columns]
