// `using` needs this of programs that compile for an older library.
/// <reference lib="esnext.disposable" preserve="true" />

import type { GradNode } from '../autograd/tape.ts'
import { expectDType } from '../checks.ts'
import type { Backend, BackendBuffer, View } from '../dispatch/backend.ts'
import { capturing } from '../dispatch/capturing.ts'
import {
  DisposedError,
  DTypeError,
  GradError,
  OutOfMemoryError,
  ShapeError,
  show,
  ValueError,
} from '../errors.ts'
import { type DType, info, type TypedArray } from './dtype.ts'
import { largestHolders } from './holders.ts'
import { contiguousStrides, isContiguous, type Layout, largestSize, numel, orderedStrides } from './layout.ts'
import { debugSymbol, type InspectOptions, inspectSymbol, inspectTensor, tensorText } from './printing.ts'
import { type Scoped, track } from './scope.ts'
import { counts, Storage } from './storage.ts'

/**
 * A function that `registerHook` calls with a gradient; what it returns, if anything, takes the gradient's place.
 */
export type Hook = (grad: Tensor) => Tensor | undefined | void

/** How many tensors there have been. */
let made = 0

/** The serial number of the newest tensor. @internal */
export const newestId = (): number => made

/**
 * A strided view of a storage, with its place on the tape. Make one with `tensor`, `zeros`, `randn` …; operators are
 * both functions (`add(a, b)`) and methods (`a.add(b)`).
 *
 * Strides and offset count elements.
 */
