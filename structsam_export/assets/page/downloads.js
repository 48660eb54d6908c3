// What leaves the page: a PNG of labels, COCO JSON.

import { boxOf, encodeRuns, sampled } from "./rle.js";

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const MOST_LABELS = 255; // of 8 bits

// Grey values: 0 background, then 1, 2, ... for the objects, in the photo's own size.
export async function labels(photo, objects) {
  if (objects.length > MOST_LABELS) {
    throw new Error(`A PNG has labels for ${MOST_LABELS} objects, and these are ${objects.length}. Take COCO JSON.`);
  }
  const canvas = new OffscreenCanvas(photo.width, photo.height);
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(photo.width, photo.height);
  for (let index = 3; index < picture.data.length; index += 4) picture.data[index] = 255;
  objects.forEach((object, index) => {
    if (!object.mask) return;
    const mask = sampled(object.mask, photo.width, photo.height);
    const value = index + 1;
    mask.forEach((on, at) => { if (on) picture.data.set([value, value, value], 4 * at); });
  });
  pen.putImageData(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export function coco(photo, objects) {
  const annotations = objects.flatMap((object, index) => object.mask ? [{
    id: index + 1, image_id: 1, category_id: 1, iscrowd: 0,
    segmentation: { size: object.mask.size, counts: encodeRuns(object.mask.runs) },
    bbox: boxOf(object.mask.runs, object.mask.size[0]),
    area: object.mask.runs.reduce((sum, run, at) => sum + (at % 2 ? run : 0), 0),
    score: object.mask.score,
  }] : []);
  const images = [{ id: 1, file_name: photo.name, width: photo.width, height: photo.height }];
  return JSON.stringify({ images, annotations, categories: [{ id: 1, name: "object" }] });
}
