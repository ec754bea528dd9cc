import {
  type Backend,
  type DType,
  DTypeError,
  data,
  describeValue,
  expectOptions,
  expectTensor,
  type Tensor,
  type TypedArray,
  tensor,
  ValueError,
} from '@tilegrad/core'
import { pack, unpack } from '@tilegrad/core/kernel'
import { brief, quoted } from '../brief.ts'
import type { StateDict } from '../module/state-dict.ts'

/** Bytes per element of the dtypes that are read. */
const SIZES = { F64: 8, I64: 8, F32: 4, I32: 4, F16: 2, BF16: 2, I16: 2, I8: 1, U8: 1, BOOL: 1 } as const

/** A dtype as a safetensors file names it. */
export type StoredDType = keyof typeof SIZES

/** A tensor as a safetensors file holds it: little-endian elements in row-major order. */
export interface StoredTensor {
  /** The type of the elements in the file. */
  readonly dtype: StoredDType
  /** The size of each dim. */
  readonly shape: readonly number[]
  /** The elements, little-endian. */
  readonly bytes: Uint8Array
}

/** What a safetensors file holds. */
export interface Safetensors {
  /** The tensors by name, in the order of the file. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /** Texts by name, as the file's header has them. */
  readonly metadata: ReadonlyMap<string, string>
}

const METADATA = '__metadata__'
/** Longer headers are refused, as by the format's own library. */
const LONGEST_HEADER = 100_000_000
/** The most dims of a tensor, as in PyTorch. */
const MOST_DIMS = 64

const wrong = (what: string): ValueError => new ValueError(`safetensors: ${what}`)

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** A list of whole numbers from 0 to 2⁵³ − 1. */
const isSizes = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0 && !Object.is(n, -0))

/** The first key that an object of this valid JSON has twice: of such keys `JSON.parse` keeps the last in silence. */
function repeatedKey(json: string): string | null {
  const open: (Set<string> | null)[] = []
  for (let i = 0; i < json.length; i++) {
    const c = json[i]
    if (c === '{') open.push(new Set())
    else if (c === '[') open.push(null)
    else if (c === '}' || c === ']') open.pop()
    else if (c === '"') {
      let end = i + 1
      while (json[end] !== '"') end += json[end] === '\\' ? 2 : 1
      let next = end + 1
      while (/\s/.test(json[next] ?? '')) next++
      const keys = json[next] === ':' ? open.at(-1) : null
      if (keys) {
        const key = JSON.parse(json.slice(i, end + 1)) as string
        if (keys.has(key)) return key
        keys.add(key)
      }
      i = end
    }
  }
  return null
}

/** The header, and where the data begins. */
function header(bytes: Uint8Array): [entries: Readonly<Record<string, unknown>>, start: number] {
  if (bytes.length < 8)
    throw wrong(`a file begins with 8 bytes of header length; this one has ${bytes.length}`)
  const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true)
  if (length > LONGEST_HEADER || 8 + Number(length) > bytes.length)
    throw wrong(
      `the header should be ${length} bytes long, but the file has ${bytes.length - 8} after its length (and ${LONGEST_HEADER} is the most allowed); is it a safetensors file, and whole?`,
    )
  const start = 8 + Number(length)
  let entries: unknown
  let repeated: string | null
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes.subarray(8, start))
    if (text[0] !== '{') throw new Error("it does not begin with '{'")
    entries = JSON.parse(text)
    repeated = repeatedKey(text)
  } catch (error) {
    throw wrong(`the header is no JSON object in UTF-8: ${(error as Error).message}`)
  }
  if (repeated !== null) throw wrong(`the header names ${quoted(repeated)} twice`)
  return [entries as Readonly<Record<string, unknown>>, start]
}

