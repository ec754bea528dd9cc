/**
 * Kernels that remember what they did. Which shaders run, on how many workgroups, with what temporaries and parameters
 * follows from the layouts of the operands and the attributes alone; working that out takes longer than all the rest of
 * a call. So it is recorded the first time, and done again for operands of the same layouts, with their buffers.
 *
 * The numbers of a call (an optimiser's rates, the draws of random numbers) are not part of what a recording is found by:
 * see `Scalar`. Objects in attributes (expressions) are known by what they are, not by what is in
 * them: they are never changed.
 *
 * A kernel that does more than dispatches on its operands and temporaries (bytes from the host, copies, buffers of its
 * own) is not remembered. Test: recorded.test.ts, and for all operators test/webgpu-recorded.test.ts.
 */

import type { DType, KernelOf, View } from '@tilegrad/core'
import type { GpuBuffer } from '../device/buffers.ts'
import type { LastingWords } from './params.ts'
import type { GpuKernel } from './pipelines.ts'
import type { Engine } from './queue.ts'

/** A parameter of a dispatch, at position `at`, that is the call's number `source`. */
export interface Scalar {
  readonly at: number
  readonly source: number
  readonly dtype: DType
}

/** A dispatch to be repeated. Its words are those of its parameters, but for the call's own numbers. */
export interface Dispatch extends LastingWords {
  readonly kind: 'run'
  readonly kernel: GpuKernel
  /** Numbered: those of the operands in order, each once, and then temporaries as they are allocated. */
  readonly buffers: readonly number[]
  /** Where a replay puts them. */
  readonly bound: GpuBuffer[]
  readonly grid: readonly [x: number, y: number, z: number]
  readonly scalars: readonly Scalar[]
}

type Step =
  | Dispatch
  | { readonly kind: 'alloc'; readonly count: number; readonly dtype: DType }
  | { readonly kind: 'free'; readonly buffer: number }

/** Listens to the engine and its pool while a kernel runs. */
export class Recorder {
  /** Whose kernel it is. */
  readonly name: string
  readonly steps: Step[] = []
  /** It used nothing but its operands, its temporaries and dispatches. */
  complete = true
  /** Temporaries that it has not given back. */
  readonly taken = new Set<GpuBuffer>()
  readonly #numbers: Map<GpuBuffer, number>
  #next: number