export class Tensor implements View, Scoped {
  // The only enumerable properties, so that whatever walks objects (JSON, structuredClone, the equality of test
  // runners) finds little to walk, and never takes two tensors for one. What kernels read is no getter: where both
  // tensors and plain views come by, calling one takes several times as long.
  /** A serial number: no two tensors of a program share one. */
  readonly id: number
  /** The type of the elements. */
  readonly dtype: DType
  /** The size of each dim; [] for a scalar. */
  readonly shape: readonly number[]
  /** How many elements of the storage lie between two neighbours along each dim. */
  readonly strides: readonly number[]
  /** The place of the first element in the storage, counted in elements. */
  readonly offset: number
  /** The number of elements, the product of all sizes. */
  readonly numel: number
  readonly #storage: Storage
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
    this.strides = strides
    this.offset = offset
    this.numel = size
    this.#storage = storage
    storage.tensors.count++
    counts.tensors++
    track(this)
  }

  /** @internal The piece of memory that holds the elements, shared with all views of it. */
  get storage(): Storage {
    return this.#storage
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
    capturing()?.touched(this, this.#grad)
    return this.#grad
  }

  set grad(value: Tensor | null) {
    capturing()?.touched(this, this.#grad)
    this.#grad = value
  }

  /** Whether the tensor survives `scope` and `backward()`: set by `keep()`. */
  get kept(): boolean {
    return this.#kept
  }

  set kept(value: boolean) {
    this.#kept = value
  }

  /** @internal Whether `backward()` stores a gradient here although this is no leaf: see `retainGrad()`. */
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

  /**
   * The number of dims.
   *
   * @example
   * zeros([2, 3]).rank // → 2
   */
  get rank(): number {
    return this.shape.length
  }

  /**
   * The number of dims, by PyTorch's name; as `rank`.
   *
   * @example
   * zeros([2, 3]).ndim // → 2
   */
  get ndim(): number {
    return this.shape.length
  }

  /**
   * The backend that holds the data and computes with it.
   *
   * @example
   * zeros([2]).backend.name // → cpu
   */
  get backend(): Backend {
    return this.#storage.backend
  }

  /**
   * The name of the backend that holds the data.
   *
   * @example
   * zeros([2]).device // → cpu
   */
  get device(): string {
    return this.#storage.backend.name
  }

  /**
   * Shape, strides and offset, as the functions of `layout` take them.
   *
   * @example
   * layout.isContiguous(zeros([2, 3]).T.layout) // → false
   */
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
          : by === 'compile()'
            ? 'what a compiled function makes ends with it; return it, or change a tensor from outside in place'
            : 'use it before it is disposed'
    return new DisposedError(`tensor ${show(this.shape)} was freed by ${by}; ${fix}`)
  }

  /**
   * Says whether this tensor was freed; its memory lives on while other views of it do.
   *
   * @example
   * const x = zeros([2])
   * x.dispose()
   * x.disposed // → true
   */
  get disposed(): boolean {
    return this.#freedBy !== null
  }

  /**
   * Says whether the elements are dense and in row-major order.
   *
   * @example
   * zeros([2, 3]).T.isContiguous // → false
   */
  get isContiguous(): boolean {
    this.#contiguous ??= isContiguous(this)
    return this.#contiguous
  }

  /**
   * Says whether gradients flow to or through this tensor. On a floating leaf it can be set.
   *
   * @throws GradError if set on the result of a differentiated operator, DTypeError if set to true for integers.
   * @example
   * const w = zeros([2], { requiresGrad: true })
   * w.mul(2).requiresGrad // → true
   */
  get requiresGrad(): boolean {
    if (this.#gradFn === null) capturing()?.leaf(this, this.#leafGrad)
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
    capturing()?.switched(this)
    this.#leafGrad = value
  }

  /**
   * Says whether the tensor was made by the user rather than by a differentiated operator.
   *
   * @example
   * const w = zeros([2], { requiresGrad: true })
   * w.isLeaf // → true
   * w.mul(2).isLeaf // → false
   */
  get isLeaf(): boolean {
    return this.#gradFn === null
  }

  /**
   * Frees this view now; the memory goes with its last view. It is safe to call twice. `using x = …` does it at
   * the end of a block.
   *
   * @example
   * const x = zeros([1000])
   * x.dispose()
   * x.disposed // → true
   */
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

  /**
   * Exempts this tensor from `scope` and from what `backward()` frees: it lives until `dispose()`, or until
   * nothing refers to it.
   *
   * @returns the tensor itself.
   * @example
   * const kept = scope(() => ({ x: zeros([2]).keep() }))
   * kept.x.disposed // → false
   */
  keep(): this {
    this.#kept = true
    track(this)
    return this
  }

  /**
   * Lets `backward()` store a gradient in this tensor's `.grad` although it is no leaf.
   *
   * @returns the tensor itself.
   * @example
   * const x = ones([2], { requiresGrad: true })
   * const y = x.mul(2).retainGrad()
   * y.square().sum().backward()
   * await y.grad?.toArray() // → [4, 4]
   */
  retainGrad(): this {
    this.#retainsGrad = true
    return this
  }

  /**
   * Calls `hook` with the gradient of this tensor once it is complete during a backward pass; what it returns, if
   * anything, takes the gradient's place.
   *
   * @returns a function that removes the hook.
   * @throws GradError if the tensor does not require a gradient, and during the backward pass ShapeError if the
   * hook returns another shape.
   * @example
   * const x = ones([2], { requiresGrad: true })
   * const remove = x.registerHook((grad) => grad.mul(10))
   * x.sum().backward()
   * await x.grad?.toArray() // → [10, 10]
   * remove()
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

  /**
   * Gives the same data as a view that is cut off from the tape: no gradient flows through it.
   *
   * @example
   * const x = ones([2], { requiresGrad: true })
   * x.mul(2).detach().requiresGrad // → false
   */
  detach(): Tensor {
    return this.viewAs(this)
  }

  /**
   * The tensor as text, as PyTorch prints it: its elements, only the edges where there are more than 1000, with shape,
   * dtype and, where it is not the default, device. Where the device cannot answer at once it tells what is known, and
   * `await x.text()` the elements.
   *
   * @example
   * String(tensor([1, 2.5])) // → tensor([1.0000, 2.5000], shape=[2], dtype=float32)
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
  if (info[dtype] === undefined) expectDType('dtype', dtype)
  if (!Number.isSafeInteger(size)) throw new ShapeError(`${show(shape)} has too many elements`)
  const strides = order ? orderedStrides(shape, order) : contiguousStrides(shape)
  if (size > largestSize) refuse(backend, shape, size, dtype)
  return new Tensor(storageFor(backend, shape, size, dtype), dtype, shape, strides, 0, size)
}

/** Throws for more elements than kernels count; where memory would not do either, for that. */
function refuse(backend: Backend, shape: readonly number[], size: number, dtype: DType): never {
  try {
    storageFor(backend, shape, size, dtype).free()
  } catch (error) {
    if (error instanceof OutOfMemoryError) throw error
  }
  throw new ShapeError(`${dtype} ${show(shape)}: a tensor holds at most 2^31 − 1 elements, this one ${size}`)
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
  capturing()?.wrote(t, data)
  return t
}