function metadataOf(value: unknown): Map<string, string> {
  if (!isObject(value)) throw wrong(`${METADATA} must map names to strings, not ${brief(value)}`)
  const pairs = Object.entries(value).map(([key, text]): [string, string] => {
    if (typeof text !== 'string')
      throw wrong(`${METADATA} ${quoted(key)} must be a string, not ${brief(text)}`)
    return [key, text]
  })
  return new Map(pairs)
}

/** Checks what the header says of one tensor; its bytes are counted from where the data begins. */
function entryOf(name: string, value: unknown): { dtype: StoredDType; shape: number[]; range: number[] } {
  const what = quoted(name)
  if (!isObject(value)) throw wrong(`${what} must be { dtype, shape, data_offsets }, not ${brief(value)}`)
  const { dtype, shape, data_offsets: range } = value
  if (typeof dtype !== 'string' || !Object.hasOwn(SIZES, dtype))
    throw new DTypeError(
      `safetensors: ${what} has dtype ${brief(dtype)}; expected one of ${Object.keys(SIZES).join(', ')}`,
    )
  if (!isSizes(shape)) throw wrong(`${what} has shape ${brief(shape)}; expected whole numbers`)
  if (shape.length > MOST_DIMS) throw wrong(`${what} has ${shape.length} dims; at most ${MOST_DIMS} are read`)
  if (!isSizes(range) || range.length !== 2 || range[0] > range[1])
    throw wrong(
      `${what} has data_offsets ${brief(range)}; expected its first byte and the one after its last`,
    )
  const known = dtype as StoredDType
  const expected = shape.reduce((n, d) => n * d, SIZES[known])
  const given = range[1] - range[0]
  if (expected !== given)
    throw wrong(`${what}, ${known} ${brief(shape)}, takes ${expected} bytes; data_offsets hold ${given}`)
  return { dtype: known, shape, range }
}

function bytesOf(file: Uint8Array | ArrayBuffer | DataView): Uint8Array {
  if (file instanceof Uint8Array) return file
  if (ArrayBuffer.isView(file)) return new Uint8Array(file.buffer, file.byteOffset, file.byteLength)
  // By name and not by class, for buffers of another realm or of shared memory.
  if (/^\[object (Shared)?ArrayBuffer\]$/.test(Object.prototype.toString.call(file)))
    return new Uint8Array(file)
  const fix = typeof file === 'string' ? '; read the file first, as await readFile(path)' : ''
  throw new ValueError(`safetensors: takes the bytes of a file, got ${describeValue(file)}${fix}`)
}

/**
 * Reads the tensors of a safetensors file without copying: each one's bytes are a view of the file's. The file is an
 * 8-byte header length, a JSON header of names, dtypes, shapes and places, and the data. Everything is checked: a file
 * that passes has every tensor within its data, none overlapping and no bytes unused.
 *
 * @param file the whole file.
 * @throws ValueError saying what is malformed, DTypeError for a dtype that is not read.
 * @example
 * const file = readSafetensors(await saveSafetensors({ x: zeros([2, 3]) }, { author: 'me' }))
 * file.tensors.get('x')?.shape // → 2,3
 * file.metadata.get('author') // → me
 */
export function readSafetensors(file: Uint8Array | ArrayBuffer | DataView): Safetensors {
  const bytes = bytesOf(file)
  const [entries, start] = header(bytes)
  const tensors = new Map<string, StoredTensor>()
  const places: [begin: number, end: number, name: string][] = []
  let metadata = new Map<string, string>()
  for (const [name, value] of Object.entries(entries)) {
    if (name === METADATA) {
      metadata = metadataOf(value)
      continue
    }
    const { dtype, shape, range } = entryOf(name, value)
    const [begin, end] = range as [number, number]
    if (start + end > bytes.length)
      throw wrong(
        `${quoted(name)} ends at byte ${end} of the data, which has ${bytes.length - start}; is the file whole?`,
      )
    places.push([begin, end, name])
    // No subarray(): of Node's Buffer it would be another Buffer, whose slice() does not copy.
    const part = new Uint8Array(bytes.buffer, bytes.byteOffset + start + begin, end - begin)
    tensors.set(name, { dtype, shape, bytes: part })
  }
  let at = 0
  for (const [begin, end, name] of places.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (begin !== at)
      throw wrong(
        `${quoted(name)} begins at byte ${begin} of the data; expected ${at}: tensors may neither overlap nor leave gaps`,
      )
    at = end
  }
  if (start + at !== bytes.length) throw wrong(`${bytes.length - start - at} bytes follow the last tensor`)
  return { tensors, metadata }
}

