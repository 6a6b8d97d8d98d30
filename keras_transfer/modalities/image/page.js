// Images on the page of an exported model: decoded by the browser, then cropped and resampled as in
// training, see boxes.py and resample.py.
import { drawFiles } from "./files.js";

export function draw(form, ask, element) {
  drawFiles(form, ask, element, {
    prompt: "Drop an image here, paste one, or",
    accept: "image/*",
    buttons: { "Choose a file": {}, "Take a photo": { capture: "environment" } },
  });
}

// For each of `size` results: the first pixel it reads, and the weight of each pixel from there.
function triangles(start, length, size, count) {
  const step = length / size;
  const reach = Math.max(step, 1);
  return Array.from({ length: size }, (_, index) => {
    const middle = start + (index + 0.5) * step;
    const first = Math.max(0, Math.floor(middle - reach + 0.5));
    const after = Math.min(count, Math.floor(middle + reach + 0.5));
    const weights = [];
    for (let at = first; at < after; at++) {
      weights.push(Math.max(0, 1 - Math.abs(at + 0.5 - middle) / reach));
    }
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

// A box of an image as RGB, uint8 [down.length, across.length, 3]: rows are scaled first, then columns.
function resample({ data, width }, down, across) {
  const size = across.length;
  const firstRow = down[0].first;
  const last = down[down.length - 1];
  const afterRow = last.first + last.weights.length;
  const rows = new Uint8ClampedArray((afterRow - firstRow) * size * 3); // rounds
  for (let y = firstRow, at = 0; y < afterRow; y++) {
    for (const { first, weights } of across) {
      let pixel = 4 * (y * width + first);
      let red = 0, green = 0, blue = 0;
      for (const weight of weights) {
        red += weight * data[pixel];
        green += weight * data[pixel + 1];
        blue += weight * data[pixel + 2];
        pixel += 4;
      }
      rows[at++] = red;
      rows[at++] = green;
      rows[at++] = blue;
    }
  }
  const result = new Uint8ClampedArray(down.length * size * 3);
  for (let y = 0; y < down.length; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < 3 * size; x++) {
      let sum = 0;
      weights.forEach((weight, n) => (sum += weight * rows[(first - firstRow + n) * 3 * size + x]));
      result[y * 3 * size + x] = sum;
    }
  }
  return new Uint8Array(result.buffer);
}

export async function open({ rows, columns, share }) {
  let shown = null;
  return async (file) => {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, {
        imageOrientation: "from-image",
        colorSpaceConversion: "none",
      });
    } catch {
      throw new Error(`the browser cannot read ${file.name || "it"} as an image.`);
    }
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const pixels = context.getImageData(0, 0, width, height);
    const tall = Math.min(height, (width * rows) / columns) * share;
    const wide = (tall * columns) / rows;
    const down = triangles((height - tall) / 2, tall, rows, height);
    const across = triangles((width - wide) / 2, wide, columns, width);
    const data = resample(pixels, down, across);
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(file);
    const preview = new Image();
    preview.src = shown;
    preview.alt = "the image";
    return { type: "uint8", data, dims: [1, rows, columns, 3], preview };
  };
}
