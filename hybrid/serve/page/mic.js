// The microphone as a growing mono WAV, which the server turns into words while one speaks. Knows no page.

function wav(chunks, rate) {
  const samples = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples));
  const word = (place, text) => [...text].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * samples, true);
  let place = 44;
  for (const chunk of chunks) {
    for (const value of chunk) {
      view.setInt16(place, Math.max(-1, Math.min(1, value)) * 32767, true);
      place += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

// Records until the function that it returns is called, with true if the last words count.
// `heard(recording, last)` is called every `every` ms and then once more with last = true.
export async function listen(heard, every = 900) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("no microphone here: browsers give it to localhost and https pages only");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } });
  } catch (error) {
    throw new Error(error.name === "NotFoundError" ? "no microphone was found" : "the microphone was not allowed");
  }
  let audio;
  const close = async () => {
    stream.getTracks().forEach((track) => track.stop());
    await audio?.close();
  };
  const chunks = [];
  try {
    audio = new AudioContext(); // at its own rate, since Firefox connects no microphone of another one
    await audio.audioWorklet.addModule("/page/recorder.js");
    const recorder = new AudioWorkletNode(audio, "recorder");
    recorder.port.onmessage = ({ data }) => chunks.push(data);
    audio.createMediaStreamSource(stream).connect(recorder);
  } catch (error) {
    await close();
    throw error;
  }
  const timer = setInterval(() => chunks.length && heard(wav(chunks, audio.sampleRate), false), every);
  return async (lastWords) => {
    clearInterval(timer);
    await close();
    if (lastWords) await heard(wav(chunks, audio.sampleRate), true);
  };
}