function int32(big: bigint): number {
  const value = Number(big)
  if (value !== (value | 0)) throw wrong(`${big} does not fit int32, the only integer dtype here`)
  return value
}

/**
 * The elements of a stored tensor: F16 and BF16 widened to float32, which holds them exactly, integers as int32. A view
 * of the file's bytes where these are aligned and need no conversion.
 *
 * @throws ValueError for an I64 element outside int32.
 * @example
 * storedValues({ dtype: 'I32', shape: [1], bytes: new Uint8Array([7, 0, 0, 0]) }) // → [7]
 */
export function storedValues(stored: StoredTensor): TypedArray {
  const { dtype, bytes } = stored
  const size = SIZES[dtype]
  // A typed array begins at a multiple of its element size; a tensor in a file need not.
  const { buffer, byteOffset } = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes)
  const n = bytes.length / size
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer, byteOffset, n)
    case 'F32':
      return new Float32Array(buffer, byteOffset, n)
    case 'I32':
      return new Int32Array(buffer, byteOffset, n)
    case 'BOOL':
      return new Uint8Array(buffer, byteOffset, n)
    case 'U8':
      return Int32Array.from(bytes)
    case 'I8':
      return Int32Array.from(new Int8Array(buffer, byteOffset, n))
    case 'I16':
      return Int32Array.from(new Int16Array(buffer, byteOffset, n))
    case 'I64':
      return Int32Array.from(new BigInt64Array(buffer, byteOffset, n), int32)
    case 'F16':
      return unpack('float16', new Uint16Array(buffer, byteOffset, n))
    case 'BF16':
      // The upper half of a float32.
      return new Float32Array(Uint32Array.from(new Uint16Array(buffer, byteOffset, n), (b) => b << 16).buffer)
  }
}

/** A prototype without names, so that a tensor may have any; it holds only what it takes to be text. */
const NAMELESS: object = Object.create(null, {
  [Symbol.toPrimitive]: {
    value(this: StateDict) {
      const names = Object.keys(this)
      const more = names.length > 8 ? ', …' : ''
      return `StateDict(${names.length} tensors: ${names.slice(0, 8).join(', ')}${more})`
    },
  },
})

/**
 * The tensors of a safetensors file by name: F64, F32, I32 and BOOL as they are, F16 and BF16 as float32 or as they are,
 * other integers as int32.
 *
 * @param bytes the whole file, such as `await readFile(path)` or `await response.arrayBuffer()`.
 * @param options.device where the tensors are made; default `defaultBackend()`.
 * @param options.widen false keeps F16 and BF16 as float16 and bfloat16, in half the memory; default true.
 * @throws ValueError saying what is malformed, or for an integer outside int32; DTypeError for a dtype that is not read.
 * @example
 * const bytes = await saveSafetensors(new Linear(3, 2).stateDict())
 * new Linear(3, 2).loadStateDict(loadSafetensors(bytes))
 */
export function loadSafetensors(
  bytes: Uint8Array | ArrayBuffer | DataView,
  options: { device?: Backend | string; widen?: boolean } = {},
): StateDict {
  const { widen = true, ...rest } = expectOptions('loadSafetensors', options, { device: 1, widen: 1 })
  const dict = Object.create(NAMELESS) as StateDict
  for (const [name, stored] of readSafetensors(bytes).tensors) {
    const dtype = widen ? undefined : halves[stored.dtype]
    const as = dtype ?? (stored.dtype === 'BOOL' ? 'bool' : undefined)
    dict[name] = tensor(storedValues(stored), stored.shape, as ? { ...rest, dtype: as } : rest)
  }
  return dict
}

