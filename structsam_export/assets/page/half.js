// FP16, little endian, as the server sends embeddings.

const table = new Float32Array(1 << 16);
for (let code = 0; code < table.length; code++) {
  const sign = code & 0x8000 ? -1 : 1, exponent = (code >> 10) & 31, fraction = code & 1023;
  if (exponent === 31) table[code] = fraction ? NaN : sign * Infinity;
  else table[code] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);
}

// Returns Float32Array.
export function readHalf(buffer) {
  return Float32Array.from(new Uint16Array(buffer), (code) => table[code]);
}
