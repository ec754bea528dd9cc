import { loadSafetensors, readSafetensors, storedValues, writeSafetensors } from 'tilegrad'
import type { Part } from './part.ts'
import { hostileNumbers, hostileValues, type Random } from './random.ts'

// Mutated safetensors files: each gives a map of tensors or a typed error.

const encoder = new TextEncoder()

function file(header: string, data: Uint8Array, length = BigInt(encoder.encode(header).length)): Uint8Array {
  const json = encoder.encode(header)
  const bytes = new Uint8Array(8 + json.length + data.length)
  new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, length), true)
  bytes.set(json, 8)
  bytes.set(data, 8 + json.length)
  return bytes
}

const DTYPES = ['F64', 'I64', 'F32', 'I32', 'F16', 'BF16', 'I16', 'I8', 'U8', 'BOOL'] as const
const SIZES = { F64: 8, I64: 8, F32: 4, I32: 4, F16: 2, BF16: 2, I16: 2, I8: 1, U8: 1, BOOL: 1 } as const

type Header = Record<string, unknown>

/** A file of a few tensors that is right, as its header and its data. */
function sound(random: Random): [Header, Uint8Array] {
  const header: Header = {}
  if (random.chance(0.5)) header.__metadata__ = { format: 'pt', name: 'ä€𝄞' }
  let at = 0
  for (let i = random.below(5); i >= 0; i--) {
    const dtype = random.one(DTYPES)
    const shape = Array.from({ length: random.below(4) }, () => random.below(4))
    const bytes = shape.reduce((n, d) => n * d, SIZES[dtype])
    header[random.one(['a', 'b.weight', 'h.0.attn', '', 'toString', 'ö']) + i] = {
      dtype,
      shape,
      data_offsets: [at, at + bytes],
    }
    at += bytes
  }
  return [header, Uint8Array.from({ length: at }, () => random.below(256))]
}

/** Changes what the header says. */
function changeHeader(random: Random, header: Header): string {
  const names = Object.keys(header)
  const name = random.one(names)
  const entry = header[name]
  const fields = ['dtype', 'shape', 'data_offsets', 'more']
  const change = random.below(6)
  if (change === 0) header[name] = hostileValues(random)
  else if (change === 1 && entry && typeof entry === 'object')
    Object.assign(entry, { [random.one(fields)]: hostileValues(random) })
  else if (change === 2 && entry && typeof entry === 'object') {
    const { shape, data_offsets: range } = entry as { shape?: unknown[]; data_offsets?: unknown[] }
    const list = random.chance(0.5) ? shape : range
    if (Array.isArray(list)) list[random.below(list.length + 1)] = random.one(hostileNumbers)
  } else if (change === 3)
    header[random.one(['__metadata__', '__proto__', 'constructor', ''])] = hostileValues(random)
  else if (change === 4) Reflect.deleteProperty(header, name)
  let text = JSON.stringify(header)
  if (change === 5) {
    // What JSON.stringify never writes: repeated keys, comments, odd numbers, depth without end.
    const depth = 1 + random.below(100_000)
    text = random.one([
      `${text.slice(0, -1)},${text.slice(1)}`,
      text.replace(
        /\d+/,
        random.one(['1e999', '-0', '01', '0x1', '1.0', '1E2', 'NaN', '99999999999999999999']),
      ),
      `{"a":${'['.repeat(depth)}${']'.repeat(depth)}}`,
      `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`,
      '['.repeat(depth),
      `${text} ${' '.repeat(random.below(100))}`,
      ` ${text}`,
      `\ufeff${text}`,
      text.replace(/"/g, "'"),
      `{"${'n'.repeat(depth)}":{}}`,
      `{"a":{"dtype":"F32","shape":[${'1,'.repeat(random.below(depth))}1],"data_offsets":[0,5]}}`,
    ])
  }
  return text
}

const joined = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts))

/** Changes bytes, wherever. */
function changeBytes(random: Random, bytes: Uint8Array): Uint8Array {
  const at = random.below(bytes.length)
  switch (random.below(6)) {
    case 0:
      return bytes.slice(0, at)
    case 1: {
      const more = new Uint8Array(bytes.length + 1 + random.below(20))
      more.set(bytes)
      return more
    }
    case 2:
      return joined(bytes.slice(0, at), Uint8Array.of(random.below(256)), bytes.slice(at))
    case 3:
      return joined(bytes.slice(0, at), bytes.slice(at + 1 + random.below(8)))
    case 4: {
      const length = random.one([
        0n,
        1n,
        2n ** 64n - 1n,
        2n ** 63n,
        2n ** 32n,
        100_000_000n,
        BigInt(bytes.length),
      ])
      new DataView(bytes.buffer).setBigUint64(0, length, true)
      return bytes
    }
    default:
      for (let i = random.below(8); i >= 0; i--) bytes[random.below(bytes.length)] ^= 1 << random.below(8)
      return bytes
  }
}

function mutated(random: Random): Uint8Array {
  const [header, data] = sound(random)
  if (random.chance(0.02)) return Uint8Array.from({ length: random.below(200) }, () => random.below(256))
  const bytes = file(random.chance(0.6) ? changeHeader(random, header) : JSON.stringify(header), data)
  return random.chance(0.5) ? changeBytes(random, bytes) : bytes
}

/** What is read is what is in the file, and what is written of it reads the same. */
function readWhole(bytes: Uint8Array): void {
  const { tensors, metadata } = readSafetensors(bytes)
  let total = 0
  for (const [name, { dtype, shape, bytes: part }] of tensors) {
    const expected = shape.reduce((n, d) => n * d, SIZES[dtype])
    if (part.length !== expected) throw new Error(`'${name}' has ${part.length} bytes, not ${expected}`)
    total += part.length
  }
  if (total > bytes.length) throw new Error(`${total} bytes of tensors in a file of ${bytes.length}`)
  const again = readSafetensors(writeSafetensors(tensors, Object.fromEntries(metadata)))
  for (const [name, { dtype, shape, bytes: part }] of tensors) {
    const other = again.tensors.get(name)
    if (
      other?.dtype !== dtype ||
      other.shape.join() !== shape.join() ||
      !part.every((b, i) => other.bytes[i] === b)
    )
      throw new Error(`'${name}' reads otherwise when it is written again`)
  }
  for (const stored of tensors.values()) storedValues(stored)
  for (const t of Object.values(loadSafetensors(bytes))) t.dispose()
}

export const safetensors: Part = {
  name: 'safetensors',
  about: 'mutated files: a map of tensors or a typed error',
  inputs: [20_000, 400],
  async run({ random, count, attempt }) {
    for (let i = 0; i < count; i++) {
      const bytes = mutated(random)
      await attempt(
        () => `base64 ${Buffer.from(bytes.subarray(0, 1500)).toString('base64')} (${bytes.length} bytes)`,
        () => readWhole(bytes),
      )
    }
  },
}
