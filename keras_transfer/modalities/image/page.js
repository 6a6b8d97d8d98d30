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

// A square of an image as RGB, uint8 [size, size, 3]: rows are scaled first, then columns.
function resample({ data, width, height }, left, top, side, size) {
  const across = triangles(left, side, size, width);
  const down = triangles(top, side, size, height);
  const firstRow = down[0].first;
  const afterRow = down[size - 1].first + down[size - 1].weights.length;
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
  const result = new Uint8ClampedArray(size * size * 3);
  for (let y = 0; y < size; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < 3 * size; x++) {
      let sum = 0;
      weights.forEach((weight, n) => (sum += weight * rows[(first - firstRow + n) * 3 * size + x]));
      result[y * 3 * size + x] = sum;
    }
  }
  return new Uint8Array(result.buffer);
}

export async function open({ size, share }) {
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
    const side = Math.min(width, height) * share;
    const data = resample(pixels, (width - side) / 2, (height - side) / 2, side, size);
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(file);
    const preview = new Image();
    preview.src = shown;
    preview.alt = "the image";
    return { type: "uint8", data, dims: [1, size, size, 3], preview };
  };
}
