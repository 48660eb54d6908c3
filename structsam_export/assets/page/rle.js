// Masks as COCO's run lengths: down the columns, off and on in turn, off first.

export function decodeRuns(counts) {
  const runs = [];
  for (let place = 0; place < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

export function encodeRuns(runs) {
  let counts = "";
  runs.forEach((run, index) => {
    let value = index > 2 ? run - runs[index - 2] : run, more = true;
    while (more) {
      let code = value & 31;
      value >>= 5;
      more = code & 16 ? value !== -1 : value !== 0;
      if (more) code |= 32;
      counts += String.fromCharCode(code + 48);
    }
  });
  return counts;
}

// Calls `paint(x, from, to)` for every run that is on: rows from..to-1 of column x.
export function eachRun(runs, height, paint) {
  let place = 0;
  runs.forEach((run, index) => {
    if (index % 2) {
      for (let start = place, end = place + run; start < end;) {
        const x = Math.floor(start / height), top = start - x * height;
        const bottom = Math.min(height, top + end - start);
        paint(x, top, bottom);
        start += bottom - top;
      }
    }
    place += run;
  });
}

// The mask in `wide` x `high` pixels, each the one that lies at its middle: Uint8Array of 0 and 1.
export function sampled(mask, wide, high) {
  const [height, width] = mask.size;
  const full = new Uint8Array(wide * high);
  const columns = Array.from({ length: width }, () => []);
  for (let x = 0; x < wide; x++) columns[Math.floor((x + 0.5) * width / wide)].push(x);
  const rowsBefore = (y) => Math.ceil(y * high / height - 0.5); // first row whose middle is at y or below
  eachRun(mask.runs, height, (x, top, bottom) => {
    const first = Math.max(0, rowsBefore(top)), last = Math.min(high, rowsBefore(bottom));
    for (const column of columns[x]) {
      for (let y = first; y < last; y++) full[y * wide + column] = 1;
    }
  });
  return full;
}

export function boxOf(runs, height) {
  let x0 = Infinity, y0 = Infinity, x1 = -1, y1 = -1;
  eachRun(runs, height, (x, top, bottom) => {
    x0 = Math.min(x0, x); x1 = Math.max(x1, x + 1);
    y0 = Math.min(y0, top); y1 = Math.max(y1, bottom);
  });
  return x1 < 0 ? [0, 0, 0, 0] : [x0, y0, x1 - x0, y1 - y0];
}
