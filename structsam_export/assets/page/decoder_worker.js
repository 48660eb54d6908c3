// The decoder in a thread of its own, so that the page never waits for it: ONNX Runtime in WASM.
//
// Messages { job, kind, ... } get { job, result } or { job, error }.

import * as ort from "./onnxruntime_web/ort.wasm.bundle.min.mjs";
import { readHalf } from "./half.js";
import { choose, encodePrompt } from "./prompts.js";
import { maskRuns, maskSampled, tapsOf } from "./upscale.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime_web/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

let session = null, model = null;
let image = null; // { id, embedding: Tensor, place, taps }

const work = {
  async open({ description, file }) {
    model = description;
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  },

  async image({ id, half, shape, size, inputSize }) {
    const place = { size, inputSize, imageSize: model.image_size, probabilities: model.upsample_probabilities };
    image = { id, embedding: new ort.Tensor("float32", readHalf(half), shape), place, taps: null };
  },

  // view: { wide, high } for a mask in the size of the screen; none for the photo's own.
  async mask({ id, prompt, view }) {
    if (image?.id !== id) throw new Error(`no embedding of ${id} here`);
    const start = performance.now();
    const { coords, labels } = encodePrompt(prompt, image.place);
    const [high, wide] = model.mask_size, count = labels.length;
    const found = await session.run({
      image_embeddings: image.embedding,
      point_coords: new ort.Tensor("float32", coords, [1, count, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, count]),
      mask_input: new ort.Tensor("float32", new Float32Array(high * wide), [1, 1, high, wide]),
      has_mask_input: new ort.Tensor("float32", new Float32Array(1), [1]),
    }, ["low_res_masks", "iou_predictions"]);
    const decodeMs = performance.now() - start;
    const scores = found.iou_predictions.data, chosen = choose(prompt, scores);
    const small = found.low_res_masks.dims.slice(-2), size = small[0] * small[1];
    const logits = found.low_res_masks.data.slice(chosen * size, (chosen + 1) * size);
    if (!Number.isFinite(scores[chosen]) || !logits.every(Number.isFinite)) throw new Error("values are not finite");
    image.taps ||= tapsOf(small, image.place);
    const { probabilities } = image.place;
    const result = { score: scores[chosen], decode_ms: decodeMs };
    if (view) result.sampled = maskSampled(logits, small, image.taps, probabilities, view.wide, view.high);
    else result.runs = maskRuns(logits, small, image.taps, probabilities);
    return result;
  },
};

// One job at a time, in order: a session does not run twice at once.
let last = Promise.resolve();
self.addEventListener("message", ({ data }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ job: data.job, result: await work[data.kind](data) });
    } catch (error) {
      self.postMessage({ job: data.job, error: String(error?.message || error) });
    }
  });
});
