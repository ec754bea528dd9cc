import type { Backend } from '../dispatch/backend.ts'
import { run, takes } from '../dispatch/call.ts'
import { capturing, live, type Numbers, numbersOf } from '../dispatch/capturing.ts'
import type { ElementwiseAttrs, KernelOf } from '../dispatch/kernels.ts'
import { paging } from '../dispatch/paging.ts'
import { expressionWork, type Program, specialize, type TypedProgram } from '../expr/program.ts'
import { type DType, isFloat } from '../tensor/dtype.ts'
import type { Storage } from '../tensor/storage.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { backendOf } from './common.ts'
import { checkInto, checkStored, clash, compute, elementwiseInto } from './elementwise.ts'

/** One application of a program in place: what `applyProgramInto` takes. */
export interface InPlaceCall {
  /** The views of one shape that are overwritten; they may be inputs as well. */
  readonly outputs: readonly Tensor[]
  /** The tensors that are read, which broadcast to the shape of the outputs. */
  readonly inputs: readonly Tensor[]
  /** The numbers that the program takes, or a function that is asked for them each time. */
  readonly params?: Numbers
}

/** A call with its numbers as they are now. */
type Now = InPlaceCall & { readonly params?: readonly number[] }

const NONE: readonly number[] = []

/**
 * `applyProgramInto` for many groups of tensors, with params of their own: one launch for all of them where the backend
 * has the `foreach` kernel and takes them, one launch each otherwise. The result is that of the calls in order. Nothing
 * is changed if anything is wrong with any of them.
 *
 * @throws what `applyProgramInto` throws.
 * @example
 * const HALVE = program('halve', 1, ([x]) => expr.mul(x, 0.5))
 * const [a, b] = [ones([2]), ones([3])]
 * applyProgramIntoEach(HALVE, [a, b].map((t) => ({ outputs: [t], inputs: [t] })))
 * b.dataSync() // → 0.5,0.5,0.5
 */
export function elementwiseIntoEach(p: Program, list: readonly InPlaceCall[]): void {
  const calls = list.map((call) =>
    typeof call.params === 'function' ? { ...call, params: numbersOf(call.params) } : (call as Now),
  )
  for (const call of calls) {
    checkInto(p.name, call.outputs, call.inputs)
    if (!call.outputs.every((t) => isFloat(t.dtype))) checkStored(p, typed(p, call))
  }
  let batch: Batch | null = null
  for (const call of calls) {
    if (clash(call.outputs, call.inputs)) {
      batch?.run()
      batch = null
      elementwiseInto(call.outputs, p, call.inputs, call.params)
      continue
    }
    const all = [...call.outputs, ...call.inputs]
    const backend = backendOf(p.name, all)
    const kernel: TypedProgram = batch?.kernelFor(all) ?? typed(p, call)
    if (batch && !(batch.backend === backend && batch.kernel === kernel && batch.admits(call))) {
      batch.run()
      batch = null
    }
    const foreach: KernelOf<ElementwiseAttrs> | undefined = backend.kernels.foreach
    if (foreach && takes(foreach, all, { kernel })) {
      batch ??= new Batch(kernel, backend, foreach)
      batch.add(call)
    } else {
      batch?.run()
      batch = null
      single(kernel, backend, call)
    }
  }
  batch?.run()
}

/** The kernel that a call needs. Among floats whole params and fractions are the same, and have to share a kernel. */
function typed(p: Program, { outputs, inputs, params = NONE }: Now): TypedProgram {
  const floats = outputs.every((t) => isFloat(t.dtype)) && inputs.every((t) => isFloat(t.dtype))
  return specialize(
    p,
    inputs.map((t) => t.dtype),
    floats ? params.map(() => 0.5) : params,
    outputs.map((t) => t.dtype),
  )
}

function single(kernel: TypedProgram, backend: Backend, call: Now): void {
  const { outputs, inputs, params = NONE } = call
  compute(backend, kernel, outputs, inputs, params)
  for (const t of outputs) t.storage.version++
}

