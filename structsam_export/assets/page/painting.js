// Masks, boxes and points on the canvas. Places are in pixels of the photo, scaled by [across, down].

// Puts a mask (0 and 1, rows of `wide`) into pixels [high, wide, 4], its outline without transparency.
export function paint(pixels, mask, color, alpha, wide) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  for (let index = 0; index < mask.length; index++) {
    if (!mask[index]) continue;
    const x = index % wide;
    const edge = !x || x === wide - 1 || !mask[index - 1] || !mask[index + 1] || !mask[index - wide] || !mask[index + wide];
    pixels.set([red, green, blue, edge ? 255 : alpha], 4 * index);
  }
}

export function frame(pen, [x0, y0, x1, y1], color, [across, down]) {
  pen.lineWidth = 2;
  pen.strokeStyle = color;
  pen.strokeRect(x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down);
}

export function dot(pen, x, y, color, [across, down]) {
  pen.beginPath();
  pen.arc(x * across, y * down, 5, 0, 7);
  pen.fillStyle = color;
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = "white";
  pen.stroke();
}
