import type { Backend, BackendBuffer, View } from './backend.ts'
import { type DType, info, type TypedArray } from './dtype.ts'
import {
  DisposedError,
  DTypeError,
  GradError,
  OutOfMemoryError,
  ShapeError,
  show,
  UnsupportedOpError,
  ValueError,
} from './errors.ts'
import { largestHolders } from './holders.ts'
import { contiguousStrides, isContiguous, type Layout, numel, orderedStrides } from './layout.ts'
import { debugSymbol, type InspectOptions, inspectSymbol, inspectTensor, tensorText } from './printing.ts'
import { type Scoped, track } from './scope.ts'
import { counts, Storage } from './storage.ts'
import type { GradNode } from './tape.ts'

export type Hook = (grad: Tensor) => Tensor | undefined | void

/** How many tensors there have been. */
let made = 0

/**
 * A strided view of a storage, with its place on the tape. Make one with `tensor`, `zeros`, `randn` …; operators are
 * both functions (`add(a, b)`) and methods (`a.add(b)`).
 *
 * Strides and offset count elements.
 */
export class Tensor implements View, Scoped {
  // The only enumerable properties, so that whatever walks objects (JSON, structuredClone, the equality of test
  // runners) finds little to walk, and never takes two tensors for one.
  /** A serial number: no two tensors of a program share one. */
  readonly id: number
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly #storage: Storage
  readonly #strides: readonly number[]
  readonly #offset: number
  readonly #numel: number
  #gradFn: GradNode | null = null
  #grad: Tensor | null = null
  #kept = false
  #retainsGrad = false
  #returned = false
  #hooks: Hook[] | null = null
  #leafGrad = false
  #freedBy: string | null = null
  #contiguous: boolean | null = null

  /** @internal Use the factories. */
  constructor(
    storage: Storage,
    dtype: DType,
    shape: readonly number[],
    strides: readonly number[],
    offset: number,
    size = numel(shape),
  ) {
    this.id = ++made
    this.dtype = dtype
    this.shape = shape
    this.#storage = storage
    this.#strides = strides
    this.#offset = offset
    this.#numel = size
    storage.tensors.count++
    counts.tensors++
    track(this)
  }

  /** @internal */
  get storage(): Storage {
    return this.#storage
  }

  /** How many elements apart neighbours along each dim lie in memory. */
  get strides(): readonly number[] {
    return this.#strides
  }

  /** Where the first element lies in the storage, in elements. */
  get offset(): number {
    return this.#offset
  }

  /** Number of elements. */
  get numel(): number {
    return this.#numel
  }

  /** The operator that made this tensor, where gradients flow through it. */
  get gradFn(): GradNode | null {
    return this.#gradFn
  }

  set gradFn(value: GradNode | null) {
    this.#gradFn = value
  }

  /** The gradient that `backward()` accumulated here; null before. */
  get grad(): Tensor | null {
    return this.#grad
  }

  set grad(value: Tensor | null) {
    this.#grad = value
  }

  /** Survives `scope` and `backward()`: set by `keep()`. */
  get kept(): boolean {
    return this.#kept
  }

  set kept(value: boolean) {
    this.#kept = value
  }

  /** @internal Does `backward()` store a gradient here although this is no leaf? See `retainGrad()`. */
  get retainsGrad(): boolean {
    return this.#retainsGrad
  }

  set retainsGrad(value: boolean) {
    this.#retainsGrad = value
  }

  /** @internal A gradient handed to the caller by `grad()`: not the tape's to free. */
  get returned(): boolean {
    return this.#returned
  }

  set returned(value: boolean) {
    this.#returned = value
  }

  /** @internal */
  get hooks(): Hook[] | null {
    return this.#hooks
  }

  set hooks(value: Hook[] | null) {
    this.#hooks = value
  }

  /** Number of dims. */
  get rank(): number {
    return this.shape.length
  }

  /** Number of dims, PyTorch's name. */
  get ndim(): number {
    return this.shape.length
  }

  get backend(): Backend {
    return this.#storage.backend
  }

  /** Name of the backend that holds the data. */
  get device(): string {
    return this.#storage.backend.name
  }

  get layout(): Layout {
    return this
  }

  /** @internal The backend's handle; throws DisposedError once the memory is gone. */
  get buffer(): BackendBuffer {
    if (this.#freedBy !== null || this.#storage.buffer === null) throw this.#gone()
    return this.#storage.buffer
  }

  #gone(): DisposedError {
    const by = this.#freedBy ?? 'dispose()'
    const fix =
      by === 'backward()'
        ? 'backward() frees the intermediates of its graph (all but scalars); call .keep() on what you still need before it, or pass { retainGraph: true }'
        : by === 'scope()'
          ? 'return it from the scope, or call .keep() on it inside'
          : 'use it before it is disposed'
    return new DisposedError(`tensor ${show(this.shape)} was freed by ${by}; ${fix}`)
  }

  get disposed(): boolean {
    return this.#freedBy !== null
  }

  /** Are the elements dense and in row-major order? */
  get isContiguous(): boolean {
    this.#contiguous ??= isContiguous(this)
    return this.#contiguous
  }