/** The dtypes of 16 bits, by their names in files. */
const halves: Readonly<Partial<Record<StoredDType, DType>>> = { F16: 'float16', BF16: 'bfloat16' }

/**
 * Lays stored tensors out as a safetensors file, the larger element sizes first, so that every tensor is aligned.
 *
 * @throws ValueError for a tensor called `__metadata__`, or whose bytes are not those of its dtype and shape.
 * @example
 * const seven = { dtype: 'I32', shape: [1], bytes: new Uint8Array([7, 0, 0, 0]) } as const
 * const bytes = writeSafetensors([['x', seven]])
 * await loadSafetensors(bytes).x?.toArray() // → [7]
 */
export function writeSafetensors(
  tensors: Iterable<readonly [string, StoredTensor]>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const entries = [...tensors].sort(([, a], [, b]) => SIZES[b.dtype] - SIZES[a.dtype])
  const head = Object.create(null) as Record<string, unknown>
  if (Object.keys(metadata).length > 0) head[METADATA] = metadata
  let at = 0
  for (const [name, { dtype, shape, bytes }] of entries) {
    if (name === METADATA) throw wrong(`no tensor can be called '${METADATA}'`)
    if (name in head) throw wrong(`two tensors are called ${quoted(name)}`)
    const range = [at, at + bytes.length]
    entryOf(name, { dtype, shape, data_offsets: range })
    head[name] = { dtype, shape, data_offsets: range }
    at += bytes.length
  }
  const json = new TextEncoder().encode(JSON.stringify(head))
  // Padded with spaces to a multiple of 8.
  const start = 8 + Math.ceil(json.length / 8) * 8
  const file = new Uint8Array(start + at)
  new DataView(file.buffer).setBigUint64(0, BigInt(start - 8), true)
  file.set(json, 8)
  file.fill(32, 8 + json.length, start)
  let to = start
  for (const [, { bytes }] of entries) {
    file.set(bytes, to)
    to += bytes.length
  }
  return file
}

const STORED: Readonly<Record<DType, StoredDType>> = {
  float64: 'F64',
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  int32: 'I32',
  bool: 'BOOL',
}

/**
 * Writes tensors as a safetensors file, under their names, views made contiguous. Reads from the device.
 *
 * @param tensors such as `model.stateDict()`, or `Object.fromEntries(model.namedParameters())` for tied ones only once.
 * @param metadata strings to keep beside them.
 * @returns the bytes of the file.
 * @throws ValueError for a tensor called `__metadata__`.
 * @example
 * const bytes = await saveSafetensors({ x: tensor([1.5, 2.5]) })
 * loadSafetensors(bytes).x.dataSync() // → 1.5,2.5
 */
export async function saveSafetensors(
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<Uint8Array> {
  if (
    typeof tensors !== 'object' ||
    tensors === null ||
    typeof (tensors as { forward?: unknown }).forward === 'function'
  )
    throw new ValueError(
      `saveSafetensors: takes tensors by name, as model.stateDict() gives them, got ${describeValue(tensors)}`,
    )
  const stored: [string, StoredTensor][] = []
  for (const [name, t] of Object.entries(tensors)) {
    expectTensor(`saveSafetensors: '${name}'`, t)
    const { buffer, byteOffset, byteLength } = pack(t.dtype, await data(t))
    stored.push([
      name,
      { dtype: STORED[t.dtype], shape: t.shape, bytes: new Uint8Array(buffer, byteOffset, byteLength) },
    ])
  }
  return writeSafetensors(stored, metadata)
}
