// Prompts as SAM's decoder is fed: points in pixels of the encoder's input, padding, box corners.

const PADDING = -1, CORNERS = [2, 3];

// prompt: { points: [[x, y]], labels, boxes: [] or [[x0, y0, x1, y1]] } in pixels of the photo.
// Returns { coords, labels } as Float32Arrays [K, 2] and [K].
export function encodePrompt({ points = [], labels = null, boxes = [] }, { size, inputSize }) {
  const across = inputSize[1] / size[1], down = inputSize[0] / size[0];
  const places = [...points], marks = [...(labels || points.map(() => 1))];
  if (boxes.length) {
    const [x0, y0, x1, y1] = boxes[0];
    places.push([x0, y0], [x1, y1]);
    marks.push(...CORNERS);
  } else {
    places.push([0, 0]);
    marks.push(PADDING);
  }
  return {
    coords: Float32Array.from(places.flatMap(([x, y]) => [x * across, y * down])),
    labels: Float32Array.from(marks),
  };
}

// A single point is ambiguous: the best of the decoder's last three masks; else its first.
export function choose({ points = [], boxes = [] }, scores) {
  if (points.length !== 1 || boxes.length) return 0;
  let best = 1;
  for (let place = 2; place < scores.length; place++) if (scores[place] > scores[best]) best = place;
  return best;
}
