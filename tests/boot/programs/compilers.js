// Two workers, each with an isolate and a compiler thread of its own, for some seconds:
// functions that are made, become hot, are compiled, and go. Prints how often each came to
// the right result; exits with 1 at a wrong one.
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");

// Objects of several shapes come here, so that compiled code of it is given up again.
function mix(object) {
  let sum = 0;
  for (let i = 0; i < 1000; i++) sum = (sum + object.value + i) >>> 0;
  return sum;
}

const shapes = [(value) => ({ value }), (value) => ({ a: 1, value }), (value) => ({ value, b: "" })];

function pass(value, rounds, loops) {
  for (let r = 0; r < rounds; r++) {
    const body = `
      for (let i = 0; i < ${loops}; i++) {
        value = (Math.imul(value, ${1664525 + 2 * r}) + ${1013904223 + r}) >>> 0;
        value = (value ^ (value >>> ${1 + (r % 15)})) >>> 0;
      }
      return value;`;
    value = new Function("value", body)(value);
    value = mix(shapes[r % 3](value));
  }
  return value;
}

const [seconds, rounds, loops, ...results] = process.argv.slice(2).map(Number);
if (isMainThread) {
  for (const seed of [1, 2]) {
    const worker = new Worker(__filename, { workerData: seed, argv: process.argv.slice(2) });
    worker.on("message", (text) => {
      console.log(text);
      if (text.startsWith("wrong")) process.exit(1);
    });
  }
} else {
  const end = Date.now() + seconds * 1000;
  let count = 0;
  let answer = "";
  while (answer === "" && (count === 0 || Date.now() < end)) {
    const value = pass(workerData, rounds, loops);
    if (value !== results[workerData - 1]) answer = `wrong in pass ${count}: ${value}`;
    count++;
  }
  parentPort.postMessage(answer || String(count));
}
