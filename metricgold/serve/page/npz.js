// ZIP files whose entries are not compressed, as the server and numpy's savez write them, and arrays of numpy in them.

export function unzip(buffer) {  // name -> ArrayBuffer
  const view = new DataView(buffer), files = new Map();
  let end = buffer.byteLength - 22;
  while (view.getUint32(end, true) !== 0x06054b50) end--;  // end of central directory
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const size = view.getUint32(at + 20, true), nameLength = view.getUint16(at + 28, true);
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    files.set(new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength)), buffer.slice(start, start + size));
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

const TYPES = {"<f4": Float32Array, "<f8": Float64Array};

export function numpyArray(buffer) {  // {shape, data} of an array of floats
  const view = new DataView(buffer), isFirst = view.getUint8(6) === 1;
  const start = isFirst ? 10 : 12, length = isFirst ? view.getUint16(8, true) : view.getUint32(8, true);
  const head = new TextDecoder().decode(new Uint8Array(buffer, start, length));
  const type = TYPES[head.match(/'descr': '([^']*)'/)[1]];
  const shape = head.match(/'shape': \(([^)]*)\)/)[1].split(",").filter(part => part.trim()).map(Number);
  return {shape, data: new type(buffer.slice(start + length))};
}
