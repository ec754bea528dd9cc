import { readFileSync } from 'node:fs'
import {
  type Backend,
  type DType,
  type Layout,
  layout,
  Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { readSafetensors, type StoredTensor, storedValues } from '@tilegrad/nn'

/** A tensor of the manifest: where its data is, and how it lay in memory. Strides count elements. */
export interface TensorEntry {
  readonly tensor: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly requires_grad?: boolean
}

export type Entry =
  | TensorEntry
  | { readonly list: readonly Entry[] }
  | { readonly value: number | string | boolean | null }
  | { readonly dtype: string }

export interface OpCase {
  readonly op: string
  readonly input: Entry
  readonly args: { readonly list: readonly Entry[] }
  readonly kwargs: Readonly<Record<string, Entry>>
  readonly outputs: readonly TensorEntry[]
  readonly cotangents?: readonly TensorEntry[]
  readonly grads?: readonly (TensorEntry | null)[]
}

/** An argument as it is handed to an operator; dtypes are their names. */
export type Value = Tensor | number | string | boolean | null | readonly Value[]

/** Thrown where a case cannot be run for a reason that is no failure. */
export class Skip extends Error {}

const DTYPES: Readonly<Record<string, DType>> = {
  float32: 'float32',
  float64: 'float64',
  float16: 'float16',
  bfloat16: 'bfloat16',
  int32: 'int32',
  // Indices and integer sums are int32 here.
  int64: 'int32',
  int16: 'int32',
  uint8: 'int32',
  int8: 'int32',
  bool: 'bool',
}

/** Our dtype for one of PyTorch's. */
export function dtypeOf(name: string): DType {
  const dtype = DTYPES[name.replace('torch.', '')]
  if (!dtype) throw new Skip(`dtype ${name} does not exist here`)
  return dtype
}

const NUMBERS: Readonly<Record<string, number>> = {
  inf: Infinity,
  '-inf': -Infinity,
  nan: Number.NaN,
  Infinity: Infinity,
  '-Infinity': -Infinity,
  NaN: Number.NaN,
}

/** Values of one-element tensors that stand where PyTorch also takes a number. */
const scalars = new WeakMap<Tensor, number>()
export const scalarOf = (t: Tensor): number | undefined => scalars.get(t)

/** The tensors of a fixture file, and how to put them on a backend. */
export class Tensors {
  readonly #stored: ReadonlyMap<string, StoredTensor>
  readonly #backend: Backend

  constructor(path: string, backend: Backend) {
    this.#stored = readSafetensors(readFileSync(path)).tensors
    this.#backend = backend
  }

  stored(name: string): StoredTensor {
    const found = this.#stored.get(name)
    if (!found) throw new Error(`the fixture has no tensor '${name}'`)
    return found
  }

  /** The names that begin with a prefix, without it. */
  names(prefix: string): string[] {
    return [...this.#stored.keys()].filter((n) => n.startsWith(prefix)).map((n) => n.slice(prefix.length))
  }

  /** 64-bit integers wrap to 32 bits, as tilegrad's own sums do: agreement is modulo 2³². */
  values(name: string): TypedArray {
    const stored = this.stored(name)
    if (stored.dtype !== 'I64') return storedValues(stored)
    return Int32Array.from(new BigInt64Array(stored.bytes.slice().buffer), (v) =>
      Number(BigInt.asIntN(32, v)),
    )
  }

  /** A contiguous tensor by name. */
  load(name: string, requiresGrad = false): Tensor {
    const { dtype, shape } = this.stored(name)
    const names: Record<string, DType> = {
      ...{ F32: 'float32', F64: 'float64', F16: 'float16', BF16: 'bfloat16', I32: 'int32', I64: 'int32' },
    }
    return tensor(this.values(name), shape, {
      dtype: names[dtype] ?? 'bool',
      device: this.#backend,
      requiresGrad,
    })
  }

  /** An entry of the manifest with the strides it had; those that require a gradient are pushed to `leaves`. */
  decode(entry: Entry, leaves: Tensor[]): Value {
    if ('tensor' in entry) {
      const t = this.#place(entry)
      if (entry.requires_grad) leaves.push(t)
      return t
    }
    if ('list' in entry) return entry.list.map((e) => this.decode(e, leaves))
    if ('dtype' in entry) return dtypeOf(entry.dtype)
    const { value } = entry
    return typeof value === 'string' && value in NUMBERS ? NUMBERS[value] : value
  }

  #place({
    tensor: name,
    dtype: torchDtype,
    shape,
    strides,
    requires_grad: requiresGrad = false,
  }: TensorEntry): Tensor {
    const dtype = dtypeOf(torchDtype)
    const values = this.values(name)
    const device = this.#backend
    const dense: Layout = { shape, strides, offset: 0 }
    if (layout.isContiguous(dense)) {
      const t = tensor(values, shape, { dtype, device, requiresGrad })
      if (values.length === 1) scalars.set(t, values[0])
      return t
    }
    // A view: an offset of its own, and poison in every gap, so that a kernel that reads beside its elements shows.
    const at: Layout = { shape, strides, offset: 3 }
    let end = at.offset + 1
    shape.forEach((n, i) => {
      end += (n - 1) * strides[i]
    })
    const poison = dtype === 'bool' ? 1 : dtype === 'int32' ? 0x55555555 : Number.NaN
    const memory = new Array<number>(end + 2).fill(poison)
    layout.forEachOffset(at, (offset, i) => {
      memory[offset] = values[i]
    })
    const base = tensor(memory, [memory.length], { dtype, device })
    const t = base.viewAs(at)
    base.dispose()
    t.requiresGrad = requiresGrad
    return t
  }
}

export const readJson = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'))

export const isTensor = (v: unknown): v is Tensor => v instanceof Tensor
