// The decoder in this browser, where that can be: it needs no round trip for a mask.

import { fetchDecoder, fetchEmbedding, fetchModel } from "./server.js";

const LEAST_MEMORY = 2; // GB, as far as a browser tells
const SECONDS = 60; // for one answer of the worker

export class LocalDecoder {
  // changed: is called when `state` changes ("starting", "ready" or "off", with `reason`), and when a
  // photo's embedding is here.
  constructor(changed) {
    this.state = "starting";
    this.reason = "it is being loaded";
    this.changed = changed;
    this.jobs = new Map();
    this.count = 0;
    this.image = null; // { id, ready }
  }

  // Loads it in the background; ends with "ready" or "off", never with an error.
  async start() {
    try {
      if (navigator.connection?.saveData) throw new Error("this browser saves data");
      if (navigator.deviceMemory < LEAST_MEMORY) throw new Error("this machine has little memory");
      const description = await fetchModel();
      if (!description.decoder) throw new Error(description.why_not);
      this.model = description;
      this.worker = new Worker(new URL("./decoder_worker.js", import.meta.url), { type: "module" });
      this.worker.addEventListener("message", ({ data }) => this.answered(data));
      this.worker.addEventListener("error", (event) => this.stop(event.message || "its thread could not start"));
      const file = await fetchDecoder();
      await this.ask({ kind: "open", description, file }, [file.buffer]);
      [this.state, this.reason] = ["ready", ""];
      this.changed();
    } catch (error) {
      this.stop(error.message);
    }
  }

  // Brings a photo's embedding here; whoever fails to is answered by the server.
  async take({ id, width, height, inputSize }) {
    if (this.state !== "ready" || !id || this.image?.id === id) return;
    const image = { id, ready: false };
    this.image = image;
    try {
      const { half, shape } = await fetchEmbedding(id);
      if (this.image !== image) return;
      await this.ask({ kind: "image", id, half, shape, size: [height, width], inputSize }, [half]);
      image.ready = true;
      this.changed();
    } catch {
      if (this.image === image) this.image = null; // gone, or beyond FP16: it is tried with the next photo
    }
  }

  // Whether it can answer now.
  has(id, prompt) {
    const points = (prompt.points?.length || 0) + (prompt.boxes?.length ? 2 : 1);
    return this.state === "ready" && Boolean(id) && this.image?.id === id && this.image.ready && points <= this.model.max_points;
  }

  // view: { wide, high } -> { sampled }; none -> { runs }; both with score and decode_ms.
  mask(id, prompt, view = null) {
    return this.ask({ kind: "mask", id, prompt, view });
  }

  ask(message, moved = []) {
    if (this.state === "off") return Promise.reject(new Error(this.reason));
    return new Promise((resolve, reject) => {
      const job = ++this.count;
      const timer = setTimeout(() => this.stop("it does not answer"), 1000 * SECONDS);
      this.jobs.set(job, { resolve, reject, timer });
      this.worker.postMessage({ job, ...message }, moved);
    });
  }

  answered({ job, result, error }) {
    const { resolve, reject, timer } = this.jobs.get(job) || {};
    if (!resolve) return;
    clearTimeout(timer);
    this.jobs.delete(job);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }

  // From now on the server answers.
  stop(reason) {
    if (this.state === "off") return;
    [this.state, this.reason] = ["off", reason];
    this.worker?.terminate();
    for (const { reject, timer } of this.jobs.values()) {
      clearTimeout(timer);
      reject(new Error(reason));
    }
    this.jobs.clear();
    this.changed();
  }
}
