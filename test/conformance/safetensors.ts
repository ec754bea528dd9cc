import { readFileSync, writeFileSync } from 'node:fs'

/** A tensor as a safetensors file holds it: little-endian bytes in row-major order, and the format's dtype (`F32` …). */
export interface Stored {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

interface Header {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

/** The tensors of a safetensors file: an 8-byte header length, a JSON header, the data. */
export function readSafetensors(path: string): Map<string, Stored> {
  const file = readFileSync(path)
  const size = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + size)) as Record<string, Header>
  const out = new Map<string, Stored>()
  for (const [name, { dtype, shape, data_offsets: range }] of Object.entries(header)) {
    if (name === '__metadata__') continue
    out.set(name, { dtype, shape, bytes: file.subarray(8 + size + range[0], 8 + size + range[1]) })
  }
  return out
}

export function writeSafetensors(path: string, tensors: ReadonlyMap<string, Stored>): void {
  const header: Record<string, Header> = {}
  let at = 0
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape: [...shape], data_offsets: [at, at + bytes.length] }
    at += bytes.length
  }
  let text = JSON.stringify(header)
  text += ' '.repeat((8 - (Buffer.byteLength(text) % 8)) % 8)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)))
  writeFileSync(
    path,
    Buffer.concat([length, Buffer.from(text), ...[...tensors.values()].map((t) => t.bytes)]),
  )
}

/** The elements as numbers. 64-bit integers wrap to 32 bits, as tilegrad's own sums do: agreement is modulo 2³². */
export function elements({ dtype, bytes }: Stored): Float32Array | Float64Array | Int32Array | Uint8Array {
  // A copy, because a view needs its start aligned to the element size.
  const { buffer } = Uint8Array.from(bytes)
  switch (dtype) {
    case 'F32':
      return new Float32Array(buffer)
    case 'F64':
      return new Float64Array(buffer)
    case 'I32':
      return new Int32Array(buffer)
    case 'I64':
      return Int32Array.from(new BigInt64Array(buffer), (v) => Number(BigInt.asIntN(32, v)))
    case 'U8':
    case 'BOOL':
      return new Uint8Array(buffer)
    default:
      throw new Error(`safetensors: no reader for ${dtype}`)
  }
}
