import type { Tensor } from 'tilegrad'

/** Tensors as a safetensors file: a JSON table of names, shapes and places, then the numbers, all little-endian. */
export async function toSafetensors(
  tensors: Iterable<[string, Tensor]> | Record<string, Tensor>,
): Promise<Uint8Array> {
  const entries: [string, Tensor][] =
    Symbol.iterator in tensors ? [...(tensors as Iterable<[string, Tensor]>)] : Object.entries(tensors)
  const header: Record<string, unknown> = {}
  const parts: Uint8Array[] = []
  let at = 0
  for (const [name, t] of entries) {
    const data = Float32Array.from(await t.data())
    header[name] = { dtype: 'F32', shape: t.shape, data_offsets: [at, at + data.byteLength] }
    parts.push(new Uint8Array(data.buffer))
    at += data.byteLength
  }
  const json = JSON.stringify(header)
  // Padded with spaces so that the numbers are aligned.
  const head = new TextEncoder().encode(json.padEnd(Math.ceil(json.length / 8) * 8))
  const size = new Uint8Array(8)
  new DataView(size.buffer).setBigUint64(0, BigInt(head.length), true)
  return Buffer.concat([size, head, ...parts])
}