let batches = 0

/** The first element of its storage that a view may touch. */
const startOf = (t: Tensor): number =>
  t.numel === 0 ? Number.POSITIVE_INFINITY : t.isContiguous ? t.offset : 0
/** The end of the elements of its storage that a view may touch. */
const endOf = (t: Tensor): number =>
  t.numel === 0 ? 0 : t.isContiguous ? t.offset + t.numel : Number.POSITIVE_INFINITY

/**
 * Calls that can run as one: of one kernel, and none of them touches what another one writes. Parts of one storage are
 * told apart if they come in their order in memory.
 */
class Batch {
  readonly kernel: TypedProgram
  readonly backend: Backend
  readonly #foreach: KernelOf<ElementwiseAttrs>
  /** The dtypes of outputs and inputs, if all of them are floats. */
  readonly #dtypes: readonly DType[] | null
  readonly #calls: Now[] = []
  // Storages carry these marks while the batch grows.
  readonly #read = 2 * ++batches
  readonly #written = this.#read + 1

  constructor(kernel: TypedProgram, backend: Backend, foreach: KernelOf<ElementwiseAttrs>) {
    const dtypes = [...kernel.exprs.map((x) => x.dtype), ...kernel.inputs]
    this.kernel = kernel
    this.backend = backend
    this.#foreach = foreach
    this.#dtypes = dtypes.every(isFloat) ? dtypes : null
  }

  /** This batch's kernel if a call with these operands obviously needs that one; otherwise null. */
  kernelFor(all: readonly Tensor[]): TypedProgram | null {
    const dtypes = this.#dtypes
    if (dtypes?.length !== all.length) return null
    for (let i = 0; i < all.length; i++) if (all[i].dtype !== dtypes[i]) return null
    return this.kernel
  }

  admits({ outputs, inputs }: InPlaceCall): boolean {
    // All of it has to be in memory at once.
    if (
      paging()?.isLarge(
        this.#calls.reduce((n, { inputs }) => inputs.reduce((n, t) => n + t.storage.bytes, n), 0),
      )
    )
      return false
    for (const t of outputs) if (this.#touches(t.storage) && startOf(t) < t.storage.markEnd) return false
    for (const t of inputs)
      if (t.storage.mark === this.#written && startOf(t) < t.storage.markEnd) return false
    return true
  }

  add(call: Now): void {
    for (const t of call.inputs) this.#mark(t, this.#read)
    for (const t of call.outputs) this.#mark(t, this.#written)
    this.#calls.push(call)
  }

  #touches({ mark }: Storage): boolean {
    return mark === this.#read || mark === this.#written
  }

  #mark(t: Tensor, mark: number): void {
    const { storage } = t
    const end = endOf(t)
    storage.markEnd = this.#touches(storage) ? Math.max(storage.markEnd, end) : end
    if (storage.mark !== this.#written) storage.mark = mark
  }

  run(): void {
    const calls = this.#calls
    if (calls.length === 1) {
      single(this.kernel, this.backend, calls[0])
      return
    }
    const [outputs, inputs]: [Tensor[], Tensor[]] = [[], []]
    const numbers: number[] = []
    for (const call of calls) {
      for (const t of call.outputs) outputs.push(t)
      for (const t of call.inputs) inputs.push(t)
      for (const v of call.params ?? NONE) numbers.push(v)
    }
    const capture = capturing()
    if (capture && calls.some(({ params }) => params && capture.isLive(params)))
      live(numbers, () => calls.flatMap(({ params }) => params ?? NONE))
    const flops = (): number =>
      expressionWork(this.kernel) * calls.reduce((n, c) => n + (c.outputs[0] as Tensor).numel, 0)
    const attrs = { kernel: this.kernel }
    const { backend } = this
    run({
      op: this.kernel.name,
      path: 'fused',
      backend,
      kernel: this.#foreach,
      outputs,
      inputs,
      attrs,
      numbers,
      flops,
    })
    for (const t of outputs) t.storage.version++
  }
}