  constructor(name: string, operands: readonly GpuBuffer[]) {
    this.name = name
    this.#numbers = new Map(operands.map((buffer, i) => [buffer, i]))
    this.#next = operands.length
  }

  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: readonly [x: number, y: number, z: number],
    scalars: readonly Scalar[],
  ): void {
    const numbers = buffers.map((b) => this.#of(b))
    const bound = [...buffers]
    this.steps.push({ kind: 'run', kernel, buffers: numbers, bound, words, grid, scalars, at: -1, era: -1 })
  }

  alloc(buffer: GpuBuffer, count: number, dtype: DType): void {
    this.taken.add(buffer)
    this.#numbers.set(buffer, this.#next++)
    this.steps.push({ kind: 'alloc', count, dtype })
  }

  free(buffer: GpuBuffer): void {
    this.taken.delete(buffer)
    this.steps.push({ kind: 'free', buffer: this.#of(buffer) })
  }

  #of(buffer: GpuBuffer): number {
    const number = this.#numbers.get(buffer)
    if (number === undefined) this.complete = false
    return number ?? -1
  }
}

/** What was done for operands and attributes that `key` tells. */
interface Recording {
  readonly key: Float64Array
  readonly steps: readonly Step[]
  /** All of the same kernel. */
  readonly among: Recordings
  /** Another one of the same hash. */
  readonly next: Recording | undefined
  /** What was done after it last time, and is likely to be done again. */
  follower: Recording | undefined
}
type Recordings = Map<number, Recording>

/** Recordings of one kernel; when there are more, sizes change all the time, and old ones are of little use. */
const most = 1024

/** A kernel that remembers. */
export function recorded<A extends object>(engine: Engine, name: string, kernel: KernelOf<A>): KernelOf<A> {
  const recordings: Recordings = new Map()
  return {
    ...kernel,
    run(outputs, inputs, attrs, numbers) {
      if (engine.recorder) return kernel.run(outputs, inputs, attrs, numbers)
      describe(outputs, inputs, attrs, numbers.length)
      const found = find(recordings)
      if (found) return replay(engine, found.steps, numbers)

      const made = key.slice(0, end)
      const hash = hashOfKey()
      const recorder = new Recorder(name, operands.slice(0, operandCount))
      engine.recorder = recorder
      try {
        kernel.run(outputs, inputs, attrs, numbers)
      } catch (error) {
        for (const buffer of recorder.taken) engine.pool.free(buffer)
        throw error
      } finally {
        engine.recorder = null
      }
      if (!recorder.complete) return
      if (recordings.size >= most) forget(recordings)
      const next = recordings.get(hash)
      recordings.set(hash, {
        key: made,
        steps: recorder.steps,
        among: recordings,
        next,
        follower: undefined,
      })
    },
  }
}

/** The recording of what `describe` found. */
function find(recordings: Recordings): Recording | undefined {
  let found = last?.follower
  if (!found || found.among !== recordings || !isDescribed(found.key)) {
    found = recordings.get(hashOfKey())
    while (found && !isDescribed(found.key)) found = found.next
    if (!found) return undefined
    if (last) last.follower = found
  }
  last = found
  return found
}
let last: Recording | undefined

function forget(recordings: Recordings): void {
  // What still points to them must not hold what came after.
  for (const first of recordings.values())
    for (let old: Recording | undefined = first; old; old = old.next) old.follower = undefined
  recordings.clear()
}

function replay(engine: Engine, steps: readonly Step[], scalars: readonly number[]): void {
  const given = operandCount
  let s = 0
  try {
    for (; s < steps.length; s++) {
      const step = steps[s] as Step
      if (step.kind === 'run') {
        const { buffers, bound } = step
        for (let i = 0; i < buffers.length; i++) bound[i] = operands[buffers[i] as number] as GpuBuffer
        engine.runAgain(step, bound, scalars)
      } else if (step.kind === 'alloc') operands[operandCount++] = engine.pool.alloc(step.count, step.dtype)
      else engine.pool.free(operands[step.buffer] as GpuBuffer)
    }
  } catch (error) {
    const freed = new Set(steps.slice(0, s).map((step) => (step.kind === 'free' ? step.buffer : -1)))
    for (let i = given; i < operandCount; i++) if (!freed.has(i)) engine.pool.free(operands[i] as GpuBuffer)
    throw error
  }
}

// What `describe` found, reused by all calls: none runs while another does.
let key = new Float64Array(4096)
let end = 0

function put(value: number): void {
  if (end === key.length) makeRoom(1)
  key[end++] = value
}
function makeRoom(more: number): void {
  const longer = new Float64Array(2 * (end + more))
  longer.set(key)
  key = longer
}
// Never shortened: V8 would make them anew.
const operands: GpuBuffer[] = []
let operandCount = 0
let calls = 0

/** Fills `key` and `operands`. */
function describe(outputs: readonly View[], inputs: readonly View[], attrs: object, numbers: number): void {
  end = 0
  operandCount = 0
  calls++
  put(outputs.length)
  put(inputs.length)
  put(numbers)
  for (let i = 0; i < outputs.length; i++) describeView(outputs[i] as View)
  for (let i = 0; i < inputs.length; i++) describeView(inputs[i] as View)
  for (const name in attrs) {
    const value = (attrs as Record<string, unknown>)[name]
    put(identityOf(name))
    describeValue(value)
  }
}

function hashOfKey(): number {
  let hash = end
  for (let i = 0; i < end; i++) {
    hash = Math.imul(hash ^ (key[i] as number), 0x9e3779b1)
    hash ^= hash >>> 15
  }
  return hash
}

function describeView(view: View): void {
  const { dtype, shape, strides, offset } = view
  const buffer = view.buffer as GpuBuffer
  if (buffer.call !== calls) {
    buffer.call = calls
    buffer.number = operandCount
    operands[operandCount++] = buffer
  }
  const rank = shape.length
  if (end + 5 + 2 * rank > key.length) makeRoom(5 + 2 * rank)
  const to = key
  let at = end
  // Which operands share a buffer, and whether there is room after the last element.
  to[at++] = buffer.number
  to[at++] = buffer.bytes
  to[at++] = dtype === 'float32' ? -1 : identityOf(dtype)
  to[at++] = offset
  to[at++] = rank
  for (let d = 0; d < rank; d++) {
    to[at++] = shape[d] as number
    to[at++] = strides[d] as number
  }
  end = at
}

/** As whole numbers, so that NaN equals itself and −0 is not 0. */
function describeValue(value: unknown): void {
  if (typeof value === 'number') {
    float[0] = value
    put(-2)
    put(halves[0] as number)
    put(halves[1] as number)
  } else if (Array.isArray(value)) {
    put(-3)
    put(value.length)
    for (const item of value) describeValue(item)
  } else put(typeof value === 'boolean' ? (value ? -4 : -5) : identityOf(value))
}
const float = new Float64Array(1)
const halves = new Int32Array(float.buffer)

/** A number for a text, null or undefined, or for an object, as expressions are: those are made once. */
function identityOf(value: unknown): number {
  const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function'
  let number = isObject ? objects.get(value) : texts.get(value)
  if (number === undefined) {
    number = identities++
    if (isObject) objects.set(value, number)
    else texts.set(value, number)
  }
  return number
}
const texts = new Map<unknown, number>()
const objects = new WeakMap<object, number>()
let identities = 0

function isDescribed(other: Float64Array): boolean {
  if (other.length !== end) return false
  const mine = key
  for (let i = 0; i < other.length; i++) if (other[i] !== mine[i]) return false
  return true
}
