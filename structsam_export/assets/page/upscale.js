// From the decoder's logits to a mask in the photo's size, as the server does it: bilinear to the
// encoder's input, crop, bilinear to the photo, as one step; or probabilities in one bilinear step.

const TAPS = 4; // most values of a row of logits that a place of the photo depends on

// place: { size: [height, width], inputSize: [height, width], imageSize, probabilities }.
// Returns { rows, columns }: of every row and column of the photo the logits and their weights.
export function tapsOf([high, wide], place) {
  return { rows: axis(high, place, 0), columns: axis(wide, place, 1) };
}

function axis(small, { size, inputSize, imageSize, probabilities }, which) {
  const count = size[which];
  const index = new Int32Array(TAPS * count), weight = new Float32Array(TAPS * count);
  const inner = linear(small, probabilities ? count : imageSize);
  const outer = probabilities ? identity(count) : linear(inputSize[which], count);
  for (let place = 0; place < count; place++) {
    for (let tap = 0; tap < TAPS; tap++) {
      const middle = outer.index[2 * place + (tap >> 1)], from = 2 * middle + (tap & 1);
      index[TAPS * place + tap] = inner.index[from];
      weight[TAPS * place + tap] = outer.weight[2 * place + (tap >> 1)] * inner.weight[from];
    }
  }
  return { index, weight, count };
}

// Two neighbours of each of `count` places, as `interpolate(align_corners=False)`, in float32.
function linear(size, count) {
  const index = new Int32Array(2 * count), weight = new Float32Array(2 * count);
  const scale = Math.fround(Math.fround(size) / Math.fround(count));
  for (let place = 0; place < count; place++) {
    const position = Math.max(Math.fround(Math.fround(scale * (place + 0.5)) - 0.5), 0);
    const first = Math.min(Math.trunc(position), size - 1);
    const share = Math.min(Math.max(Math.fround(position - first), 0), 1);
    index.set([first, Math.min(first + 1, size - 1)], 2 * place);
    weight.set([1 - share, share], 2 * place);
  }
  return { index, weight };
}

function identity(count) {
  const index = new Int32Array(2 * count), weight = new Float32Array(2 * count);
  for (let place = 0; place < count; place++) {
    index.fill(place, 2 * place, 2 * place + 2);
    weight[2 * place] = 1;
  }
  return { index, weight };
}

// Fills `column` with what column x of the photo has of the logits [high, wide].
// Returns whether it is on anywhere.
function takeColumn(logits, [high, wide], columns, x, threshold, column) {
  const at = TAPS * x, [i0, i1, i2, i3] = columns.index.subarray(at, at + TAPS);
  const [w0, w1, w2, w3] = columns.weight.subarray(at, at + TAPS);
  let some = false;
  for (let y = 0, row = 0; y < high; y++, row += wide) {
    const value = w0 * logits[row + i0] + w1 * logits[row + i1] + w2 * logits[row + i2] + w3 * logits[row + i3];
    column[y] = value;
    some ||= value > threshold;
  }
  return some;
}

function isOn(column, { index, weight }, y, threshold) {
  const at = TAPS * y;
  return weight[at] * column[index[at]] + weight[at + 1] * column[index[at + 1]]
    + weight[at + 2] * column[index[at + 2]] + weight[at + 3] * column[index[at + 3]] > threshold;
}

function prepared(logits, probabilities) {
  return probabilities ? [logits.map((x) => 0.5 * Math.tanh(0.5 * x) + 0.5), 0.5] : [logits, 0];
}

// The mask in the photo's size, as COCO's run lengths: down the columns, off first.
export function maskRuns(given, small, { rows, columns }, probabilities) {
  const [logits, threshold] = prepared(given, probabilities);
  const column = new Float32Array(small[0]), runs = [];
  let length = 0, on = false;
  for (let x = 0; x < columns.count; x++) {
    const some = takeColumn(logits, small, columns, x, threshold, column);
    if (!some && !on) { length += rows.count; continue; }
    for (let y = 0; y < rows.count; y++) {
      if (isOn(column, rows, y, threshold) !== on) {
        runs.push(length);
        [length, on] = [0, !on];
      }
      length++;
    }
  }
  runs.push(length);
  return runs;
}

// The mask in `wide` x `high` pixels, each the one that lies at its middle: Uint8Array of 0 and 1.
export function maskSampled(given, small, { rows, columns }, probabilities, wide, high) {
  const [logits, threshold] = prepared(given, probabilities);
  const column = new Float32Array(small[0]), mask = new Uint8Array(wide * high);
  const ys = Int32Array.from({ length: high }, (_, y) => Math.floor((y + 0.5) * rows.count / high));
  for (let x = 0; x < wide; x++) {
    const from = Math.floor((x + 0.5) * columns.count / wide);
    if (!takeColumn(logits, small, columns, from, threshold, column)) continue;
    for (let y = 0; y < high; y++) {
      if (isOn(column, rows, ys[y], threshold)) mask[y * wide + x] = 1;
    }
  }
  return mask;
}
