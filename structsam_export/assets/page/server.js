// The server's routes. Every failure is an Error whose message is the server's own sentence.

const TOKEN = "structsam-token";

export class Unreachable extends Error {}

export async function sendPhoto(blob) {
  return (await ask("v1/images", { method: "POST", body: blob })).json();
}

export async function findMasks(id, prompt) {
  const body = JSON.stringify({ ...prompt, best: true, format: "rle" });
  const headers = { "Content-Type": "application/json" };
  return (await ask(`v1/images/${id}/masks`, { method: "POST", body, headers })).json();
}

export async function findEverything(id) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(`v1/images/${id}/everything`, { method: "POST", body: "{}", headers })).json();
}

// What serves, and whether its decoder can run here.
export async function fetchModel() {
  return (await ask("v1/model", {})).json();
}

export async function fetchDecoder() {
  return new Uint8Array(await (await ask("v1/model/decoder.onnx", {})).arrayBuffer());
}

// Returns { half: ArrayBuffer of FP16, shape }.
export async function fetchEmbedding(id) {
  const answer = await ask(`v1/images/${id}/embedding`, {});
  const shape = answer.headers.get("X-Shape").split(",").map(Number);
  return { half: await answer.arrayBuffer(), shape };
}

async function ask(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Unreachable("The server does not answer. It is asked again with the next click.");
  }
  if (answer.status === 401) {
    if (sessionStorage.getItem(TOKEN) !== token) return ask(path, options); // given meanwhile
    const given = window.prompt("Token of this server:");
    if (given) {
      sessionStorage.setItem(TOKEN, given);
      return ask(path, options);
    }
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const error = new Error(told.error || `The server answered ${answer.status}.`);
    error.status = answer.status;
    throw error;
  }
  return answer;
}