  /** Do gradients flow to or through this tensor? */
  get requiresGrad(): boolean {
    return this.#leafGrad || this.#gradFn !== null
  }

  set requiresGrad(value: boolean) {
    if (value === this.requiresGrad) return
    if (this.#gradFn !== null)
      throw new GradError(
        'requiresGrad: only leaf tensors can change it; use detach() to stop gradients here',
      )
    if (value && !info[this.dtype].float)
      throw new DTypeError(`requiresGrad: only floating tensors have gradients, this one is ${this.dtype}`)
    this.#leafGrad = value
  }

  /** Was it made by the user rather than by a differentiated operator? */
  get isLeaf(): boolean {
    return this.#gradFn === null
  }

  /** Frees this view now; the memory goes with its last view. Safe to call twice. */
  dispose(): void {
    this.release('dispose()')
  }

  [Symbol.dispose](): void {
    this.release('dispose()')
  }

  /** @internal */
  adopt(): void {
    this.#storage.adopt()
  }

  /** @internal */
  release(by: string): void {
    if (this.#freedBy !== null) return
    this.#freedBy = by
    counts.tensors--
    if (--this.#storage.tensors.count === 0) this.#storage.free()
  }

  /** Exempts this tensor from `scope` and from what `backward()` frees; it lives until `dispose()` or until it is unreachable. */
  keep(): this {
    this.#kept = true
    track(this)
    return this
  }

  /** Lets `backward()` store a gradient in this non-leaf tensor's `.grad`. */
  retainGrad(): this {
    this.#retainsGrad = true
    return this
  }

  /**
   * Calls `hook` with the gradient of this tensor once it is complete during a backward pass; what it returns, if
   * anything, replaces it. Returns a function that removes the hook.
   */
  registerHook(hook: Hook): () => void {
    if (!this.requiresGrad) throw new GradError('registerHook: this tensor does not require a gradient')
    this.#hooks = [...(this.#hooks ?? []), hook]
    return () => {
      this.#hooks = this.#hooks?.filter((h) => h !== hook) ?? null
    }
  }

  /** @internal A new view of the same storage. */
  viewAs(layout: Layout): Tensor {
    if (this.#freedBy !== null) throw this.#gone()
    return new Tensor(this.#storage, this.dtype, layout.shape, layout.strides, layout.offset)
  }

  /** The same data, cut off from the tape. */
  detach(): Tensor {
    return this.viewAs(this)
  }

  /**
   * The tensor as text, as PyTorch prints it: its elements, only the edges where there are more than 1000, with shape,
   * dtype and, where it is not the default, device. Where the device cannot answer at once it tells what is known, and
   * `await x.text()` the elements.
   *
   * @example
   * String(tensor([[1, 2.5], [3, 4]])) // → tensor([[1.0000, 2.5000],\n        [3.0000, 4.0000]], shape=[2, 2], dtype=float32)
   */
  toString(): string {
    return tensorText(this, this.#freedBy)
  }

  /** @internal */
  [inspectSymbol](depth: number, options: InspectOptions): string {
    return inspectTensor(this, this.#freedBy, depth, options)
  }

  /** @internal */
  [debugSymbol](): string {
    return tensorText(this, this.#freedBy)
  }

  /** @internal A tensor is text where text is due; as a number it would be NaN, and wrong without a word. */
  [Symbol.toPrimitive](hint: string): string {
    if (hint === 'string') return this.toString()
    throw new ValueError(
      'a tensor is no number: use a.add(b), a.sub(b), a.mul(b), a.div(b), a.lt(b), a.gt(b), a.eq(b) for a + b, a - b, …, a < b, a > b, a == b; ' +
        'await a.item() gives the value of one element, String(a) the text',
    )
  }
}

/**
 * A new tensor with undefined contents, contiguous, or dense with its dims in another order: from the outermost in memory
 * to the innermost.
 */
export function allocate(
  backend: Backend,
  shape: readonly number[],
  dtype: DType,
  order?: readonly number[],
): Tensor {
  const size = numel(shape)
  if (dtype === 'float16') throw new UnsupportedOpError('float16: no backend stores it yet; use float32')
  if (!Number.isSafeInteger(size)) throw new ShapeError(`${show(shape)} has too many elements`)
  const strides = order ? orderedStrides(shape, order) : contiguousStrides(shape)
  return new Tensor(storageFor(backend, shape, size, dtype), dtype, shape, strides, 0, size)
}

function storageFor(backend: Backend, shape: readonly number[], size: number, dtype: DType): Storage {
  try {
    return new Storage(backend, size * info[dtype].bytes, dtype)
  } catch (error) {
    if (error instanceof OutOfMemoryError) {
      const holders = largestHolders(backend)
      error.message = `${dtype} ${show(shape)}: ${error.message}${holders && `. Of what running scopes and their graphs hold, ${holders}`}`
    }
    throw error
  }
}

/** A new contiguous tensor holding a copy of `data`, converted to `dtype`. */
export function upload(backend: Backend, data: TypedArray, shape: readonly number[], dtype: DType): Tensor {
  const t = allocate(backend, shape, dtype)
  backend.write(t, data)
  return t
}
