// Clips on the page of an exported model: decoded and resampled by the browser, then cut to the window.
import { drawFiles } from "./files.js";

export function draw(form, ask, element) {
  const row = drawFiles(form, ask, element, {
    prompt: "Drop a sound here, or",
    accept: "audio/*",
    buttons: { "Choose a file": {} },
  });
  const button = element("button", "Record", { type: "button" });
  let recorder = null;
  button.addEventListener("click", async () => {
    if (recorder) {
      recorder.stop();
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      recorder = new MediaRecorder(stream);
      const parts = [];
      recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
      recorder.addEventListener("stop", () => {
        stream.getTracks().forEach((track) => track.stop());
        recorder = null;
        button.textContent = "Record";
        ask(new Blob(parts));
      });
      recorder.start();
      button.textContent = "Stop";
    } catch {
      button.textContent = "No microphone";
      button.disabled = true;
    }
  });
  if (navigator.mediaDevices) row.append(button); // only on secure pages
}

// The middle of the samples; shorter clips lie in the middle, between zeros.
function windowOf(samples, count) {
  const start = Math.floor((count - samples.length) / 2);
  if (start < 0) return samples.slice(-start, count - start);
  const padded = new Float32Array(count);
  padded.set(samples, start);
  return padded;
}

export async function open({ rate, samples: count }) {
  let shown = null;
  return async (file) => {
    let clip;
    try {
      clip = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
    } catch {
      throw new Error(`the browser cannot read ${file.name || "it"} as a sound.`);
    }
    const mono = new Float32Array(clip.length);
    for (let channel = 0; channel < clip.numberOfChannels; channel++) {
      clip.getChannelData(channel).forEach((x, n) => (mono[n] += x / clip.numberOfChannels));
    }
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(file);
    const preview = document.createElement("audio");
    preview.controls = true;
    preview.src = shown;
    return { type: "float32", data: windowOf(mono, count), dims: [1, count], preview };
  };
}
