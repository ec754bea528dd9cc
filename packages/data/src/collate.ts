import { describeValue, ShapeError, stack, Tensor, TilegradError, tensor, ValueError } from '@tilegrad/core'

/**
 * What samples of type T are in a batch: tensors, numbers, booleans and typed arrays become tensors, arrays, tuples and
 * records go on inside, texts and what else there is become lists.
 */
export type Collated<T> = T extends Tensor | number | boolean | bigint | ArrayBufferView
  ? Tensor
  : T extends readonly unknown[]
    ? { -readonly [K in keyof T]: Collated<T[K]> }
    : T extends
          | string
          | null
          | undefined
          | ((...args: never) => unknown)
          | Date
          | Map<unknown, unknown>
          | Set<unknown>
      ? T[]
      : T extends object
        ? { [K in keyof T]: Collated<T[K]> }
        : unknown

/** A value on which `defaultCollate` goes on inside. */
export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' &&
  value !== null &&
  [Object.prototype, null].includes(Object.getPrototypeOf(value))

type Numbers = ArrayBufferView &
  ArrayLike<number | bigint> & { set(from: ArrayLike<number>, at: number): void }

const isTyped = (value: unknown): value is Numbers =>
  ArrayBuffer.isView(value) && !(value instanceof DataView)

/** What a sample is, in messages about those that differ. */
function kind(value: unknown): string {
  if (value instanceof Tensor) return `a tensor [${value.shape.join(', ')}] of ${value.dtype}`
  if (isTyped(value)) return `${value.constructor.name} of ${value.length}`
  return describeValue(value)
}

function differs(path: string, i: number, first: unknown, value: unknown): ShapeError {
  const where = path ? `at ${path}, ` : ''
  return new ShapeError(
    `collate: ${where}sample ${i} of the batch is ${kind(value)}, the first is ${kind(first)}; make them alike (pad them), or pass a collate of your own`,
  )
}

function expectAll(path: string, samples: readonly unknown[], like: (value: unknown) => boolean): void {
  const i = samples.findIndex((value) => !like(value))
  if (i >= 0) throw differs(path, i, samples[0], samples[i])
}

function joined(samples: readonly Numbers[]): Tensor {
  const [first] = samples
  const Kind = first.constructor as new (length: number) => Numbers
  const flat = new Kind(samples.length * first.length)
  samples.forEach((part, i) => flat.set(part as ArrayLike<number>, i * first.length))
  return tensor(flat as Float32Array, [samples.length, first.length])
}

function collate(samples: readonly unknown[], path: string): unknown {
  const [first] = samples
  const inside = (key: string | number): string => (path ? `${path}.${key}` : `${key}`)
  if (first instanceof Tensor) {
    const shape = first.shape.join()
    expectAll(
      path,
      samples,
      (x) => x instanceof Tensor && x.shape.join() === shape && x.dtype === first.dtype,
    )
    return stack(samples as Tensor[])
  }
  if (isTyped(first)) {
    expectAll(
      path,
      samples,
      (x) => isTyped(x) && x.constructor === first.constructor && x.length === first.length,
    )
    return joined(samples as Numbers[])
  }
  if (typeof first === 'number' || typeof first === 'boolean' || typeof first === 'bigint') {
    expectAll(path, samples, (x) => typeof x === typeof first)
    return typeof first === 'bigint'
      ? tensor(BigInt64Array.from(samples as bigint[]))
      : tensor(samples as number[])
  }
  if (Array.isArray(first)) {
    expectAll(path, samples, (x) => Array.isArray(x) && x.length === first.length)
    return first.map((_, j) =>
      collate(
        (samples as unknown[][]).map((sample) => sample[j]),
        inside(j),
      ),
    )
  }
  if (isRecord(first)) {
    expectAll(path, samples, (x) => isRecord(x) && Object.keys(first).every((key) => Object.hasOwn(x, key)))
    return Object.fromEntries(
      Object.keys(first).map((key) => [
        key,
        collate(
          (samples as Record<string, unknown>[]).map((sample) => sample[key]),
          inside(key),
        ),
      ]),
    )
  }
  if (first instanceof Promise)
    throw new ValueError('collate: samples are promises; await them, or go through the loader with for await')
  return [...samples]
}

/**
 * Makes a batch of samples, as torch.utils.data.default_collate: tensors are stacked, typed arrays of one length as well,
 * numbers become a float32 tensor (whatever the numbers are, so that all batches have one dtype), booleans bool, bigints int32;
 * arrays, tuples and records are gone through; texts and what else there is become lists.
 *
 * @throws ShapeError naming the sample and the place where samples are not alike, ValueError without samples.
 * @example
 * import { defaultCollate } from 'tilegrad/data'
 *
 * const batch = defaultCollate([{ x: Float32Array.of(1, 2), name: 'a' }, { x: Float32Array.of(3, 4), name: 'b' }])
 * batch.x.shape // → [2, 2]
 * batch.name // → [a, b]
 */
export function defaultCollate<T>(samples: readonly T[]): Collated<T> {
  if (samples.length === 0) throw new ValueError('collate: a batch needs one sample or more, got none')
  return collate(samples, '') as Collated<T>
}

/** A batch with each of its tensors, in arrays and records, replaced by what `fn` makes of it. */
export function mapTensors(batch: unknown, fn: (t: Tensor) => Tensor): unknown {
  if (batch instanceof Tensor) return fn(batch)
  if (Array.isArray(batch)) return batch.map((value) => mapTensors(value, fn))
  if (isRecord(batch))
    return Object.fromEntries(Object.entries(batch).map(([key, value]) => [key, mapTensors(value, fn)]))
  return batch
}

/** Thrown when a dataset cannot give a sample, or a file or worker that it comes from fails: says which one and why. */
export class DataError extends TilegradError {
  override name = 'DataError'
  /** The index of the sample, where one is to blame. */
  readonly index: number | undefined

  constructor(message: string, options: { readonly index?: number; readonly cause?: unknown } = {}) {
    super(message)
    if (options.cause !== undefined) this.cause = options.cause
    this.index = options.index
  }
}
