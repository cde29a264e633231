// Audio thread: hands every block of samples to the page.
registerProcessor(
  "recorder",
  class extends AudioWorkletProcessor {
    process([[channel]]) {
      if (channel) this.port.postMessage(channel.slice());
      return true;
    }
  },
);
